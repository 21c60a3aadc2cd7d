"""The agent's process: slots for its environments, answers for operators, an orderly end."""

import asyncio
import contextlib
import fcntl
import logging
import os
import signal
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from broker.endpoint import Endpoint
from broker.links import Links
from broker.worker import serve
from hosts.admission import Admission, Bar, Shutdown
from hosts.caretaker import Caretaker
from hosts.control import Control
from hosts.journal import Journal
from hosts.reception import Reception
from hosts.slot import Slot, SlotTiming
from schemas.errors import AgentRunning, HostError
from schemas.names import host_function
from schemas.status import HostReport, Lease

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
    ) -> None:
        self._host = host
        self._endpoints = endpoints
        self._caretakers = caretakers
        self._journal = journal
        self._drain_timeout_s = drain_timeout_s
        self._timing = timing
        self._shutdown = Shutdown()
        self._admissions: dict[str, Admission] = {
            caretaker.id: self._shutdown.admission() for caretaker in caretakers
        }
        self._hurry = asyncio.Event()
        self._lives: dict[asyncio.Task[Any], Slot] = {}
        self._started = datetime.now(UTC)

    async def run(self) -> None:
        """Until a signal stops it."""
        with self._signals():
            async with (
                Links(self._endpoints, client_id=f"{self._host}/leases") as links,
                asyncio.TaskGroup() as group,
            ):
                reception = Reception(links)
                receiving = group.create_task(reception.run())
                control = group.create_task(self._answer_operators())
                slots = [group.create_task(self._live(one, reception)) for one in self._caretakers]
                await self._shutdown.stopped.wait()
                kept = sum(slot.outlives_agent for slot in self._slots)
                log.info("stopping; %d leases are left to the next agent", kept)
                hurry = group.create_task(self._hurry.wait())
                await self._drained(hurry)
                self._shutdown.leave()
                await asyncio.wait(slots, timeout=_LEAVING_S)
                left = [task for task in slots if not task.done()]
                if left:
                    log.warning("%d environments were not done in time and are left as they are",
                                len(left))  # fmt: skip
                for task in (receiving, control, hurry, *left):
                    task.cancel()

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
    def _slots(self) -> tuple[Slot, ...]:
        return tuple(self._lives.values())

    def report(self) -> HostReport:
        """The agent and its environments as they are now."""
        return HostReport(
            host=self._host,
            version=version("testenv"),
            pid=os.getpid(),
            started=self._started,
            draining=self._shutdown.stopped.is_set(),
            environments=tuple(slot.report() for slot in self._slots),
        )

    def revoke(self, target: str, reason: str) -> Lease:
        """See hosts.control."""
        for slot in self._slots:
            lease = slot.lease
            if lease and target in (slot.id, lease.id):
                if not slot.revoke(reason):
                    raise HostError(
                        f"lease {lease.id} of {slot.id}: its client speaks version 1",
                        remedy="it can't be told to end: end its job",
                    )
                return lease
        raise HostError(f"{self._host} has no lease {target}, and none runs in such an environment")

    async def _live(self, caretaker: Caretaker, reception: Reception) -> None:
        async with Links(self._endpoints, client_id=caretaker.id) as links:
            admission = self._admissions[caretaker.id]
            slot = Slot(caretaker, links, reception, self._journal, admission, self._timing)
            if life := asyncio.current_task():
                self._lives[life] = slot
            await slot.run()

    async def _answer_operators(self) -> None:
        async with Links(self._endpoints, client_id=self._host) as links:
            await serve(links, host_function(self._host), Control(self).answer)

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
        for admission in self._admissions.values():
            admission.close(Bar.CORDON, "SIGUSR2")

    def _uncordon(self) -> None:
        log.info("uncordoned")
        for admission in self._admissions.values():
            admission.open(Bar.CORDON)


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
