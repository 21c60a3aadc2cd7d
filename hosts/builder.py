"""Brings a host to its plan, and an environment back to it. Synchronous, over the drivers.

Every step is idempotent, so that a first start, an agent's restart, a host's reboot and a lease's
end are one path: run all of it again. Nothing that is not marked as this host's is changed.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from itertools import chain
from math import ceil
from pathlib import Path
from typing import TypeVar

from hosts.consoles import Consoles
from hosts.drivers.base import BridgeInfo, DomainDetails, Drivers
from hosts.leaks import Sweeper, files
from hosts.verify import (
    Differences,
    Observed,
    Wiring,
    definition_differences,
    differences,
    power_differences,
    reservations,
    stray_ports,
    wiring_differences,
)
from schemas.errors import (
    DiskError,
    DomainError,
    DriverError,
    EnvironmentDiffers,
    HostError,
    TooFewHugePages,
)
from schemas.plan import Domain, Environment, HostPlan, KernelBoot, Nic

log = logging.getLogger(__name__)

T = TypeVar("T")

_AT_ONCE = 16
"""Drivers' calls at a time for one environment."""
_SHARED_S = 60.0
"""How long one environment waits for another to look after what they share."""


class Builder:
    """Makes and resets the environments of a plan, in which each may be replaced. Safe to call
    from several threads.

    The consoles of the last `keep_consoles` leases of each environment are kept.
    """

    def __init__(
        self, plan: HostPlan, drivers: Drivers, state_dir: Path, *, keep_consoles: int = 5
    ) -> None:
        self._plan = plan
        self._drivers = drivers
        self._directories = (state_dir / "disks", state_dir / "console")
        self._consoles = Consoles(state_dir / "console", keep_consoles)
        self._sweeper = Sweeper(plan, drivers, self._directories)
        # A lease of before may run there, with what an earlier plan has given it.
        self._sweeper.spared.update(env.number for env in plan.environments)
        self._host_lock = threading.Lock()
        self._plan_lock = threading.Lock()
        self._environment_locks = {env.id: threading.Lock() for env in plan.environments}

    @property
    def plan(self) -> HostPlan:
        """What this host carries by now."""
        return self._plan

    def ensure_host(self) -> None:
        """What all environments share: directories, the public bridge, addresses."""
        with self._host():
            for directory in self._directories:
                _ensure_directory(directory)
            self._ensure_public()

    def build(self, env: Environment) -> None:
        """Make `env`, which is planned from now on, with fresh disks and its seed powered on."""
        self._adopt(env)
        self._reset(env)

    def rebuild(self, env: Environment) -> None:
        """Remove all that there is of the environment with `env`'s id, then build `env`.

        It is planned from now on, also where this raises: then `build` is what makes it.
        """
        before = self._adopt(env)
        with self._alone(before), _threads(before) as pool:
            self._remove(before, pool)
        self._reset(env)

    def remove(self, env: Environment) -> None:
        """Nothing of `env` is there, but for the consoles of its leases, and it is not planned.

        Nor is it where this raises: what is left then is a leak.
        """
        try:
            with self._alone(env), _threads(env) as pool:
                self._remove(env, pool)
            with self._host():
                left = reservations(self._plan.without(env.id))
                self._drivers.addresses.ensure_reservations(left)
        finally:
            self._sweeper.spared.discard(env.number)
            # Last: what is there and not planned makes the others differ from their plan.
            with self._plan_lock:
                self._replan(self._plan.without(env.id))

    def fence(self, env: Environment, lease: str = "") -> Differences:
        """Take `env` from its holder: every domain is off, and no port of its is on a bridge.

        What does not go off is unplugged all the same, before that is raised; fencing again goes
        on from there. The taps stay, for `turn_over` to plug them in again. Consoles are put aside
        as `lease`'s, if that is known. Returns what the holder has changed, as far as it can be
        told.
        """
        with self._alone(env), _threads(env) as pool:
            try:
                self._power_off(env, pool)
            finally:
                bridges = self._unplug(env)
            if lease:
                self._consoles.keep(env, lease)
            return self._left_behind(env, bridges, pool)

    def seclude(self, env: Environment) -> None:
        """Cut `env` off from all that is not its own; its domains go on as they are.

        Its nodes and its seed still reach each other over their private bridge.
        """
        private = {nic.port for nic in _nics(env) if nic.bridge == env.bridge}
        public = {nic.port for nic in _nics(env)} - private
        switch = self._drivers.switch
        with self._alone(env):
            bridges = switch.bridges()
            strays = [port for bridge, port in stray_ports(self._plan, env, bridges)
                      if bridge == env.bridge]  # fmt: skip
            for bridge in bridges:
                own = bridge.name == env.bridge
                foreign = {*public, *strays} if own else public | private
                if there := foreign & bridge.ports.keys():
                    switch.remove_ports(bridge.name, there)

    def connect(self, env: Environment) -> None:
        """Plug in the seed's public NIC again, after `seclude`."""
        with self._alone(env):
            for nic in _nics(env):
                if nic.bridge != env.bridge:
                    self._plug_in(nic)

    def turn_over(self, env: Environment) -> None:
        """Make `env`, which is fenced, as new: plugged in again, and its seed powered on.

        Raises EnvironmentDiffers if it is not as planned after that, and not after one repair.
        """
        self._reset(env)

    def differences(self, env: Environment) -> Differences:
        """In what `env`, which is to be offered, is not as planned. Changes nothing."""
        with self._alone(env), _threads(env) as pool:
            return self._differences(env, pool)

    def sweep(self) -> None:
        """Look for what is marked as ours and not in the plan; what was seen before goes."""
        self._sweeper.sweep(time.monotonic())

    def destroy(self) -> None:
        """Remove all that is marked as this host's, planned or not.

        The host's own address goes back to the NIC that was moved onto the public bridge.
        """
        public, drivers = self._plan.public, self._drivers
        for domain in drivers.hypervisor.domains():
            drivers.hypervisor.remove_domain(domain.name)
        ours = {bridge.name: bridge for bridge in drivers.switch.bridges()}
        if public.bridge in ours and public.interface in ours[public.bridge].ports:
            # An admin who came over this address must not be cut off.
            drivers.network.ensure_address(public.interface, public.address)
        for name in ours:
            drivers.switch.remove_bridge(name)
        for tap in drivers.network.taps():
            drivers.network.remove_tap(tap)
        drivers.addresses.remove()
        self._consoles.remove()
        for directory in self._directories:
            for path in files(directory):
                drivers.disks.remove(path)
            # A directory in which an admin keeps something of theirs stays.
            with suppress(OSError):
                directory.rmdir()

    def _adopt(self, env: Environment) -> Environment:
        """Have `env` in the plan; what was there before with its id, else `env`."""
        with self._plan_lock:
            before = self._plan.environment(env.id)
            self._environment_locks.setdefault(env.id, threading.Lock())
            self._replan(self._plan.with_environment(env))
        return before or env

    def _replan(self, plan: HostPlan) -> None:
        self._plan = self._sweeper.plan = plan

    def _remove(self, env: Environment, pool: ThreadPoolExecutor) -> None:
        drivers = self._drivers
        self._power_off(env, pool)
        self._unplug(env)
        _all(pool, (partial(drivers.hypervisor.remove_domain, each.name) for each in env.domains))
        drivers.switch.remove_bridge(env.bridge)
        for domain in env.domains:
            for nic in domain.nics:
                drivers.network.remove_tap(nic.port)
            drivers.disks.remove(domain.disk.path)
            self._consoles.clear(domain)

    def _reset(self, env: Environment) -> None:
        self._sweeper.spared.discard(env.number)
        with self._alone(env), _threads(env) as pool:
            self._power_off(env, pool)
            checks = (partial(self._check_boot_files, env.seed), partial(self._check_pages, env))
            _all(pool, (self.ensure_host, *checks))
            self._renew(env, pool)
            if found := self._differences(env, pool):
                log.warning("%s: made anew once more: %s", env.id, "; ".join(map(str, found)))
                self._power_off(env, pool)
                self._renew(env, pool)
                if left := self._differences(env, pool):
                    raise EnvironmentDiffers(env.id, [str(each) for each in left])

    def _power_off(self, env: Environment, pool: ThreadPoolExecutor) -> None:
        """All at once, for QEMU takes a fifth of a second to be seen dead, and may take ten."""
        hypervisor = self._drivers.hypervisor
        names = {domain.name for domain in env.domains}
        uuids = {domain.uuid for domain in env.domains}
        _all(pool, (partial(hypervisor.power_off_domain, name) for name in names))
        for domain in hypervisor.domains():
            if domain.name in names and domain.running:
                raise DomainError(
                    domain.name,
                    "it runs again, or still, after it was powered off",
                    remedy=f"look who starts it, and stop it: virsh destroy {domain.name}",
                )
            if domain.uuid in uuids and domain.name not in names:
                log.info("removing domain %s: it was renamed", domain.name)
                hypervisor.remove_domain(domain.name)

    def _unplug(self, env: Environment) -> tuple[BridgeInfo, ...]:
        """Wherever a port of `env` may have been moved to since it was plugged in.

        Returns the bridges as they were before.
        """
        ports = {nic.port for nic in _nics(env)}
        switch = self._drivers.switch
        bridges = switch.bridges()
        for bridge in bridges:
            if there := ports & bridge.ports.keys():
                switch.remove_ports(bridge.name, there)
        return bridges

    def _left_behind(
        self, env: Environment, bridges: tuple[BridgeInfo, ...], pool: ThreadPoolExecutor
    ) -> Differences:
        """What is not as planned, of what can be told: a fence must not fail for it."""

        def definitions() -> Differences:
            return definition_differences(env, self._domains(env, pool))

        def wiring() -> Differences:
            taps = frozenset(self._drivers.network.taps())
            # An earlier fence, or a hold, has unplugged the same ports.
            return wiring_differences(self._plan, env, Wiring(bridges, taps), unplugged=False)

        found: Differences = ()
        for look in (definitions, wiring):
            try:
                found += look()
            except DriverError as error:
                log.warning("%s: what its holder has changed can't all be told: %s", env.id, error)
        return found

    def _renew(self, env: Environment, pool: ThreadPoolExecutor) -> None:
        """All of it, which is off: from templates and base image, on a bridge without strays."""
        switch = self._drivers.switch
        for bridge, port in stray_ports(self._plan, env, switch.bridges()):
            log.info("removing stray port %s of %s", port, bridge)
            switch.remove_ports(bridge, {port})
        # With all that cannot be seen in its ports: flows, mirrors, a controller.
        switch.remove_bridge(env.bridge)
        switch.ensure_bridge(env.bridge)
        _all(pool, self._parts_of(env.seed))
        # Starting takes longer than all else: the nodes are made meanwhile.
        start: Callable[[], None] = partial(self._drivers.hypervisor.start_domain, env.seed.name)
        _all(pool, chain((start,), *(self._parts_of(node) for node in env.nodes)))

    def _parts_of(self, domain: Domain) -> Iterator[Callable[[], None]]:
        """What makes `domain`, which is off, anew; in any order, and at the same time."""
        yield partial(self._define, domain)
        yield partial(self._drivers.disks.make_fresh, domain.disk)
        yield partial(self._consoles.clear, domain)
        for nic in domain.nics:
            yield partial(self._plug_in, nic)

    def _define(self, domain: Domain) -> None:
        # With all that libvirt keeps beside a definition: NVRAM, saved states, snapshots.
        self._drivers.hypervisor.remove_domain(domain.name)
        self._drivers.hypervisor.ensure_domain(domain)

    def _plug_in(self, nic: Nic) -> None:
        self._drivers.network.ensure_tap(nic.port)
        self._drivers.switch.ensure_port(nic.bridge, nic.port)

    def _check_boot_files(self, domain: Domain) -> None:
        """Said here with the file's name, rather than by qemu with its own words."""
        if domain.disk.base:
            self._drivers.disks.check_image(domain.disk.base)
        if isinstance(domain.boot, KernelBoot):
            for path in (domain.boot.kernel, domain.boot.initrd):
                if path:
                    self._drivers.disks.check_readable(path)

    def _check_pages(self, env: Environment) -> None:
        """For all of its machines: who holds it powers on the nodes, and must not fail for that."""
        memory_mib = sum(domain.memory_mib for domain in env.domains if domain.hugepages)
        if not memory_mib:
            return
        pages = self._drivers.memory.hugepages()
        needed = ceil(memory_mib * 1024 / pages.size_kib) if pages.size_kib else 1
        if needed > pages.free:
            raise TooFewHugePages(env.id, needed=needed, free=pages.free, total=pages.total)

    def _differences(self, env: Environment, pool: ThreadPoolExecutor) -> Differences:
        observed = self._look(env, pool)
        return (
            *differences(self._plan, env, observed),
            *power_differences(env, observed.domains),
        )

    def _look(self, env: Environment, pool: ThreadPoolExecutor) -> Observed:
        drivers = self._drivers
        paths = [domain.disk.path for domain in env.domains]
        disks = _all(pool, (partial(drivers.disks.inspect, path) for path in paths))
        return Observed(
            domains=self._domains(env, pool),
            wiring=Wiring(drivers.switch.bridges(), frozenset(drivers.network.taps())),
            disks={path: disk for path, disk in zip(paths, disks, strict=True) if disk},
            reservations=drivers.addresses.reservations(),
        )

    def _domains(self, env: Environment, pool: ThreadPoolExecutor) -> dict[str, DomainDetails]:
        names = [domain.name for domain in env.domains]
        inspect = self._drivers.hypervisor.inspect_domain
        found = _all(pool, (partial(inspect, name) for name in names))
        return {name: details for name, details in zip(names, found, strict=True) if details}

    def _ensure_public(self) -> None:
        public, drivers = self._plan.public, self._drivers
        drivers.switch.ensure_bridge(public.bridge)
        if public.interface:
            drivers.switch.ensure_port(public.bridge, public.interface)
            drivers.network.ensure_up(public.interface)
        drivers.network.ensure_address(public.bridge, public.address)
        drivers.addresses.ensure_reservations(reservations(self._plan))

    def _host(self) -> AbstractContextManager[None]:
        """What environments share, looked after by one of them at a time."""
        return _held(self._host_lock, _SHARED_S, "the host's bridge and addresses")

    @contextmanager
    def _alone(self, env: Environment) -> Iterator[None]:
        """One step of `env` at a time: an earlier one may still hang in a driver's call."""
        with _held(self._environment_locks[env.id], 1, env.id):
            yield


@contextmanager
def _held(lock: threading.Lock, timeout_s: float, what: str) -> Iterator[None]:
    if not lock.acquire(timeout=timeout_s):
        raise HostError(f"{what}: an earlier step has not come back from its driver yet")
    try:
        yield
    finally:
        lock.release()


def _nics(env: Environment) -> Iterator[Nic]:
    return chain.from_iterable(domain.nics for domain in env.domains)


def _threads(env: Environment) -> ThreadPoolExecutor:
    """For `env`'s domains. Leaving it waits for all calls, each of which is bounded."""
    return ThreadPoolExecutor(_AT_ONCE, f"environment-{env.number}")


def _all(pool: ThreadPoolExecutor, calls: Iterable[Callable[[], T]]) -> list[T]:
    """What all calls return, made at the same time. Raises what the first to fail raised, but not
    before all have come back."""
    made = [pool.submit(call) for call in calls]
    wait(made)
    return [each.result() for each in made]


def _ensure_directory(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise DiskError(str(directory), f"cannot be made: {exc.strerror}") from exc
