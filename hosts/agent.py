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
from hosts.admission import Admission
from hosts.caretaker import Caretaker
from hosts.control import Control
from hosts.slot import Slot, SlotTiming
from schemas.errors import AgentRunning, HostError
from schemas.names import host_function
from schemas.status import HostReport

log = logging.getLogger(__name__)


class Agent:
    """Serves `caretakers`' environments as `host` until told to stop.

    SIGTERM and SIGINT drain: nothing new is offered, running leases may end within
    `drain_timeout_s`, then the agent goes; the VMs stay as they are. A second one ends the
    waiting. SIGUSR2 cordons and SIGUSR1
    uncordons, as toci's worker had it.
    """

    def __init__(
        self,
        host: str,
        endpoints: Sequence[Endpoint],
        caretakers: Sequence[Caretaker],
        *,
        drain_timeout_s: float,
        timing: SlotTiming,
    ) -> None:
        self._host = host
        self._endpoints = endpoints
        self._caretakers = caretakers
        self._drain_timeout_s = drain_timeout_s
        self._timing = timing
        self._admission = Admission()
        self._hurry = asyncio.Event()
        self._slots: list[Slot] = []
        self._started = datetime.now(UTC)

    async def run(self) -> None:
        """Until a signal stops it."""
        with self._signals():
            async with asyncio.TaskGroup() as group:
                control = group.create_task(self._answer_operators())
                slots = [group.create_task(self._live(one)) for one in self._caretakers]
                await self._admission.stopped.wait()
                leased = sum(slot.leased for slot in self._slots)
                log.info("stopping; %d leases running, waiting at most %g s",
                         leased, self._drain_timeout_s)  # fmt: skip
                hurry = group.create_task(self._hurry.wait())
                await self._drained(slots, hurry)
                left = [task for task in slots if not task.done()]
                if left:
                    log.warning("%d environments were not done in time and are left as they are",
                                len(left))  # fmt: skip
                for task in (control, hurry, *left):
                    task.cancel()

    async def _drained(self, slots: list[asyncio.Task[None]], hurry: asyncio.Task[bool]) -> None:
        """Return when every slot is done, the drain's time is over, or a person is in a hurry."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._drain_timeout_s
        pending: set[asyncio.Task[Any]] = {hurry, *slots}
        while hurry in pending and len(pending) > 1 and loop.time() < deadline:
            _, pending = await asyncio.wait(
                pending,
                timeout=max(0.0, deadline - loop.time()),
                return_when=asyncio.FIRST_COMPLETED,
            )

    def report(self) -> HostReport:
        """The agent and its environments as they are now."""
        return HostReport(
            host=self._host,
            version=version("testenv"),
            pid=os.getpid(),
            started=self._started,
            draining=self._admission.stopped.is_set(),
            environments=tuple(slot.report() for slot in self._slots),
        )

    async def _live(self, caretaker: Caretaker) -> None:
        async with Links(self._endpoints, client_id=caretaker.id) as links:
            slot = Slot(caretaker, links, self._admission, self._timing)
            self._slots.append(slot)
            await slot.run()

    async def _answer_operators(self) -> None:
        async with Links(self._endpoints, client_id=self._host) as links:
            await serve(links, host_function(self._host), Control(self.report).answer)

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
        if self._admission.stopped.is_set():
            self._hurry.set()
        self._admission.stop()

    def _cordon(self) -> None:
        log.info("cordoned: no new lease is admitted until SIGUSR1")
        self._admission.cordon()

    def _uncordon(self) -> None:
        log.info("uncordoned")
        self._admission.uncordon()


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
