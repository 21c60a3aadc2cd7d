"""From a configuration to names, MACs, addresses and disks. Pure: touches nothing."""

import hashlib
from collections import Counter
from ipaddress import IPv4Address
from pathlib import Path
from typing import Literal
from uuid import UUID, uuid5

from schemas.config import HostConfig, Machine
from schemas.errors import ConfigError
from schemas.names import (
    IMAGE_LINK,
    environment_id,
    node_domain,
    node_port,
    private_bridge,
    seed_domain,
    seed_port,
)
from schemas.plan import (
    Bound,
    Count,
    Disk,
    Domain,
    Environment,
    Facts,
    HostPlan,
    KernelBoot,
    Mac,
    Network,
    Nic,
    PublicNetwork,
    Role,
)

_UUIDS = UUID("6a0f4f0e-6f5b-5f0e-9d5c-7e57e57e57e5")
"""Our own namespace for version 5 UUIDs (RFC 9562, section 5.5)."""


def plan_host(config: HostConfig, facts: Facts, source: str | Path = "configuration") -> HostPlan:
    """Everything that `config` stands for on a machine with `facts`.

    The same configuration gives the same plan on every run. Raises ConfigError, naming `source`,
    if there are more environments than seed addresses, if two MACs collide, or if a VM's memory
    is no whole number of huge pages.
    """
    _refuse_parts_of_pages(config, facts, source)
    count = _count(config, facts)
    addresses = next(bound for bound in count.bounds if bound.resource == "addresses")
    if count.value > addresses.allows:
        raise ConfigError(
            source,
            f"{count.value} environments, but seed_addresses has only {addresses.allows} addresses",
            key="environments.count",
            remedy="widen public.seed_addresses or lower the count",
        )
    plan = HostPlan(
        host=config.host.name,
        public=PublicNetwork(
            bridge=config.public.bridge,
            interface=config.public.interface,
            address=config.public.address,
            provider=config.public.provider,
        ),
        count=count,
        environments=tuple(
            plan_environment(config, number) for number in range(1, count.value + 1)
        ),
    )
    _refuse_collisions(plan, source)
    return plan


def derive_mac(host: str, number: int, domain: str, nic: int) -> Mac:
    """A MAC that is unicast, locally administered (IEEE 802, section 8.2), and always the same.

    40 bits of a hash follow a fixed first octet: among 10,000 NICs of a fleet two collide with a
    chance of 1 in 20,000. The first octet is not 0xfe, which libvirt reserves for its taps.
    """
    digest = hashlib.sha256(f"{host}\0{number}\0{domain}\0{nic}".encode()).digest()
    return ":".join(f"{octet:02x}" for octet in (0x52, *digest[:5]))


def _count(config: HostConfig, facts: Facts) -> Count:
    wanted = config.environments.count
    reserve, more = config.environments.reserve, config.environments.overcommit
    seed, nodes = config.environments.seed, config.environments.nodes
    first, last = config.public.seed_addresses

    def bound(
        resource: str, unit: str, total: int, kept: int, each: int, overcommit: float = 1.0
    ) -> Bound:
        return Bound(
            resource=resource,
            unit=unit,
            total=total,
            reserve=kept,
            overcommit=overcommit,
            each=each,
            # Rounded first: 3 * 1.1 is 3.3000000000000003, and 10 * 1.1 should be 11.
            allows=int(round(max(0, total - kept) * overcommit, 6)) // each,
        )

    memory_mib = seed.memory_mib + nodes.count * nodes.memory_mib
    if config.environments.memory_backing == "hugepages":
        memory = bound(
            "hugepages", "pages", facts.hugepages, 0, memory_mib * 1024 // facts.hugepage_kib
        )
    else:
        memory = bound(
            "memory", "MiB", facts.memory_mib, reserve.memory_mib, memory_mib, more.memory
        )
    cpus = seed.cpus + nodes.count * nodes.cpus
    disk = seed.disk_gib + nodes.count * nodes.disk_gib
    bounds = (
        memory,
        bound("cpus", "", facts.cpus, reserve.cpus, cpus, more.cpus),
        bound("disk", "GiB", facts.disk_gib, reserve.disk_gib, disk, more.disk),
        bound("addresses", "", int(last) - int(first) + 1, 0, 1),
    )
    least = min(bounds, key=lambda one: one.allows)
    return Count(
        value=least.allows if wanted == "auto" else wanted,
        wanted=wanted,
        bounds=bounds,
        limited_by=least.resource,
    )


def plan_environment(config: HostConfig, number: int) -> Environment:
    """Environment `number`, whatever the count is."""
    nodes = config.environments.nodes
    return Environment(
        id=environment_id(config.host.name, number),
        number=number,
        bridge=private_bridge(number),
        seed=_seed(config, number),
        nodes=tuple(_node(config, number, index) for index in range(nodes.count)),
        labels=tuple(sorted(set(config.environments.labels))),
    )


def _seed(config: HostConfig, number: int) -> Domain:
    section = config.environments.seed
    name = seed_domain(number)
    boot: Literal["disk"] | KernelBoot = "disk"
    if section.kernel:
        boot = KernelBoot(kernel=section.kernel, initrd=section.initrd, cmdline=section.cmdline)
    nics = (
        Nic(
            mac=derive_mac(config.host.name, number, name, 0),
            network=Network.PUBLIC,
            bridge=config.public.bridge,
            port=seed_port(number, 0),
            address=seed_address(config, number),
        ),
        Nic(
            mac=derive_mac(config.host.name, number, name, 1),
            network=Network.PRIVATE,
            bridge=private_bridge(number),
            port=seed_port(number, 1),
        ),
    )
    disk = _disk(config, name, section, "qcow2", base=_base_image(config))
    return _domain(config, name, Role.SEED, section, disk, nics, boot)


def _node(config: HostConfig, number: int, index: int) -> Domain:
    section = config.environments.nodes
    name = node_domain(number, index)
    nic = Nic(
        mac=derive_mac(config.host.name, number, name, 0),
        network=Network.PRIVATE,
        bridge=private_bridge(number),
        port=node_port(number, index, 0),
    )
    disk = _disk(config, name, section, section.disk_format)
    return _domain(config, name, Role.NODE, section, disk, (nic,), section.boot)


def _domain(
    config: HostConfig,
    name: str,
    role: Role,
    size: Machine,
    disk: Disk,
    nics: tuple[Nic, ...],
    boot: Literal["network", "disk"] | KernelBoot,
) -> Domain:
    return Domain(
        name=name,
        uuid=uuid5(_UUIDS, f"{config.host.name}/{name}"),
        role=role,
        cpus=size.cpus,
        memory_mib=size.memory_mib,
        hugepages=config.environments.memory_backing == "hugepages",
        disk=disk,
        nics=nics,
        boot=boot,
        console=config.host.state_dir / "console" / f"{name}.log",
    )


def _disk(
    config: HostConfig,
    name: str,
    size: Machine,
    image_format: Literal["qcow2", "raw"],
    base: Path | None = None,
) -> Disk:
    return Disk(
        path=config.host.state_dir / "disks" / f"{name}.{image_format}",
        size_gib=size.disk_gib,
        format=image_format,
        base=base,
    )


def _base_image(config: HostConfig) -> Path | None:
    """A named image stands for whichever copy is current when a disk is made."""
    image = config.environments.seed.image
    if image is None or image.is_absolute():
        return image
    return images_directory(config.host.state_dir) / image / IMAGE_LINK


def images_directory(state_dir: Path) -> Path:
    """Where a host's named images are: see hosts/images.py."""
    return state_dir / "images"


def seed_address(config: HostConfig, number: int) -> IPv4Address:
    """The public address of environment `number`'s seed; environment 1 has the first one."""
    return config.public.seed_addresses[0] + (number - 1)


def _refuse_parts_of_pages(config: HostConfig, facts: Facts, source: str | Path) -> None:
    if config.environments.memory_backing != "hugepages":
        return
    for key, size in (("seed", config.environments.seed), ("nodes", config.environments.nodes)):
        if size.memory_mib * 1024 % facts.hugepage_kib:
            raise ConfigError(
                source,
                f"{size.memory_mib} MiB is no whole number of huge pages of"
                f" {facts.hugepage_kib} KiB",
                key=f"environments.{key}.memory_mib",
                remedy="round it up, or use another default_hugepagesz",
            )


def _refuse_collisions(plan: HostPlan, source: str | Path) -> None:
    owners = {nic.mac: domain.name for domain in plan.domains for nic in domain.nics}
    counted = Counter(nic.mac for domain in plan.domains for nic in domain.nics)
    for mac, times in counted.items():
        if times > 1:
            raise ConfigError(
                source,
                f"two NICs would have the MAC {mac} (one of them in {owners[mac]})",
                key="host.name",
                remedy="give the host another name",
            )
