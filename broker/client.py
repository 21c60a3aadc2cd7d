"""Submitting jobs and awaiting their end; reaching whichever broker answers first."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from enum import Enum
from typing import NamedTuple

from broker.answers import JobStatus
from broker.backoff import backoff
from broker.endpoint import Endpoint
from broker.link import Link
from broker.protocol import Kind
from broker.wire import Packet, from_wire, number
from schemas.errors import BrokerUnreachable, ConnectionLost

log = logging.getLogger(__name__)

__all__ = [
    "JobResult",
    "JobStatus",
    "Outcome",
    "Progress",
    "ProgressKind",
    "SubmittedJob",
    "first_link",
    "submit",
]

HEAD_START_S = 0.25
"""How long a broker has before the next in the list is tried as well (as RFC 8305 has it)."""

PERSIST_CAP_S = 1.0


class Outcome(Enum):
    """How a job ended. FAIL also means that its worker died (geard, gearmand --job-retries=1)."""

    COMPLETE = "complete"
    FAIL = "fail"
    EXCEPTION = "exception"


class JobResult(NamedTuple):
    """`data` is what the worker sent with the end: a result, an exception's text, or nothing."""

    outcome: Outcome
    data: bytes = b""


class ProgressKind(Enum):
    """What a worker may send before its job's end."""

    DATA = "data"
    WARNING = "warning"
    STATUS = "status"


class Progress(NamedTuple):
    """WORK_DATA or WORK_WARNING (`data`), or WORK_STATUS (`numerator`, `denominator`)."""

    kind: ProgressKind
    data: bytes = b""
    numerator: int = 0
    denominator: int = 0


_OUTCOMES: dict[int, Outcome] = {
    Kind.WORK_COMPLETE: Outcome.COMPLETE,
    Kind.WORK_FAIL: Outcome.FAIL,
    Kind.WORK_EXCEPTION: Outcome.EXCEPTION,
}

OnProgress = Callable[[Progress], None]


class SubmittedJob:
    """A job that the broker at the other end of `link` has accepted; made by `submit`."""

    def __init__(self, link: Link, function: str, on_progress: OnProgress | None = None) -> None:
        self.link = link
        self.function = function
        self._handle = b""
        self._on_progress = on_progress
        self._loop = asyncio.get_running_loop()
        self._end: asyncio.Future[JobResult | ConnectionLost] = self._loop.create_future()

    @property
    def handle(self) -> str:
        """The broker's name for the job: unique on this link, reused after a broker's restart."""
        return from_wire(self._handle)

    @property
    def is_over(self) -> bool:
        """Whether `result` returns or raises at once."""
        return self._end.done()

    async def result(self) -> JobResult:
        """Wait for the end; cancel and wait again freely. Raises ConnectionLost if it can't come.

        Unbounded: a queued job may wait for hours. Bound it with asyncio.timeout where it should
        not.
        """
        end = await asyncio.shield(self._end)
        if isinstance(end, ConnectionLost):
            raise end
        return end

    async def status(self, timeout: float | None = None) -> JobStatus:
        """Ask the broker for it. Raises ConnectionLost.

        A broker that does not answer within `timeout` (default: the link's `ping_timeout`)
        seconds is lost.
        """
        return await self.link.ask_status(self._handle, timeout).wait()

    async def submitted(self, arguments: bytes, unique: str) -> None:
        """Used once, by `submit`."""
        self._handle = await self.link.submit(self.function, arguments, unique, self)

    def received(self, packet: Packet) -> None:
        """Called by the link."""
        if outcome := _OUTCOMES.get(packet.kind):
            _, _, data = packet.data.partition(b"\0")
            self._end.set_result(JobResult(outcome, data))
        elif self._on_progress:
            # Not called right here, so that an error in it is not the link's.
            self._loop.call_soon(self._on_progress, _progress(packet))

    def lost(self, loss: ConnectionLost) -> None:
        """Called by the link."""
        self._end.set_result(loss)


def _progress(packet: Packet) -> Progress:
    """Lenient: geard relays whatever a worker sent, and that must not cost us our link."""
    _, _, data = packet.data.partition(b"\0")
    if packet.kind == Kind.WORK_STATUS:
        numerator, _, denominator = data.partition(b"\0")
        return Progress(
            ProgressKind.STATUS, numerator=number(numerator), denominator=number(denominator)
        )
    warning = packet.kind == Kind.WORK_WARNING
    return Progress(ProgressKind.WARNING if warning else ProgressKind.DATA, data)


async def submit(
    link: Link,
    function: str,
    arguments: bytes,
    *,
    unique: str = "",
    on_progress: OnProgress | None = None,
) -> SubmittedJob:
    """Submit a foreground job and wait until the broker has accepted it.

    `unique`: at most 64 bytes. gearmand makes one job of all that share function and unique id;
    geard does not look at it. `on_progress` is called in the event loop, in order, for every
    WORK_DATA, WORK_WARNING and WORK_STATUS from the very first on; it must not block.
    Raises ConnectionLost, or RequestRefused if the broker says ERROR. No packet takes a job
    back: a queued one goes when the link is closed (gearmand may still give it to a worker in the
    millisecond after), or with `broker.admin.cancel`.
    """
    job = SubmittedJob(link, function, on_progress)
    await job.submitted(arguments, unique)
    return job


async def first_link(
    endpoints: Sequence[Endpoint],
    client_id: str,
    timeout: float,
    *,
    persist: bool = False,
    greeted: bool = True,
) -> Link:
    """A link to whichever broker answers a ping first; earlier ones get a short head start.

    `greeted`: see Link.open; without it, whichever accepts first.

    A broker that swallows everything can't hide the others. `persist`: use all of `timeout`
    seconds (a broker may be restarting) instead of giving up once every broker has refused.
    Raises BrokerUnreachable with every address and what happened there.
    """
    race = _Race(endpoints, client_id, timeout, persist=persist, greeted=greeted)
    try:
        async with asyncio.timeout(timeout):
            await race.run()
    except TimeoutError:
        log.debug("no broker answered within %g s", timeout)
    except BaseException:
        if race.winner:
            race.winner.abort("it is not needed any more")
        raise
    if race.winner:
        return race.winner
    raise BrokerUnreachable([(str(endpoint), race.reasons[endpoint]) for endpoint in endpoints])


class _Race:
    """The attempts of one `first_link`."""

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        client_id: str,
        timeout: float,
        *,
        persist: bool,
        greeted: bool,
    ) -> None:
        self.winner: Link | None = None
        self.reasons = dict.fromkeys(endpoints, f"no answer within {timeout:g} s")
        self._endpoints = endpoints
        self._client_id = client_id
        self._timeout = timeout
        self._persist = persist
        self._greeted = greeted
        self._failed = [asyncio.Event() for _ in endpoints]
        self._runners: list[asyncio.Task[None]] = []

    async def run(self) -> None:
        """Until there is a winner, or all have given up."""
        async with asyncio.TaskGroup() as group:
            self._runners = [
                group.create_task(self._try(place)) for place in range(len(self._endpoints))
            ]

    async def _try(self, place: int) -> None:
        if place:
            await self._wait_for_turn(place)
        endpoint = self._endpoints[place]
        pauses = backoff(cap=PERSIST_CAP_S)
        while True:
            try:
                link = await Link.open(
                    endpoint,
                    client_id=self._client_id,
                    timeout=self._timeout,
                    greeted=self._greeted,
                )
            except BrokerUnreachable as exc:
                [(_, self.reasons[endpoint])] = exc.attempts
                self._failed[place].set()
            else:
                self._finish(place, link)
                return
            if not self._persist:
                return
            await asyncio.sleep(next(pauses))

    def _finish(self, place: int, link: Link) -> None:
        if self.winner:
            link.abort("another broker answered first")
            return
        self.winner = link
        for other, runner in enumerate(self._runners):
            if other != place:
                runner.cancel()

    async def _wait_for_turn(self, place: int) -> None:
        """Until the one before has failed, or all before have had their head start."""
        with suppress(TimeoutError):
            async with asyncio.timeout(place * HEAD_START_S):
                await self._failed[place - 1].wait()
