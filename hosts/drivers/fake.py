"""Drivers that only remember: for tests of everything above the drivers, at any scale.

All five act on one FakeMachine, which plays the host's kernel, libvirt and Open vSwitch: what is
on it outlives the drivers, as the real things outlive the agent.
"""

import threading
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from ipaddress import IPv4Interface
from pathlib import Path

from hosts.drivers.base import (
    BOOT_ORDERS,
    BridgeInfo,
    DiskInfo,
    DomainDetails,
    DomainInfo,
    DriveInfo,
    Drivers,
    HugePages,
    NicInfo,
    PortInfo,
    Reservation,
)
from schemas.errors import (
    BridgeError,
    DiskError,
    DomainError,
    ForeignObject,
    NetworkError,
    TestenvError,
)
from schemas.plan import Disk, Domain, KernelBoot

_GIB = 1 << 30
_PAGE_KIB = 2048


@dataclass
class FakeDomain:
    """`plan` is what it is defined as now, `given` what we last defined it as."""

    owner: str
    plan: Domain
    running: bool = False
    given: Domain | None = None
    drives: tuple[DriveInfo, ...] = ()
    """Besides the planned one."""
    leftovers: tuple[str, ...] = ()

    def details(self) -> DomainDetails:
        """As a driver reads it."""
        plan = self.plan
        own = DriveInfo(plan.disk.path, plan.disk.format)
        return DomainDetails(
            running=self.running,
            memory_mib=plan.memory_mib,
            cpus=plan.cpus,
            nics=tuple(NicInfo(nic.mac, nic.port) for nic in plan.nics),
            drives=(own, *self.drives),
            boot=plan.boot if isinstance(plan.boot, KernelBoot) else BOOT_ORDERS[plan.boot],
            leftovers=self.leftovers,
            altered=plan != self.given or bool(self.drives),
        )


@dataclass
class FakeBridge:
    owner: str
    ports: dict[str, PortInfo] = field(default_factory=dict)


class AgentDied(Exception):
    """What every call raises once a test has the agent killed."""


@dataclass
class FakeMachine:
    """A host's state, free to be looked at and meddled with. An owner of "" marks nothing."""

    domains: dict[str, FakeDomain] = field(default_factory=dict)
    bridges: dict[str, FakeBridge] = field(default_factory=dict)
    devices: dict[str, str] = field(default_factory=dict)
    """Network devices and their owners; taps are the owned ones."""
    addresses: dict[IPv4Interface, str] = field(default_factory=dict)
    """Each address of the host, and the device that has it."""
    disks: dict[Path, Disk] = field(default_factory=dict)
    used: set[Path] = field(default_factory=set)
    """Disks that a guest has run on since they were made fresh."""
    images: set[Path] = field(default_factory=set)
    """Base images, kernels and the like that can be used."""
    reservations: tuple[Reservation, ...] = ()
    hugepages: int = 0
    """Of 2 MiB, in all."""
    is_deaf: bool = False
    """The address server should answer, and does not."""
    calls: int = field(default=0, compare=False)
    """Of drivers' verbs, so far."""
    _dead_at: int | None = field(default=None, compare=False)
    _counting: threading.Lock = field(default_factory=threading.Lock, compare=False)
    _failures: dict[tuple[str, str], TestenvError] = field(default_factory=dict)

    def fail_on(self, verb: str, name: str, error: TestenvError) -> None:
        """Let `verb` (a driver's method) raise `error` for `name` from now on.

        For ports the name is the port's, for disks the path; "" is for verbs without a name.
        """
        self._failures[verb, name] = error

    def heal(self, verb: str, name: str) -> None:
        self._failures.pop((verb, name), None)

    def kill_agent(self, after: int) -> None:
        """Let `after` more calls be made, and no other."""
        self._dead_at = self.calls + after

    def start_agent(self) -> None:
        """Calls are made again."""
        self._dead_at = None

    def power_cut(self) -> None:
        """A reboot: domains are off, taps, addresses and dnsmasq gone; the rest is on disk."""
        for domain in self.domains.values():
            domain.running = False
        self.devices = {name: owner for name, owner in self.devices.items() if not owner}
        self.addresses.clear()
        self.reservations = ()
        self.is_deaf = True

    def attempt(self, verb: str, name: str = "") -> None:
        """What every fake verb does first."""
        with self._counting:
            if self._dead_at is not None and self.calls >= self._dead_at:
                raise AgentDied(f"before {verb} {name}")
            self.calls += 1
        if error := self._failures.get((verb, name)):
            raise error


def fake_drivers(machine: FakeMachine, host: str) -> Drivers:
    """Drivers of `host` on `machine`; another set on the same machine is an agent restarted."""
    return Drivers(
        hypervisor=FakeHypervisor(machine, host),
        switch=FakeSwitch(machine, host),
        network=FakeNetwork(machine, host),
        addresses=FakeAddresses(machine),
        disks=FakeDisks(machine),
        memory=FakeMemory(machine),
    )


@dataclass
class FakeHypervisor:
    machine: FakeMachine
    host: str

    def ensure_domain(self, domain: Domain) -> None:
        self.machine.attempt("ensure_domain", domain.name)
        existing = self._find(domain.name)
        for name, other in list(self.machine.domains.items()):
            if other.plan.uuid == domain.uuid and name != domain.name and self._find(name):
                del self.machine.domains[name]
        self.machine.domains[domain.name] = FakeDomain(
            self.host,
            domain,
            running=existing is not None and existing.running,
            given=domain,
            leftovers=tuple(
                each for each in (existing.leftovers if existing else ()) if each != "autostart"
            ),
        )

    def start_domain(self, name: str) -> None:
        self.machine.attempt("start_domain", name)
        domain = self._find(name)
        if domain is None:
            raise DomainError(name, "there is no such domain")
        if domain.running:
            return
        if domain.plan.disk.path not in self.machine.disks:
            raise DomainError(name, f"{domain.plan.disk.path} does not exist")
        for nic in domain.plan.nics:
            if nic.port not in self.machine.devices:
                raise DomainError(name, f"device {nic.port} does not exist")
        if _pages(domain.plan) > FakeMemory(self.machine).hugepages().free:
            raise DomainError(name, "QEMU can't allocate its memory")
        domain.running = True
        self.machine.used.add(domain.plan.disk.path)

    def power_off_domain(self, name: str) -> None:
        self.machine.attempt("power_off_domain", name)
        domain = self._find(name)
        if domain is not None:
            domain.running = False

    def remove_domain(self, name: str) -> None:
        self.machine.attempt("remove_domain", name)
        if self._find(name) is not None:
            del self.machine.domains[name]

    def domains(self) -> tuple[DomainInfo, ...]:
        self.machine.attempt("domains")
        return tuple(
            DomainInfo(name, domain.plan.uuid, domain.running)
            for name, domain in self.machine.domains.items()
            if domain.owner == self.host
        )

    def inspect_domain(self, name: str) -> DomainDetails | None:
        self.machine.attempt("inspect_domain", name)
        domain = self._find(name)
        return domain.details() if domain else None

    def close(self) -> None:
        """Nothing is held."""

    def _find(self, name: str) -> FakeDomain | None:
        domain = self.machine.domains.get(name)
        if domain is not None and domain.owner != self.host:
            raise ForeignObject("domain", name, owner=domain.owner)
        return domain


@dataclass
class FakeSwitch:
    machine: FakeMachine
    host: str

    def ensure_bridge(self, name: str) -> None:
        self.machine.attempt("ensure_bridge", name)
        if self._find(name) is None:
            if name in self.machine.devices:
                raise ForeignObject("network device", name)
            self.machine.bridges[name] = FakeBridge(self.host)
            self.machine.devices[name] = ""

    def ensure_port(self, bridge: str, port: str) -> None:
        self.machine.attempt("ensure_port", port)
        if port not in self.machine.devices:
            raise BridgeError(port, "there is no such device to make a port of")
        for name, other in self.machine.bridges.items():
            if port in other.ports and other.owner != self.host:
                raise ForeignObject("port", port, owner=other.owner)
            if port in other.ports and name != bridge:
                del other.ports[port]
        home = self._find(bridge)
        if home is None:
            raise BridgeError(bridge, "there is no such bridge")
        home.ports[port] = PortInfo(port, ours=True)

    def remove_ports(self, bridge: str, ports: AbstractSet[str]) -> None:
        for port in ports:
            self.machine.attempt("remove_ports", port)
        home = self._find(bridge)
        if home is not None:
            home.ports = {name: port for name, port in home.ports.items() if name not in ports}

    def remove_bridge(self, name: str) -> None:
        self.machine.attempt("remove_bridge", name)
        if self._find(name) is not None:
            del self.machine.bridges[name]
            self.machine.devices.pop(name, None)

    def bridges(self) -> tuple[BridgeInfo, ...]:
        self.machine.attempt("bridges")
        return tuple(
            BridgeInfo(name, dict(bridge.ports))
            for name, bridge in self.machine.bridges.items()
            if bridge.owner == self.host
        )

    def close(self) -> None:
        """Nothing is held."""

    def _find(self, name: str) -> FakeBridge | None:
        bridge = self.machine.bridges.get(name)
        if bridge is not None and bridge.owner != self.host:
            raise ForeignObject("bridge", name, owner=bridge.owner)
        return bridge


@dataclass
class FakeNetwork:
    machine: FakeMachine
    host: str

    def ensure_tap(self, name: str) -> None:
        self.machine.attempt("ensure_tap", name)
        self._refuse_foreign(name)
        self.machine.devices[name] = self.host

    def remove_tap(self, name: str) -> None:
        self.machine.attempt("remove_tap", name)
        self._refuse_foreign(name)
        self.machine.devices.pop(name, None)

    def taps(self) -> tuple[str, ...]:
        self.machine.attempt("taps")
        return tuple(name for name, owner in self.machine.devices.items() if owner == self.host)

    def ensure_address(self, interface: str, address: IPv4Interface) -> None:
        self.machine.attempt("ensure_address", interface)
        self._require(interface)
        for held in [each for each in self.machine.addresses if each.ip == address.ip]:
            del self.machine.addresses[held]
        self.machine.addresses[address] = interface

    def addresses(self, interface: str) -> tuple[IPv4Interface, ...]:
        self.machine.attempt("addresses", interface)
        self._require(interface)
        held = self.machine.addresses.items()
        return tuple(address for address, device in held if device == interface)

    def ensure_up(self, interface: str) -> None:
        self.machine.attempt("ensure_up", interface)
        self._require(interface)

    def _refuse_foreign(self, name: str) -> None:
        owner = self.machine.devices.get(name, self.host)
        if owner != self.host:
            raise ForeignObject("interface", name, owner=owner)

    def _require(self, interface: str) -> None:
        if interface not in self.machine.devices:
            raise NetworkError(interface, "there is no such device")


@dataclass
class FakeAddresses:
    machine: FakeMachine

    def ensure_reservations(self, reservations: Iterable[Reservation]) -> None:
        self.machine.attempt("ensure_reservations")
        if self.machine.reservations != (wanted := tuple(reservations)):
            self.machine.is_deaf = False
        self.machine.reservations = wanted

    def reservations(self) -> tuple[Reservation, ...]:
        self.machine.attempt("reservations")
        return self.machine.reservations

    def answers(self) -> bool:
        self.machine.attempt("answers")
        return not self.machine.is_deaf

    def remove(self) -> None:
        self.machine.attempt("remove")
        self.machine.reservations = ()
        self.machine.is_deaf = False


@dataclass
class FakeMemory:
    machine: FakeMachine

    def hugepages(self) -> HugePages:
        self.machine.attempt("hugepages")
        running = (domain.plan for domain in self.machine.domains.values() if domain.running)
        free = self.machine.hugepages - sum(map(_pages, running))
        return HugePages(_PAGE_KIB, self.machine.hugepages, max(0, free))


def _pages(domain: Domain) -> int:
    return domain.memory_mib * 1024 // _PAGE_KIB if domain.hugepages else 0


@dataclass
class FakeDisks:
    machine: FakeMachine

    def check_image(self, image: Path) -> None:
        self.machine.attempt("check_image", str(image))
        self._require(image)

    def check_readable(self, path: Path) -> None:
        self.machine.attempt("check_readable", str(path))
        self._require(path)

    def make_fresh(self, disk: Disk) -> None:
        self.machine.attempt("make_fresh", str(disk.path))
        if disk.base is not None:
            self._require(disk.base)
        self.machine.disks[disk.path] = disk
        self.machine.used.discard(disk.path)

    def inspect(self, path: Path) -> DiskInfo | None:
        self.machine.attempt("inspect", str(path))
        disk = self.machine.disks.get(path)
        if disk is None:
            return None
        backing = disk.base if disk.format == "qcow2" else None
        return DiskInfo(
            format=disk.format,
            size=disk.size_gib * _GIB,
            backing=backing,
            backing_format="qcow2" if backing else "",
        )

    def remove(self, path: Path) -> None:
        self.machine.attempt("remove", str(path))
        self.machine.disks.pop(path, None)
        self.machine.used.discard(path)
        path.unlink(missing_ok=True)  # what a test has put there

    def _require(self, image: Path) -> None:
        if image not in self.machine.images:
            raise DiskError(str(image), "there is no such file")
