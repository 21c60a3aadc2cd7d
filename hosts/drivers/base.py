"""What the agent needs of a host, as small Protocols; each has a real driver and a fake.

Every verb is idempotent and synchronous, and bounded in time. Drivers mark all that they create
with the owning host's name, and never change or remove what is not marked as that host's: they
raise ForeignObject instead. tests/contract/ holds the one suite that real drivers and fakes pass.
"""

from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path
from typing import Protocol
from uuid import UUID

from schemas.plan import Disk, Domain, KernelBoot


@dataclass(frozen=True)
class DomainInfo:
    """A domain of ours as the hypervisor lists it."""

    name: str
    uuid: UUID
    running: bool


@dataclass(frozen=True)
class NicInfo:
    """A network card of a domain; `port` is its tap, "" where it is something else."""

    mac: str
    port: str


@dataclass(frozen=True)
class DriveInfo:
    """A disk, CD or floppy of a domain; without `path` it is empty, or no file."""

    path: Path | None
    format: str


BOOT_ORDERS = {"network": ("network", "hd"), "disk": ("hd",)}
"""What a domain tries, in this order. A network-booted one falls back to its disk, as a machine
fresh from the rack does."""


@dataclass(frozen=True)
class DomainDetails:
    """What a domain of ours is defined as: what counts from its next start.

    `boot` are the devices that it tries in turn, unless a kernel is booted directly. `leftovers`
    are things kept beside the definition that change what a start does or that a definition does
    not take away: "managed save", "snapshots", "NVRAM", "autostart". `altered`: anybody but us has
    changed the definition since we gave it, in whatever way.
    """

    running: bool
    memory_mib: int
    cpus: int
    nics: tuple[NicInfo, ...]
    drives: tuple[DriveInfo, ...]
    boot: tuple[str, ...] | KernelBoot
    leftovers: tuple[str, ...] = ()
    altered: bool = False


@dataclass(frozen=True)
class PortInfo:
    """A port of a bridge of ours. `tag` is its access VLAN, None if it has none."""

    name: str
    tag: int | None = None
    trunks: tuple[int, ...] = ()
    error: str = ""
    """What Open vSwitch says is wrong with the interface (`Interface.error`)."""
    ours: bool = False
    """It carries our mark, so that nobody else has made it."""


@dataclass(frozen=True)
class BridgeInfo:
    """A bridge of ours; `ports` leaves out the bridge's own internal port."""

    name: str
    ports: dict[str, PortInfo] = field(default_factory=dict)


@dataclass(frozen=True)
class Reservation:
    """`address` is for `mac` alone; `name` is what the address server calls it."""

    mac: str
    address: IPv4Address
    name: str


@dataclass(frozen=True)
class DiskInfo:
    """A disk's file as it is; `size` in bytes, as its guest sees it."""

    format: str
    size: int
    backing: Path | None = None
    backing_format: str = ""


@dataclass(frozen=True)
class HugePages:
    """Huge pages of the machine's default size; `size_kib` is 0 where it has none."""

    size_kib: int
    total: int
    free: int
    """Of them, what is promised to nobody."""


class Hypervisor(Protocol):
    """Domains. Raises DomainError, or ForeignObject for a domain that is not ours."""

    def ensure_domain(self, domain: Domain) -> None:
        """Define `domain` as planned; a running one gets it at its next start."""

    def start_domain(self, name: str) -> None:
        """Power on; nothing if it runs."""

    def power_off_domain(self, name: str) -> None:
        """Power off at once, as pulling the plug; nothing if it is off or not there."""

    def remove_domain(self, name: str) -> None:
        """Power off and undefine, with all that libvirt keeps for it; nothing if not there."""

    def domains(self) -> tuple[DomainInfo, ...]:
        """All that are marked as this host's."""

    def inspect_domain(self, name: str) -> DomainDetails | None:
        """What `name` is defined as; None if there is no such domain."""

    def close(self) -> None:
        """Let go of the connection; the domains stay as they are."""


class Switch(Protocol):
    """Bridges and ports. Raises BridgeError, or ForeignObject for a bridge that is not ours."""

    def ensure_bridge(self, name: str) -> None: ...

    def ensure_port(self, bridge: str, port: str) -> None:
        """The device `port` is on `bridge` and up, with neither tag nor trunks, and works."""

    def remove_ports(self, bridge: str, ports: AbstractSet[str]) -> None:
        """None of `ports` is on `bridge`, all at once; their devices stay."""

    def remove_bridge(self, name: str) -> None:
        """There is no bridge `name`, and nothing that somebody has set up on it."""

    def bridges(self) -> tuple[BridgeInfo, ...]:
        """All that are marked as this host's."""

    def close(self) -> None: ...


class HostNetwork(Protocol):
    """Taps, and the host's own addresses. Raises NetworkError or ForeignObject."""

    def ensure_tap(self, name: str) -> None:
        """A persistent tap device that qemu's user may open, up."""

    def remove_tap(self, name: str) -> None: ...

    def taps(self) -> tuple[str, ...]:
        """Names of all that are marked as this host's."""

    def ensure_address(self, interface: str, address: IPv4Interface) -> None:
        """`interface` is up and has `address`; another that has it loses it, and its routes."""

    def addresses(self, interface: str) -> tuple[IPv4Interface, ...]:
        """All that `interface`, which is there, has."""

    def ensure_up(self, interface: str) -> None: ...


class AddressServer(Protocol):
    """Tells each seed its address on the public bridge. Raises AddressServerError."""

    def ensure_reservations(self, reservations: Iterable[Reservation]) -> None:
        """Exactly these are served, from when this returns; anyone else gets no answer."""

    def reservations(self) -> tuple[Reservation, ...]: ...

    def answers(self) -> bool:
        """Whether who has a reservation gets an answer, as far as that is our own server's matter;
        True if nobody has one."""

    def remove(self) -> None:
        """Stop serving and leave nothing behind."""


class HostMemory(Protocol):
    """The machine's memory. Raises MemoryDriverError."""

    def hugepages(self) -> HugePages: ...


class Disks(Protocol):
    """Disks of domains. Raises DiskError."""

    def check_image(self, image: Path) -> None:
        """`image` exists, is qcow2 or raw, and qemu's user can read it."""

    def check_readable(self, path: Path) -> None:
        """`path` (a kernel, an initrd) exists and qemu's user can read it."""

    def make_fresh(self, disk: Disk) -> None:
        """`disk` is as new: a fresh overlay on its base, or blank. What it held is gone."""

    def inspect(self, path: Path) -> DiskInfo | None:
        """The disk at `path`, which may be in use; None if there is none."""

    def remove(self, path: Path) -> None: ...


@dataclass(frozen=True)
class Drivers:
    """All that one host's agent acts through."""

    hypervisor: Hypervisor
    switch: Switch
    network: HostNetwork
    addresses: AddressServer
    disks: Disks
    memory: HostMemory

    def close(self) -> None:
        self.hypervisor.close()
        self.switch.close()
