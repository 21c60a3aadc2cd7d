"""What is marked as this host's and in no plan: after a smaller count, or somebody's accident."""

import logging
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from hosts.consoles import log_files
from hosts.drivers.base import Drivers
from hosts.drivers.disks import fresh_path
from schemas.errors import DriverError
from schemas.names import environment_number
from schemas.plan import HostPlan

log = logging.getLogger(__name__)

LOOKS_APART_S = 5.0
"""Looks that are closer together count as one: they may see the same passing moment."""


class Leak(NamedTuple):
    """An object of ours that is not planned; `bridge` is a port's."""

    kind: Literal["domain", "bridge", "port", "tap", "file"]
    name: str
    bridge: str = ""


class Sweeper:
    """Removes leaks that two looks in a row have seen. Thread-safe.

    Not its concern is what an environment's holder may have done, for its turnover undoes that:
    ports on a private bridge, a domain that was renamed, what a domain was given.
    """

    def __init__(self, plan: HostPlan, drivers: Drivers, directories: Sequence[Path]) -> None:
        self.plan = plan
        """May be replaced at any time; one look keeps to one plan."""
        self.spared: set[int] = set()
        """Numbers of environments of which nothing goes."""
        self._drivers = drivers
        self._directories = directories
        self._lock = threading.Lock()
        self._seen: frozenset[Leak] = frozenset()
        self._looked: float | None = None

    def sweep(self, now: float) -> None:
        """Look, at the monotonic time `now`; what cannot be removed is logged and stays."""
        if not self._lock.acquire(blocking=False):
            return  # somebody looks right now
        try:
            if self._looked is not None and now - self._looked < LOOKS_APART_S:
                return
            plan = self.plan
            seen = frozenset(leak for leak in self._leaks(plan) if not self._is_spared(leak))
            if again := seen & self._seen:
                for leak in sorted(again - frozenset(self._in_use(plan))):
                    self._remove(leak)
            self._seen, self._looked = seen, now
        except DriverError as error:
            log.warning("leaks are not looked for: %s", error)
        finally:
            self._lock.release()

    def _is_spared(self, leak: Leak) -> bool:
        return environment_number(Path(leak.name).name) in self.spared

    def _leaks(self, plan: HostPlan) -> Iterator[Leak]:
        drivers = self._drivers
        names = {domain.name for domain in plan.domains}
        uuids = {domain.uuid for domain in plan.domains}
        private = {env.bridge for env in plan.environments}
        taps = {nic.port for domain in plan.domains for nic in domain.nics}
        for domain in drivers.hypervisor.domains():
            if domain.name not in names and domain.uuid not in uuids:
                yield Leak("domain", domain.name)
        for bridge in drivers.switch.bridges():
            if bridge.name == plan.public.bridge:
                for port in bridge.ports.values():
                    if port.ours and port.name not in taps | {plan.public.interface}:
                        yield Leak("port", port.name, bridge.name)
            elif bridge.name not in private:
                yield Leak("bridge", bridge.name)
        for tap in drivers.network.taps():
            if tap not in taps:
                yield Leak("tap", tap)
        planned = set(_planned_files(plan))
        for path in (path for directory in self._directories for path in files(directory)):
            if path not in planned:
                yield Leak("file", str(path))

    def _in_use(self, plan: HostPlan) -> Iterator[Leak]:
        """What a planned domain, perhaps a leased one, is defined with."""
        for domain in plan.domains:
            details = self._drivers.hypervisor.inspect_domain(domain.name)
            if details:
                yield from (Leak("file", str(drive.path)) for drive in details.drives)
                yield from (Leak("tap", nic.port) for nic in details.nics)

    def _remove(self, leak: Leak) -> None:
        drivers = self._drivers
        log.info("removing %s %s: not in the plan", leak.kind, leak.name)
        try:
            match leak.kind:
                case "domain":
                    drivers.hypervisor.remove_domain(leak.name)
                case "bridge":
                    drivers.switch.remove_bridge(leak.name)
                case "port":
                    drivers.switch.remove_ports(leak.bridge, {leak.name})
                case "tap":
                    drivers.network.remove_tap(leak.name)
                case "file":
                    drivers.disks.remove(Path(leak.name))
        except DriverError as error:
            log.warning("it stays: %s", error)


def _planned_files(plan: HostPlan) -> Iterator[Path]:
    for domain in plan.domains:
        yield domain.disk.path
        yield fresh_path(domain.disk.path)
        yield from log_files(domain.console)


def files(directory: Path) -> list[Path]:
    """All files right in `directory`; none if it is not there."""
    return sorted(path for path in directory.glob("*") if path.is_file())
