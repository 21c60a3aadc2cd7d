"""Small plans for the contract suite."""

from pathlib import Path
from typing import Literal
from uuid import UUID, uuid5

from schemas.plan import Disk, Domain, KernelBoot, Network, Nic, Role
from tests.contract.rigs import Rig

_NAMESPACE = UUID("6f0e6d6e-3d6c-4c0b-8f53-7f4f4b1c5c11")


def planned_domain(
    rig: Rig,
    name: str = "seed_1",
    *,
    ports: tuple[str, ...] = (),
    memory_mib: int = 64,
    boot: Literal["network", "disk"] | KernelBoot = "disk",
    base: Path | None = None,
) -> Domain:
    """A domain whose UUID and MACs come from its name, as in a real plan."""
    uuid = uuid5(_NAMESPACE, name)
    tail = ":".join(f"{byte:02x}" for byte in uuid.bytes[:4])
    return Domain(
        name=name,
        uuid=uuid,
        role=Role.SEED,
        cpus=1,
        memory_mib=memory_mib,
        disk=Disk(path=rig.directory / f"{name}.qcow2", size_gib=1, format="qcow2", base=base),
        nics=tuple(
            Nic(mac=f"52:{tail}:{index:02x}", network=Network.PRIVATE, bridge="brbm1", port=port)
            for index, port in enumerate(ports)
        ),
        boot=boot,
        console=rig.directory / "console" / f"{name}.log",
    )


def build(rig: Rig, domain: Domain) -> None:
    """All that `domain` needs to be powered on."""
    for nic in domain.nics:
        rig.drivers.network.ensure_tap(nic.port)
    rig.drivers.disks.make_fresh(domain.disk)
    rig.drivers.hypervisor.ensure_domain(domain)
