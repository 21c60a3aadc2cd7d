"""What an environment has that its plan has not, and the other way round. Pure: touches nothing."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from hosts.drivers.base import (
    BOOT_ORDERS,
    BridgeInfo,
    DiskInfo,
    DomainDetails,
    PortInfo,
    Reservation,
)
from schemas.names import IMAGE_LINK
from schemas.plan import Disk, Domain, Environment, HostPlan, KernelBoot

_GIB = 1 << 30


@dataclass(frozen=True)
class Difference:
    """`subject` (a domain, port, bridge or file) is not as planned; `what` says in what."""

    subject: str
    what: str

    def __str__(self) -> str:
        return f"{self.subject}: {self.what}"


Differences = tuple[Difference, ...]


@dataclass(frozen=True)
class Wiring:
    """The bridges that are marked as this host's, and its taps."""

    bridges: tuple[BridgeInfo, ...]
    taps: frozenset[str]


@dataclass(frozen=True)
class Observed:
    """What there is of one environment; what does not exist is left out."""

    domains: Mapping[str, DomainDetails]
    wiring: Wiring
    disks: Mapping[Path, DiskInfo]
    reservations: tuple[Reservation, ...]


def differences(plan: HostPlan, env: Environment, observed: Observed) -> Differences:
    """All that keeps `env` from being offered, but for what is powered on; none if it is fine."""
    return (
        *definition_differences(env, observed.domains),
        *wiring_differences(plan, env, observed.wiring),
        *_disk_differences(env, observed.disks),
        *_reservation_differences(plan, env, observed.reservations),
    )


def definition_differences(env: Environment, domains: Mapping[str, DomainDetails]) -> Differences:
    """What is not defined as planned."""
    return tuple(
        Difference(domain.name, what)
        for domain in env.domains
        for what in _defined_otherwise(domain, domains.get(domain.name))
    )


def wiring_differences(
    plan: HostPlan, env: Environment, wiring: Wiring, *, unplugged: bool = True
) -> Differences:
    """What is not plugged in as planned, or is where nothing was planned. `unplugged`: whether to
    tell of what is plugged in nowhere."""
    bridges = {bridge.name: bridge for bridge in wiring.bridges}
    return (
        *(
            Difference(name, "is missing, or is not marked as ours")
            for name in (plan.public.bridge, env.bridge)
            if name not in bridges
        ),
        *_port_differences(env, wiring, unplugged),
        *(
            Difference(bridge, f"stray port {port}")
            for bridge, port in stray_ports(plan, env, wiring.bridges)
        ),
    )


def power_differences(env: Environment, domains: Mapping[str, DomainDetails]) -> Differences:
    """An environment is offered with its seed running, and its nodes off."""
    wanted = {domain.name: domain is env.seed for domain in env.domains}
    return tuple(
        Difference(name, "is off, planned running" if wanted[name] else "is running, planned off")
        for name, domain in domains.items()
        if name in wanted and domain.running != wanted[name]
    )


def stray_ports(
    plan: HostPlan, env: Environment, bridges: tuple[BridgeInfo, ...]
) -> Iterator[tuple[str, str]]:
    """(bridge, port) of what nobody planned: on the private bridge any, on the public one only
    what is marked as ours, for an admin may have plugged in something of theirs there."""
    planned = {nic.port for domain in plan.domains for nic in domain.nics}
    planned.add(plan.public.interface)
    for bridge in bridges:
        for port in bridge.ports.values():
            private = bridge.name == env.bridge
            public = bridge.name == plan.public.bridge and port.ours
            if port.name not in planned and (private or public):
                yield bridge.name, port.name


def _defined_otherwise(domain: Domain, found: DomainDetails | None) -> Iterator[str]:
    if found is None:
        yield "is missing"
        return
    facts = tuple(_facts_otherwise(domain, found))
    yield from facts
    if found.altered and not facts:
        yield "its definition was changed"
    for leftover in found.leftovers:
        yield f"{leftover} left"


def _facts_otherwise(domain: Domain, found: DomainDetails) -> Iterator[str]:
    if found.memory_mib != domain.memory_mib:
        yield f"memory is {found.memory_mib} MiB, planned {domain.memory_mib} MiB"
    if found.cpus != domain.cpus:
        yield f"CPUs are {found.cpus}, planned {domain.cpus}"
    nics = _words(f"{nic.mac} on {nic.port or 'no tap'}" for nic in found.nics)
    planned_nics = _words(f"{nic.mac} on {nic.port}" for nic in domain.nics)
    if nics != planned_nics:
        yield f"network cards are {nics}, planned {planned_nics}"
    drives = _words(f"{drive.path or 'empty'} ({drive.format})" for drive in found.drives)
    planned_drives = _words((f"{domain.disk.path} ({domain.disk.format})",))
    if drives != planned_drives:
        yield f"disks are {drives}, planned {planned_drives}"
    planned_boot = BOOT_ORDERS.get(domain.boot) if isinstance(domain.boot, str) else domain.boot
    if found.boot != planned_boot:
        yield f"boots from {_boot_words(found.boot)}, planned {_boot_words(planned_boot)}"


def _port_differences(env: Environment, wiring: Wiring, unplugged: bool) -> Iterator[Difference]:
    homes: dict[str, tuple[str, PortInfo]] = {
        port.name: (bridge.name, port)
        for bridge in wiring.bridges
        for port in bridge.ports.values()
    }
    for nic in (nic for domain in env.domains for nic in domain.nics):
        if nic.port not in wiring.taps:
            yield Difference(nic.port, "there is no such tap, or it is not marked as ours")
        if nic.port not in homes:
            if unplugged:
                yield Difference(nic.port, f"is on no bridge of ours, planned on {nic.bridge}")
            continue
        bridge, port = homes[nic.port]
        if bridge != nic.bridge:
            yield Difference(nic.port, f"is on {bridge}, planned on {nic.bridge}")
        if port.tag is not None:
            yield Difference(nic.port, f"tag {port.tag}, planned none")
        if port.trunks:
            yield Difference(nic.port, f"trunks {_words(map(str, port.trunks))}, planned none")
        if port.error:
            yield Difference(nic.port, f"Open vSwitch says: {port.error}")


def _disk_differences(env: Environment, disks: Mapping[Path, DiskInfo]) -> Differences:
    return tuple(
        Difference(str(domain.disk.path), what)
        for domain in env.domains
        for what in _made_otherwise(domain.disk, disks.get(domain.disk.path))
    )


def _made_otherwise(disk: Disk, found: DiskInfo | None) -> Iterator[str]:
    if found is None:
        yield "is missing"
        return
    if found.format != disk.format:
        yield f"is {found.format}, planned {disk.format}"
    # A disk on a base image is at least as large as that.
    planned = disk.size_gib * _GIB
    if found.size < planned or (disk.base is None and found.size != planned):
        yield f"has {found.size} bytes, planned {planned}"
    base = disk.base if disk.format == "qcow2" else None
    if not _is_made_on(found.backing, base):
        yield f"is backed by {found.backing or 'nothing'}, planned {base or 'nothing'}"


def _is_made_on(found: Path | None, planned: Path | None) -> bool:
    """A named image may be another copy by now: that takes effect at the next turnover."""
    if found and planned and planned.name == IMAGE_LINK:
        return found.parent == planned.parent
    return found == planned


def _reservation_differences(
    plan: HostPlan, env: Environment, served: tuple[Reservation, ...]
) -> Differences:
    return tuple(
        Difference(env.seed.name, f"{each.address} is not reserved for {each.mac}")
        for each in reservations_of(env.seed)
        if each not in served
    ) + tuple(
        Difference(plan.public.bridge, f"stray reservation of {each.address} for {each.mac}")
        for each in served
        if each not in reservations(plan)
    )


def reservations(plan: HostPlan) -> tuple[Reservation, ...]:
    """Each seed's public address, for its MAC alone."""
    return tuple(each for env in plan.environments for each in reservations_of(env.seed))


def reservations_of(seed: Domain) -> tuple[Reservation, ...]:
    """What the address server must know of one seed."""
    return tuple(
        Reservation(mac=nic.mac, address=nic.address, name=seed.name.replace("_", "-"))
        for nic in seed.nics
        if nic.address is not None
    )


def _boot_words(boot: tuple[str, ...] | KernelBoot | None) -> str:
    if isinstance(boot, KernelBoot):
        return " ".join(str(part) for part in (boot.kernel, boot.initrd, boot.cmdline) if part)
    return _words(boot or ())


def _words(words: Iterable[str]) -> str:
    return ", ".join(words) or "none"
