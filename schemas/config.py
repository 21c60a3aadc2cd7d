"""The host's configuration: one TOML file, parsed once, unknown keys refused."""

import re
import shlex
import socket
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    field_validator,
    model_validator,
)

from schemas.legs import MAX_HOLD_S
from schemas.names import HOST_PATTERN, IMAGE_PATTERN, LABEL_PATTERN, MAX_LABELS
from schemas.terms import Terms

Label = Annotated[str, StringConstraints(pattern=LABEL_PATTERN)]
HostName = Annotated[str, StringConstraints(pattern=HOST_PATTERN)]
InterfaceName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,14}$")]
"""A Linux network interface: 15 characters at most (IFNAMSIZ)."""


def _words(command: object) -> object:
    """A command that is written as one text, as the shell would split it."""
    return tuple(shlex.split(command)) if isinstance(command, str) else command


Command = Annotated[
    tuple[str, ...], BeforeValidator(_words, json_schema_input_type=str | list[str])
]
"""A program and its arguments, as a list or as one text; no shell runs it. Empty: none."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _machine_name() -> str:
    return socket.gethostname()


class HostSection(_Section):
    name: HostName = Field(default_factory=_machine_name, validate_default=True)
    """Unique in the fleet; the agent answers on `host.<name>`."""
    brokers: tuple[str, ...] = Field(default=("127.0.0.1:4730",), min_length=1)
    state_dir: Path = Path("/var/lib/testenv")

    @field_validator("state_dir")
    @classmethod
    def _absolute(cls, path: Path) -> Path:
        if not path.is_absolute():
            raise ValueError("must be an absolute path")
        return path


class TlsSection(_Section):
    """Files in PEM, for TLS to the brokers. Relative paths start at the configuration's folder."""

    cert: Path
    """This host's certificate, `testenv-broker pki issue host NAME`."""
    key: Path
    ca: Path
    """Who signs the brokers' certificates."""


class LeaseSection(_Section):
    """The times of a lease, in seconds; docs/leases.md says what each is for."""

    beat_s: float = Field(default=Terms().beat_s, ge=0.05, le=60)
    ttl_s: float = Field(default=Terms().ttl_s, ge=1, le=3600)
    margin_s: float = Field(default=Terms().margin_s, ge=0.2, le=3600)
    reattach_s: float = Field(default=Terms().reattach_s, ge=0.5, le=3600)
    untaken_s: float = Field(default=Terms().untaken_s, ge=0.5, le=60)

    @model_validator(mode="after")
    def _keeps_its_promise(self) -> Self:
        if self.ttl_s < 4 * self.beat_s:
            raise ValueError(f"ttl_s must be at least 4 beats ({4 * self.beat_s:g})")
        if self.margin_s < self.ttl_s / 10:
            raise ValueError(
                f"margin_s must be at least a tenth of ttl_s ({self.ttl_s / 10:g}): clocks differ"
            )
        most_s = self.ttl_s + self.margin_s
        if self.reattach_s > most_s:
            raise ValueError(f"reattach_s must be at most ttl_s + margin_s ({most_s:g})")
        return self

    @property
    def terms(self) -> Terms:
        """The same, for the code."""
        return Terms(**self.model_dump())


class HypervisorSection(_Section):
    uri: str = "qemu:///system"
    domain_type: Literal["auto", "kvm", "qemu"] = "auto"
    """`auto` runs a tiny guest for a moment to prove that KVM works here, else QEMU's TCG."""


class SwitchSection(_Section):
    ovsdb: str = "unix:/run/openvswitch/db.sock"
    datapath_type: Literal["auto", "system", "netdev"] = "auto"
    """`auto` is `system` where the kernel has openvswitch, else the userspace `netdev`."""


class PublicSection(_Section):
    """The network on which every seed's first NIC is."""

    bridge: InterfaceName = "br-ctlplane"
    interface: InterfaceName | Literal[""] = ""
    """A physical NIC to move onto the bridge; none if empty."""
    address: IPv4Interface = IPv4Interface("203.0.113.1/24")
    """This host's own address on the bridge, with its prefix length."""
    seed_addresses: tuple[IPv4Address, IPv4Address] = (
        IPv4Address("203.0.113.10"),
        IPv4Address("203.0.113.99"),
    )
    """First and last address for seeds, inclusive; environment 1 has the first."""
    provider: Literal["dnsmasq", "static"] = "dnsmasq"
    """Who tells a seed its address: a dnsmasq of ours on the bridge, or somebody else."""

    @field_validator("bridge")
    @classmethod
    def _not_private(cls, name: str) -> str:
        if re.fullmatch(r"brbm\d+", name):
            raise ValueError("must not be named like a private bridge, brbm<N>")
        return name

    @model_validator(mode="after")
    def _addresses_fit(self) -> Self:
        first, last = self.seed_addresses
        network = self.address.network
        if first > last:
            raise ValueError(f"seed_addresses must be [first, last]; {first} is after {last}")
        for address in self.seed_addresses:
            if address not in network:
                raise ValueError(f"seed_addresses: {address} is not in the bridge's {network}")
        if first <= network.network_address or last >= network.broadcast_address:
            raise ValueError(f"seed_addresses must be host addresses inside {network}")
        if first <= self.address.ip <= last:
            raise ValueError(f"seed_addresses must not contain the host's own {self.address.ip}")
        return self


class Resources(_Section):
    """What is left to the host itself when environments are counted."""

    memory_mib: int = Field(default=1024, ge=0)
    cpus: int = Field(default=1, ge=0)
    disk_gib: int = Field(default=5, ge=0)


class Overcommit(_Section):
    """How much of each is promised for each that is there: guests seldom use all that they have."""

    memory: float = Field(default=1.0, ge=0.1, le=20)
    cpus: float = Field(default=1.0, ge=0.1, le=100)
    disk: float = Field(default=1.0, ge=0.1, le=100)


class Machine(_Section):
    """The size of one VM."""

    cpus: int = Field(default=1, ge=1, le=512)
    memory_mib: int = Field(default=256, ge=32)
    disk_gib: int = Field(default=1, ge=1)


class SeedSection(Machine):
    image: Path | None = None
    """Base image (qcow2 or raw) of the seed's disk: a path, or a name in the image store."""
    kernel: Path | None = None
    """Direct kernel boot instead of an image; the disk is then blank."""
    initrd: Path | None = None
    cmdline: str = ""

    @model_validator(mode="after")
    def _one_way_to_boot(self) -> Self:
        if self.image and self.kernel:
            raise ValueError("give image or kernel, not both")
        if not self.image and not self.kernel:
            raise ValueError("the seed needs an image, or a kernel for direct boot")
        if not self.kernel and (self.initrd or self.cmdline):
            raise ValueError("initrd and cmdline need a kernel")
        if self.image and re.fullmatch(IMAGE_PATTERN, str(self.image)):
            return self
        for path in (self.image, self.kernel, self.initrd):
            if path and not path.is_absolute():
                what = "an image's name, or an absolute path" if path == self.image else "absolute"
                raise ValueError(f"{path} must be {what}: qemu opens it, not the agent")
        return self


class NodesSection(Machine):
    count: int = Field(default=2, ge=0, le=100)
    disk_format: Literal["qcow2", "raw"] = "qcow2"
    boot: Literal["network", "disk"] = "network"


def _default_seed() -> SeedSection:
    return SeedSection(image=Path("/var/lib/testenv/images/seed.qcow2"))


class EnvironmentsSection(_Section):
    count: Annotated[int, Field(ge=0, le=999)] | Literal["auto"] = "auto"
    reserve: Resources = Resources()
    overcommit: Overcommit = Overcommit()
    memory_backing: Literal["ordinary", "hugepages"] = "ordinary"
    """Where guests' memory comes from; huge pages are the host's own, of its default size."""
    labels: Annotated[tuple[Label, ...], Field(max_length=MAX_LABELS)] = ()
    seed: SeedSection = Field(default_factory=_default_seed)
    nodes: NodesSection = NodesSection()

    @model_validator(mode="after")
    def _pages_are_not_shared(self) -> Self:
        if self.memory_backing == "hugepages" and self.overcommit.memory != 1:
            raise ValueError(
                "overcommit.memory must be 1 with hugepages: a guest has its pages for itself"
            )
        return self


class HealthSection(_Section):
    """When the host is looked at, and what it must have to offer its environments."""

    check_interval_s: float = Field(default=30, ge=1, le=3600)
    """Between two looks; an environment is offered on no older one."""
    min_free_gib: float = Field(default=1, ge=0)
    """Of the disk that state_dir is on."""


class HooksSection(_Section):
    """An admin's own commands; docs/testenv-host.md says what they are given."""

    before_offer: Command = ()
    """Once an environment is made, before it is offered; if it fails, that is not."""
    after_lease: Command = ()
    """Once the environment of an ended lease is fenced, before it is made anew."""
    timeout_s: float = Field(default=60, gt=0, le=3600)


class QuarantineSection(_Section):
    """From when on an environment is not trusted; hosts/quarantine.py says how it is judged."""

    turnovers: int = Field(default=3, ge=1)
    """Failures to make it, without one good turnover in between."""
    window: int = Field(default=20, ge=1, le=1000)
    """How many of its last leases count."""
    min_leases: int = Field(default=5, ge=1)
    """Fewer say nothing, of it or of its peers."""
    chance: float = Field(default=0.001, ge=0, le=0.5)
    """How probable so many failures may be in an environment that is as good as its peers."""

    @model_validator(mode="after")
    def _can_be_reached(self) -> Self:
        if self.min_leases > self.window:
            raise ValueError(f"min_leases must be at most window ({self.window})")
        return self


class ConsoleSection(_Section):
    """What domains said on their serial ports."""

    keep: int = Field(default=5, ge=0, le=1000)
    """Of how many leases of each environment, besides the running one."""


class HoldSection(_Section):
    """How many environments may be kept for people, and how long."""

    max_held: int = Field(default=1, ge=0, le=999)
    """At a time, of this host."""
    max_s: float = Field(default=24 * 3600, gt=0, le=MAX_HOLD_S)
    """From when one is held. Who wishes for more gets this."""


class HostConfig(_Section):
    """Everything that an admin says about one test-environment host."""

    host: HostSection = Field(default_factory=HostSection)
    tls: TlsSection | None = None
    """None: brokers are spoken to in plain text."""
    lease: LeaseSection = LeaseSection()
    hypervisor: HypervisorSection = HypervisorSection()
    switch: SwitchSection = SwitchSection()
    public: PublicSection = PublicSection()
    environments: EnvironmentsSection = Field(default_factory=EnvironmentsSection)
    console: ConsoleSection = ConsoleSection()
    health: HealthSection = HealthSection()
    hooks: HooksSection = HooksSection()
    quarantine: QuarantineSection = QuarantineSection()
    hold: HoldSection = HoldSection()
