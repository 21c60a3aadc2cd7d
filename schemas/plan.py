"""The plan: every name, MAC, address, bridge and disk that a configuration stands for."""

from enum import StrEnum
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path
from typing import Annotated, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

Mac = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{2}(:[0-9a-f]{2}){5}$")]


class _Plan(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Role(StrEnum):
    SEED = "seed"
    NODE = "node"


class Network(StrEnum):
    PUBLIC = "public"
    """Shared by all seeds of a host, and reachable by CI jobs."""
    PRIVATE = "private"
    """One environment's own: its seed and its nodes."""


class Facts(_Plan):
    """What a host has to give, before any reserve."""

    memory_mib: int
    cpus: int
    disk_gib: int
    hugepages: int = 0
    """In all, of the default size."""
    hugepage_kib: int = Field(default=2048, gt=0)


class Bound(_Plan):
    """How many environments one resource allows: `(total - reserve) * overcommit // each`."""

    resource: str
    unit: str
    total: int
    reserve: int
    overcommit: float = 1.0
    each: int
    allows: int


class Count(_Plan):
    """How many environments there are, and why."""

    value: int
    wanted: int | Literal["auto"]
    bounds: tuple[Bound, ...]
    limited_by: str
    """The resource that allows least."""


class Nic(_Plan):
    """One network card, its wire and its address."""

    mac: Mac
    network: Network
    bridge: str
    port: str
    """The persistent tap device on `bridge`; its VLAN tag survives power cycles."""
    address: IPv4Address | None = None
    """Reserved for this MAC; None where the network's own DHCP decides (the seed's)."""


class Disk(_Plan):
    """A domain's only disk: an overlay on `base`, or blank."""

    path: Path
    size_gib: int
    format: Literal["qcow2", "raw"]
    base: Path | None = None


class KernelBoot(_Plan):
    kernel: Path
    initrd: Path | None = None
    cmdline: str = ""


class Domain(_Plan):
    """One VM. `uuid` is derived like the MACs, so that it is the same after a rebuild."""

    name: str
    uuid: UUID
    role: Role
    cpus: int
    memory_mib: int
    hugepages: bool = False
    """Whether its memory comes from the host's huge pages."""
    disk: Disk
    nics: tuple[Nic, ...]
    boot: Literal["network", "disk"] | KernelBoot
    console: Path
    """Where the serial console is logged."""


class Environment(_Plan):
    """One seed and its nodes on a private bridge: what a lease is for."""

    id: str
    number: int
    bridge: str
    seed: Domain
    nodes: tuple[Domain, ...]
    labels: tuple[str, ...] = ()

    @property
    def domains(self) -> tuple[Domain, ...]:
        return (self.seed, *self.nodes)


class PublicNetwork(_Plan):
    """The bridge that all seeds share, and the host's own place on it."""

    bridge: str
    interface: str
    address: IPv4Interface
    provider: Literal["dnsmasq", "static"]


class HostPlan(_Plan):
    """All that a host carries."""

    host: str
    public: PublicNetwork
    count: Count
    environments: tuple[Environment, ...]

    @property
    def domains(self) -> tuple[Domain, ...]:
        return tuple(domain for env in self.environments for domain in env.domains)

    def environment(self, env_id: str) -> Environment | None:
        """The one with that id; None if none is planned."""
        return next((env for env in self.environments if env.id == env_id), None)

    def without(self, env_id: str) -> "HostPlan":
        """The same, but for that one."""
        left = tuple(env for env in self.environments if env.id != env_id)
        return self.model_copy(update={"environments": left})

    def with_environment(self, env: Environment) -> "HostPlan":
        """The same with `env`, in the place of one with its id."""
        left = self.without(env.id).environments
        both = tuple(sorted((*left, env), key=lambda each: each.number))
        return self.model_copy(update={"environments": both})
