"""Ask a broker for an environment, and wait until one is offered."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

from broker.client import JobResult, JobStatus, Outcome, SubmittedJob, submit
from broker.endpoint import Endpoint
from broker.link import Link
from broker.links import OneLink
from broker.worker import Assignment, Worker
from schemas.errors import BrokerError, ConnectionLost, NoEnvironment
from schemas.lock import LockRequest, lost_lease
from schemas.names import host_of_function
from testenv.errors import RequestFailed
from testenv.talk import Talk

if TYPE_CHECKING:
    from broker.admin import FunctionStatus

_HOST_WATCH_S = 5.0
_NEXT_CALL_S = 0.02
_FIRST_NEWS_S = 2.0
_NEWS_S = 30.0
_LIVE_NEWS_S = 2.0
_STATUS_S = 2.0
_WITHDRAW_S = 1.0

T = TypeVar("T")


class Lock:
    """One lock request, on one link.

    `offer` is the first offer. All others are declined at once: a broker may requeue a lock
    request, and another agent should not wait for a client that has its environment already.
    `ended` is the end of the request; it raises ConnectionLost. `lost` is the reason why `lease`
    (the held lease's id, set by who takes the offer) is lost although the request goes on.
    """

    offer: asyncio.Future[Assignment]
    ended: asyncio.Task[JobResult]
    lost: asyncio.Future[str]

    def __init__(self, link: Link, function: str, worker: Worker) -> None:
        self.link = link
        self.function = function
        self._worker = worker
        self.job: SubmittedJob | None = None
        """The request, as soon as the broker has it."""
        self.lease: str | None = None
        loop = asyncio.get_running_loop()
        self.offer = loop.create_future()
        self.lost = loop.create_future()

    async def serve_offers(self) -> None:
        """Answer all calls: take the first offer, decline the rest. Ends with the link."""
        with suppress(ConnectionLost):
            while call := await self._worker.take():
                if lease := lost_lease(call.arguments):
                    call.complete()
                    if lease == self.lease:
                        self._lose("the environment's host has lost it, and says so")
                elif self.offer.done():
                    _decline(call)
                else:
                    self.offer.set_result(call)
                    # The next call can wait until the command runs; the command should not.
                    await asyncio.sleep(_NEXT_CALL_S)

    async def situation(self) -> str:
        """Why one waits, in words, as far as the broker tells."""
        place = await self._place()
        if place and place.numerator > 1:
            return describe_place(place)
        # Whoever is first in a queue asks for all in it why nothing comes: a broker's status
        # takes a connection, lists every function, and is not for everybody.
        status = await situation(self.link.endpoint, self.function)
        if place is None:
            return status or f"broker {self.link.endpoint} does not tell its status"
        return "; ".join(part for part in (status, describe_place(place)) if part)

    async def _place(self) -> JobStatus | None:
        """Of the request in its queue; None if the broker does not tell."""
        if self.job is None:
            return None
        try:
            async with asyncio.timeout(_STATUS_S):
                status = await self.job.status()
        except (ConnectionLost, TimeoutError):
            return None  # if it is lost, `ended` tells
        return status if status.known and not status.running and status.denominator else None

    async def watch_host(self, job: SubmittedJob) -> None:
        """Notice that the host of a taken offer is gone.

        gearmand 1.1.20 puts the request of a host that died back into its queue, and tells nobody.
        """
        with suppress(ConnectionLost):
            await asyncio.shield(self.offer)
            while True:
                await asyncio.sleep(_HOST_WATCH_S)
                if not (await job.status()).running:
                    break
            self._lose("the environment's host is gone")

    def _lose(self, why: str) -> None:
        if not self.lost.done():
            self.lost.set_result(why)

    async def first_offer(self) -> Assignment:
        """Wait for it. Raises RequestFailed or ConnectionLost when there will be none."""
        await any_of(self.offer, self.ended)
        if not self.offer.done():
            raise RequestFailed(self.function, describe_end(self.ended.result()))
        return self.offer.result()

    async def withdraw(self) -> None:
        """Decline whatever has been offered and was not completed; the last to be called."""
        if self.offer.done():
            _decline(self.offer.result())
        over = asyncio.Event()
        over.set()
        with suppress(ConnectionLost, TimeoutError):
            async with asyncio.timeout(_WITHDRAW_S):
                while late := await self._worker.take(over):
                    _decline(late)


def _decline(offer: Assignment) -> None:
    """Give back what nobody has touched. WORK_FAIL is what a lost client looks like."""
    offer.exception(b"declined")


@asynccontextmanager
async def lock_requested(
    link: Link, function: str, request: LockRequest, unique: str
) -> AsyncIterator[Lock]:
    """A lock request for as long as the context lasts; `unique` names it to the broker.

    The callback is registered before the request is sent, so that an agent never finds nobody.
    Raises ConnectionLost, RequestRefused.
    """
    lock = Lock(link, function, Worker(OneLink(link), [request.callback]))
    try:
        async with running(lock.serve_offers()):
            await asyncio.sleep(0)  # its first step registers the callback
            job = lock.job = await submit(link, function, request.dump(), unique=unique)
            async with running(job.result()) as lock.ended, running(lock.watch_host(job)):
                yield lock
    finally:
        await lock.withdraw()


async def wait_for_offer(lock: Lock, wait_timeout_s: float | None, talk: Talk) -> Assignment:
    """Wait, telling every now and then what for.

    Raises NoEnvironment after `wait_timeout_s` seconds (None: wait for ever), RequestFailed,
    ConnectionLost.
    """
    async with running(_tell_news(lock, talk)):
        try:
            async with asyncio.timeout(wait_timeout_s):
                return await lock.first_offer()
        except TimeoutError as exc:
            news = await lock.situation()
            raise NoEnvironment(lock.function, wait_timeout_s or 0, news) from exc


async def _tell_news(lock: Lock, talk: Talk) -> None:
    loop = asyncio.get_running_loop()
    start = loop.time()
    await asyncio.sleep(_FIRST_NEWS_S)
    while True:
        news = await lock.situation()
        talk.say_in_place(f"waiting for {loop.time() - start:.0f} s: {news}")
        await asyncio.sleep(_LIVE_NEWS_S if talk.is_live else _NEWS_S)


async def situation(endpoint: Endpoint, function: str) -> str:
    """What the broker's status says of `function`, in words; nothing if it does not tell."""
    from broker import admin  # who waits has the time; who need not, does without

    try:
        rows = await admin.status(endpoint, timeout=_STATUS_S)
    except BrokerError:
        return ""
    return describe_queue(function, rows)


def describe_place(place: JobStatus) -> str:
    """Where a queued request is, for a person who waits."""
    return f"place {place.numerator} of {place.denominator} in the queue"


def describe_queue(function: str, rows: "Sequence[FunctionStatus]") -> str:
    """What the broker's status says of `function`, for a person who waits for it."""
    row = next((row for row in rows if row.name == function), None)
    if row is None or row.workers == 0:
        hosts = sum(1 for row in rows if host_of_function(row.name) and row.workers)
        if not hosts:
            return f"no environment is registered for {function}"
        # All may be leased under other labels, or in turnover, or broken, or cordoned.
        return f"no environment is ready for {function}; see testenv status"
    leased = "all leased" if row.running >= row.workers else f"{row.running} leased"
    environments = f"{row.workers} environment{'s' if row.workers != 1 else ''}"
    requests = f"{row.queued} request{'s' if row.queued != 1 else ''}"
    return f"{environments}, {leased}; {requests} waiting"


def describe_end(result: JobResult) -> str:
    """How a lock request ended, in words that begin with what the environment's host did."""
    match result.outcome:
        case Outcome.COMPLETE:
            return "the environment's host ended the lease"
        case Outcome.FAIL:
            return "the environment's host failed or is gone"
        case Outcome.EXCEPTION:
            return f"the environment's host says: {result.data.decode(errors='replace')}"


async def any_of(*futures: asyncio.Future[Any], timeout: float | None = None) -> None:
    """Wait until one of them is done, or for `timeout` seconds."""
    await asyncio.wait(futures, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)


@asynccontextmanager
async def running(coroutine: Coroutine[Any, Any, T]) -> AsyncIterator[asyncio.Task[T]]:
    """`coroutine` as a task that does not outlive the context.

    A TaskGroup would wrap what the context raises into an ExceptionGroup.
    """
    task = asyncio.create_task(coroutine)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
