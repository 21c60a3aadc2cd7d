"""The data file: what a job reads at `$TE_DATAFILE`.

The keys at the top are toci's (2014), scalars as strings; old readers depend on them. All that is
new stands under `testenv`. `nodes` is in the instackenv form that tripleo-common's
`validate_nodes` reads; power management joins it with the gateway.
"""

from datetime import datetime
from ipaddress import IPv4Address
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION = 1


class _Document(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, populate_by_name=True)


class Port(_Document):
    address: str
    """MAC address."""


class InstackNode(_Document):
    """One node in the instackenv form; numbers as strings, as instackenv has them."""

    name: str
    arch: str
    cpu: str
    memory: str
    """MiB."""
    disk: str
    """GiB."""
    ports: tuple[Port, ...]


class NicData(_Document):
    mac: str
    ip: IPv4Address | None = None
    """None where the seed's own DHCP decides."""
    network: Literal["public", "private"]
    bridge: str
    port: str
    """The tap device on the host's `bridge`."""


class MachineData(_Document):
    name: str
    """libvirt's domain name."""
    uuid: str
    role: Literal["seed", "node"]
    cpus: int
    memory_mib: int
    disk_gib: int
    nics: tuple[NicData, ...]


class NetworkData(_Document):
    bridge: str
    cidr: str | None = None
    """None for a private network, whose addresses are the holder's own business."""


class LeaseTerms(_Document):
    """The times that both sides keep to, in seconds (schemas/terms.py, docs/leases.md)."""

    beat_s: float
    ttl_s: float
    margin_s: float
    reattach_s: float
    untaken_s: float


class LeaseData(_Document):
    id: str
    environment: str
    generation: int
    granted: datetime
    timeout_s: float
    secret: str | None = None
    """Proves to the host that its holder speaks; None in what a version 1 agent wrote."""
    terms: LeaseTerms | None = None
    """There if the host speaks version 2: it expects acks and beats."""


class Extension(_Document):
    """Everything new since toci: the value of the key `testenv`."""

    schema_version: int = Field(default=SCHEMA_VERSION, alias="schema")
    lease: LeaseData
    host: str | None = None
    networks: dict[str, NetworkData] = {}
    seed: MachineData | None = None
    nodes: tuple[MachineData, ...] = ()


class DataFile(_Document):
    """The whole document, as an agent writes it for an environment that it has made itself."""

    arch: str = "x86_64"
    host_ip: str = Field(alias="host-ip")
    seed_ip: str = Field(alias="seed-ip")
    seed_route_dev: str = Field(alias="seed-route-dev")
    """The host's bridge behind which the seed is."""
    ssh_user: str = Field(default="root", alias="ssh-user")
    ssh_key: str = Field(default="", alias="ssh-key")
    """Always empty: no job gets a key to the host (toci gave every job the same root key)."""
    env_num: str = Field(alias="env-num")
    remote_operations: str = Field(default="1", alias="remote-operations")
    remote_host: str = Field(alias="remote-host")
    power_manager: str = ""
    nodes: tuple[InstackNode, ...]
    testenv: Extension
