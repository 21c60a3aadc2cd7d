"""The agent's process: slots for its environments, answers for operators, an orderly end."""

import asyncio
import contextlib
import fcntl
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from broker.endpoint import Endpoint
from broker.links import Links
from broker.worker import serve
from hosts.admission import Admission, Shutdown
from hosts.archive import Archive
from hosts.caretaker import Caretaker
from hosts.control import Control
from hosts.health import Health
from hosts.holds import HoldLimits, Holds
from hosts.journal import Journal
from hosts.rebuild import Workshop
from hosts.reception import Reception
from hosts.slot import Slot, SlotTiming
from hosts.surplus import NOT_PLANNED
from hosts.vetting import DEMANDS_NOTHING, Standards, Vetting
from hosts.vitals import Vital
from schemas.control import Changes
from schemas.errors import AgentRunning, HostError
from schemas.names import host_function
from schemas.plan import Environment
from schemas.status import HostReport

log = logging.getLogger(__name__)

_LEAVING_S = 1.0
"""How long slots get to let go of their leases."""


class Agent:
    """Serves `caretakers`' environments as `host` until told to stop.

    SIGTERM and SIGINT stop it: nothing new is offered, turnovers and leases of version 1 clients
    may end within `drain_timeout_s` (a second signal ends the waiting), then the agent goes; VMs
    and all other leases are left to the next one. SIGUSR2 cordons and SIGUSR1 uncordons, as
    toci's worker had it.
    """

    def __init__(
        self,
        host: str,
        endpoints: Sequence[Endpoint],
        caretakers: Sequence[Caretaker],
        journal: Journal,
        *,
        drain_timeout_s: float,
        timing: SlotTiming,
        surplus: Sequence[Caretaker] = (),
        vitals: Sequence[Vital] = (),
        standards: Standards = DEMANDS_NOTHING,
        hold_limits: HoldLimits | None = None,
        archive: Archive | None = None,
        workshop: Workshop | None = None,
    ) -> None:
        """`surplus`: more of them, each to be removed once it is not in use. `archive`: of the
        domains' consoles, if they are ours. `workshop`: to rebuild them."""
        self.host = host
        self._endpoints = endpoints
        self._journal = journal
        self._drain_timeout_s = drain_timeout_s
        self._timing = timing
        self._shutdown = Shutdown()
        self.admissions: dict[str, Admission] = {
            caretaker.id: self._shutdown.admission() for caretaker in (*caretakers, *surplus)
        }
        self._surplus = frozenset(caretaker.id for caretaker in surplus)
        self._standards = standards
        self._health = Health(
            vitals, self.admissions, journal, check_interval_s=standards.check_interval_s
        )
        self.holds = Holds(host, journal, hold_limits or HoldLimits())
        self._workshop = workshop
        self._control = Control(self, journal, archive, workshop)
        self._newcomers: asyncio.Queue[Caretaker] = asyncio.Queue()
        for caretaker in (*caretakers, *surplus):
            self._newcomers.put_nowait(caretaker)
        self._doing: set[asyncio.Task[Any]] = set()
        self._hurry = asyncio.Event()
        self._lives: dict[asyncio.Task[Any], Slot] = {}
        self._started = datetime.now(UTC)

    async def run(self) -> None:
        """Until a signal stops it."""
        await self.holds.remember()
        with self._signals():
            async with (
                Links(self._endpoints, client_id=f"{self.host}/leases") as links,
                asyncio.TaskGroup() as group,
            ):
                reception = Reception(links)
                receiving = group.create_task(reception.run())
                health = group.create_task(self._health.run())
                while not self._newcomers.empty():
                    self._begin(self._newcomers.get_nowait(), group, reception)
                beginning = group.create_task(self._begin_newcomers(group, reception))
                control = group.create_task(self._answer_operators())
                await self._shutdown.stopped.wait()
                kept = sum(slot.outlives_agent for slot in self.slots)
                log.info("stopping; %d leases are left to the next agent", kept)
                hurry = group.create_task(self._hurry.wait())
                await self._drained(hurry)
                self._shutdown.leave()
                if self._lives:
                    await asyncio.wait(self._lives, timeout=_LEAVING_S)
                left = [task for task in self._lives if not task.done()]
                if left:
                    log.warning("%d environments were not done in time and are left as they are",
                                len(left))  # fmt: skip
                for task in (receiving, health, beginning, control, hurry, *left):
                    task.cancel()
            await asyncio.gather(*self._doing)

    async def _drained(self, hurry: asyncio.Task[bool]) -> None:
        """Return when only leases that outlive us are left, the drain's time is over, or a person
        is in a hurry."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._drain_timeout_s
        while loop.time() < deadline and not hurry.done():
            waited_for = {
                life
                for life, slot in self._lives.items()
                if not (life.done() or slot.outlives_agent)
            }
            if not waited_for:
                return
            await asyncio.wait(
                {hurry, *waited_for},
                timeout=max(0.0, deadline - loop.time()),
                return_when=asyncio.FIRST_COMPLETED,
            )

    @property
    def slots(self) -> tuple[Slot, ...]:
        return tuple(self._lives.values())

    def report(self) -> HostReport:
        """The agent and its environments as they are now."""
        return HostReport(
            host=self.host,
            version=version("testenv"),
            pid=os.getpid(),
            started=self._started,
            draining=self._shutdown.stopped.is_set(),
            ends_within_s=self._timing.terms.ttl_s + self._timing.terms.margin_s,
            environments=tuple(slot.report() for slot in self.slots),
            autoholds=self.holds.autoholds,
        )

    def add(self, env: Environment) -> None:
        """Make and offer one more, which is new in the plan. Only with a workshop."""
        if self._workshop is None:
            raise HostError(f"{self.host} makes no environments")
        caretaker = self._workshop.caretaker(env)
        self.admissions[env.id] = self._shutdown.admission()
        self._newcomers.put_nowait(caretaker)

    async def _begin_newcomers(self, group: asyncio.TaskGroup, reception: Reception) -> None:
        while True:
            self._begin(await self._newcomers.get(), group, reception)

    def _begin(self, caretaker: Caretaker, group: asyncio.TaskGroup, reception: Reception) -> None:
        own = Links(self._endpoints, client_id=caretaker.id)
        slot = self._slot(caretaker, own, reception)
        if caretaker.id in self._surplus:
            slot.rebuild(None, NOT_PLANNED)
        life = group.create_task(_live(slot, own))
        self._lives[life] = slot
        life.add_done_callback(self._forget_removed)

    def _forget_removed(self, life: asyncio.Task[None]) -> None:
        if self._lives[life].is_removed:
            del self.admissions[self._lives.pop(life).id]

    def _slot(self, caretaker: Caretaker, links: Links, reception: Reception) -> Slot:
        admission = self.admissions[caretaker.id]
        vetting = Vetting(caretaker, self._journal, self._health, self._standards)
        return Slot(
            caretaker,
            links,
            reception,
            self._journal,
            admission,
            vetting,
            self.holds,
            self._timing,
        )

    async def _answer_operators(self) -> None:
        await self._all_remembered()
        async with Links(self._endpoints, client_id=self.host) as links:
            await serve(links, host_function(self.host), self._control.answer)

    async def _all_remembered(self) -> None:
        """Before that, the slots know of no lease and no cordon."""
        for slot in self.slots:
            await slot.remembered.wait()

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        handlers = {
            signal.SIGTERM: self._stop,
            signal.SIGINT: self._stop,
            signal.SIGUSR2: self._cordon,
            signal.SIGUSR1: self._uncordon,
        }
        for number, handler in handlers.items():
            loop.add_signal_handler(number, handler)
        try:
            yield
        finally:
            for number in handlers:
                loop.remove_signal_handler(number)

    def _stop(self) -> None:
        if self._shutdown.stopped.is_set():
            self._hurry.set()
        self._shutdown.stop()

    def _cordon(self) -> None:
        log.info("cordoned: no new lease is admitted until SIGUSR1")
        self._do(partial(self._control.cordon, reason=signal.SIGUSR2.name))

    def _uncordon(self) -> None:
        log.info("uncordoned")
        self._do(self._control.uncordon)

    def _do(self, command: Callable[[], Awaitable[Changes]]) -> None:
        async def in_turn() -> None:
            await self._all_remembered()
            await command()

        self._doing.add(task := asyncio.ensure_future(in_turn()))
        task.add_done_callback(self._doing.discard)


async def _live(slot: Slot, links: Links) -> None:
    async with links:
        await slot.run()


@contextlib.contextmanager
def sole_agent(state_dir: Path) -> Iterator[None]:
    """Hold `state_dir` for this process. Raises AgentRunning if another one has it.

    The lock is flock(2)'s, so that it is gone with the process, however that ends.
    """
    path = state_dir / "agent.lock"
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
        handle = path.open("a+", errors="replace")
    except OSError as exc:
        raise HostError(
            f"{path} cannot be opened: {exc.strerror}",
            remedy="run as root, or set another state directory",
        ) from exc
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            handle.seek(0)
            pid = handle.read(20).strip()
            known = pid.isascii() and pid.isdigit()
            raise AgentRunning(state_dir, int(pid) if known else 0) from exc
        handle.truncate(0)
        handle.write(f"{os.getpid()}\n")
        handle.flush()
        yield
