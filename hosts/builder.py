"""Brings a host to its plan, and an environment back to it. Synchronous, over the drivers.

Every step is idempotent, so that a first start, an agent's restart, a host's reboot and a lease's
end are one path: run all of it again. Nothing that is not marked as this host's is changed.
"""

import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from hosts.drivers.base import Drivers, Reservation
from schemas.errors import DiskError, DomainError, HostError
from schemas.plan import Domain, Environment, HostPlan, KernelBoot, Role

log = logging.getLogger(__name__)

_POWER_OFFS = 16
"""At a time, of one environment."""


class Builder:
    """Makes and resets the environments of one plan. Safe to call from several threads."""

    def __init__(self, plan: HostPlan, drivers: Drivers, state_dir: Path) -> None:
        self._plan = plan
        self._drivers = drivers
        self._directories = (state_dir / "disks", state_dir / "console")
        self._host_lock = threading.Lock()
        self._leaks_removed = False
        self._environment_locks = {env.id: threading.Lock() for env in plan.environments}

    def ensure_host(self) -> None:
        """What all environments share: directories, the public bridge, addresses.

        The first success also removes what is marked as ours and not in the plan.
        """
        with self._host_lock:
            for directory in self._directories:
                _ensure_directory(directory)
            if not self._leaks_removed:
                self._remove_leaks()
                self._leaks_removed = True
            self._ensure_public()

    def build(self, env: Environment) -> None:
        """Make `env` as planned, with fresh disks and its seed powered on."""
        self._reset(env)

    def fence(self, env: Environment) -> None:
        """Take `env` from its holder: every domain is off, and no port of its is on a bridge.

        What does not go off is unplugged all the same, before that is raised; fencing again goes
        on from there. The taps stay, for `turn_over` to plug them in again.
        """
        with self._alone(env):
            try:
                self._power_off(env)
            finally:
                self._unplug(env)

    def turn_over(self, env: Environment) -> None:
        """Make `env`, which is fenced, as new: plugged in again, and its seed powered on."""
        self._reset(env)

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
        for directory in self._directories:
            for path in _files(directory):
                drivers.disks.remove(path)
            # A directory in which an admin keeps something of theirs stays.
            with suppress(OSError):
                directory.rmdir()

    def _reset(self, env: Environment) -> None:
        with self._alone(env):
            self._power_off(env)
            self.ensure_host()
            self._renew(env)

    def _power_off(self, env: Environment) -> None:
        """All at once, for QEMU takes a fifth of a second to be seen dead, and may take ten."""
        hypervisor = self._drivers.hypervisor
        names = [domain.name for domain in env.domains]
        with ThreadPoolExecutor(_POWER_OFFS, f"power-off-{env.number}") as pool:
            calls = [pool.submit(hypervisor.power_off_domain, name) for name in names]
        for call in calls:
            call.result()
        for domain in hypervisor.domains():
            if domain.name in names and domain.running:
                raise DomainError(
                    domain.name,
                    "it runs again, or still, after it was powered off",
                    remedy=f"look who starts it, and stop it: virsh destroy {domain.name}",
                )

    def _unplug(self, env: Environment) -> None:
        """Wherever a port of `env` may have been moved to since it was plugged in."""
        ports = {nic.port for domain in env.domains for nic in domain.nics}
        switch = self._drivers.switch
        for bridge in switch.bridges():
            for port in ports & bridge.ports.keys():
                switch.remove_port(bridge.name, port)

    def _renew(self, env: Environment) -> None:
        drivers = self._drivers
        self._check_boot_files(env.seed)
        drivers.switch.ensure_bridge(env.bridge)
        for domain in env.domains:
            for nic in domain.nics:
                drivers.network.ensure_tap(nic.port)
                drivers.switch.ensure_port(nic.bridge, nic.port)
            drivers.disks.make_fresh(domain.disk)
            drivers.disks.remove(domain.console)
            drivers.hypervisor.ensure_domain(domain)
        drivers.hypervisor.start_domain(env.seed.name)

    def _check_boot_files(self, domain: Domain) -> None:
        """Said here with the file's name, rather than by qemu with its own words."""
        if domain.disk.base:
            self._drivers.disks.check_image(domain.disk.base)
        if isinstance(domain.boot, KernelBoot):
            for path in (domain.boot.kernel, domain.boot.initrd):
                if path:
                    self._drivers.disks.check_readable(path)

    def _ensure_public(self) -> None:
        public, drivers = self._plan.public, self._drivers
        drivers.switch.ensure_bridge(public.bridge)
        if public.interface:
            drivers.switch.ensure_port(public.bridge, public.interface)
            drivers.network.ensure_up(public.interface)
        drivers.network.ensure_address(public.bridge, public.address)
        drivers.addresses.ensure_reservations(reservations(self._plan))

    def _remove_leaks(self) -> None:
        """What is marked as ours and not in the plan, for instance after a smaller count."""
        plan, drivers = self._plan, self._drivers
        domains = {domain.name for domain in plan.domains}
        bridges = {env.bridge for env in plan.environments} | {plan.public.bridge}
        taps = {nic.port for domain in plan.domains for nic in domain.nics}
        files = {path for domain in plan.domains for path in (domain.disk.path, domain.console)}
        for domain in drivers.hypervisor.domains():
            if domain.name not in domains:
                log.info("removing domain %s: not in the plan", domain.name)
                drivers.hypervisor.remove_domain(domain.name)
        for bridge in drivers.switch.bridges():
            if bridge.name not in bridges:
                log.info("removing bridge %s: not in the plan", bridge.name)
                drivers.switch.remove_bridge(bridge.name)
                continue
            for port in bridge.ports:
                if port not in taps | {plan.public.interface}:
                    log.info("removing port %s of %s: not in the plan", port, bridge.name)
                    drivers.switch.remove_port(bridge.name, port)
        for tap in drivers.network.taps():
            if tap not in taps:
                log.info("removing tap %s: not in the plan", tap)
                drivers.network.remove_tap(tap)
        for path in (path for directory in self._directories for path in _files(directory)):
            if path not in files:
                log.info("removing %s: not in the plan", path)
                drivers.disks.remove(path)

    @contextmanager
    def _alone(self, env: Environment) -> Iterator[None]:
        """One reset of `env` at a time: an earlier one may still hang in a driver's call."""
        lock = self._environment_locks[env.id]
        if not lock.acquire(timeout=1):
            raise HostError(f"{env.id}: an earlier step has not come back from its driver yet")
        try:
            yield
        finally:
            lock.release()


def reservations(plan: HostPlan) -> tuple[Reservation, ...]:
    """Each seed's public address, for its MAC alone."""
    return tuple(
        Reservation(mac=nic.mac, address=nic.address, name=domain.name.replace("_", "-"))
        for domain in plan.domains
        if domain.role is Role.SEED
        for nic in domain.nics
        if nic.address is not None
    )


def _ensure_directory(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise DiskError(str(directory), f"cannot be made: {exc.strerror}") from exc


def _files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.glob("*") if path.is_file())
