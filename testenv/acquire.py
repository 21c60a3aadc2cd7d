"""Ask a broker for an environment, and wait until one is ours, whatever happens to the broker."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, NamedTuple, TypeVar

from broker.client import Outcome, Progress, ProgressKind, SubmittedJob, first_link
from broker.endpoint import Endpoint
from broker.protocol import DRAINING
from broker.worker import Assignment
from schemas.errors import BrokerUnreachable, ConnectionLost, OfferRefused, RequestRefused
from schemas.legs import Offered, Resume, is_confirmation
from schemas.lock import LockRequest, parse_offer
from testenv.errors import RequestFailed
from testenv.guard import boottime
from testenv.line import Inbox, Line, Message, News, decline, describe_end
from testenv.state import LeaseEvent, Tenure
from testenv.talk import Talk

T = TypeVar("T")

RECONNECT_S = 600.0
"""How long a client that has waited at a broker waits for one to come back."""

_SILENCE_S = 1.0
_LOOK_S = 3.0
"""How often a broker is asked whether it still has our request."""

_QUICK_S = 1.0
_PAUSES_S = (0.05, 0.2, 1.0, 2.0, 5.0)
"""Before asking again, each time a request has failed within _QUICK_S; then it is given up."""


class Wish(NamedTuple):
    """What is asked for, where, and how patiently.

    `unique` names the request to brokers, the same one each time. `words`: more about it, for
    people.
    """

    brokers: Sequence[Endpoint]
    client_id: str
    function: str
    request: LockRequest
    unique: str
    connect_timeout_s: float
    words: str = ""


class Acquired(NamedTuple):
    """An environment that is ours. `offered` and `tenure` are None where its host speaks version 1.

    `job` is the lock leg's, `call` the callback leg's. `since`: when it was offered.
    """

    line: Line
    job: SubmittedJob
    call: Assignment
    document: dict[str, Any]
    since: float
    offered: Offered | None = None
    tenure: Tenure | None = None


class _TryAgain(Exception):
    """The request has ended without an environment, and nothing speaks against another."""


class Acquisition:
    """One client's wait. Made in the event loop; `acquired` is its one use.

    Its lines belong to `stack`, and so does the one in Acquired.
    """

    def __init__(
        self,
        wish: Wish,
        inbox: Inbox,
        stack: AsyncExitStack,
        grace_s: float,
        talk: Talk,
        on_asked: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_asked` is called once, when a broker has the request for the first time."""
        self._wish = wish
        self._inbox = inbox
        self._stack = stack
        self._grace_s = grace_s
        self._talk = talk
        self._on_asked = on_asked
        self._was_asked = False
        self._brokers = list(wish.brokers)
        self._clock = asyncio.get_running_loop().time
        self._reach_by: float | None = self._clock() + wish.connect_timeout_s
        """When there is no more hope to reach a broker; None while one has our request."""
        self.line: Line | None = None
        self.job: SubmittedJob | None = None
        """The request, while a broker has it."""

    async def acquired(self) -> Acquired:
        """Wait for an environment. A lost broker, or a host that fails, only means to ask again.

        Raises BrokerUnreachable if none is reached in time, OfferRefused, and RequestFailed when a
        host refuses, or requests end as soon as they are made.
        """
        failures = losses = 0
        while True:
            asked = self._clock()
            try:
                return await self._ask()
            except _TryAgain as failure:
                why = str(failure)
            except ConnectionLost as lost:
                losses = losses + 1 if self._clock() - asked < _QUICK_S else 1
                pause_s = _PAUSES_S[min(losses, len(_PAUSES_S)) - 1]
                self._lost(lost, pause_s)
                await asyncio.sleep(pause_s)
                continue
            failures = failures + 1 if self._clock() - asked < _QUICK_S else 1
            if failures > len(_PAUSES_S):
                raise RequestFailed(self._wish.function, why)
            await asyncio.sleep(_PAUSES_S[failures - 1])

    async def _ask(self) -> Acquired:
        """One request, from its submission to an environment. Raises _TryAgain, ConnectionLost."""
        wish = self._wish
        line = await self._connected()
        try:
            async with asyncio.timeout(self._reach_by and self._reach_by - self._clock()):
                self.job = await line.submit(wish.function, wish.request.dump(), wish.unique)
        except TimeoutError:
            line.link.abort("it did not answer in time")
            why = "it takes connections, and no request"
            raise BrokerUnreachable([(str(line.link.endpoint), why)]) from None
        except RequestRefused as refusal:
            if refusal.code == DRAINING:
                raise self._left(line, refusal) from None
            raise _TryAgain(str(refusal)) from refusal
        if self._reach_by is not None:
            self._reach_by = None
            if not self._was_asked:
                self._was_asked = True
                self._on_asked()
            self._talk.say(f"waiting for {wish.function} at {line.link.endpoint}{wish.words}")
        try:
            while True:
                message = await self._next_or_look(line, self.job)
                if message.news is News.CALL and (found := await self._take(line, message.value)):
                    return found
        except (_TryAgain, ConnectionLost):
            self.job = None
            raise

    async def _connected(self) -> Line:
        """The line that we have, or a new one."""
        if self.line and not self.line.link.is_lost:
            return self.line
        wish = self._wish
        patience_s = RECONNECT_S if self._reach_by is None else self._reach_by - self._clock()
        async with running(self._tell_silence(patience_s)):
            link = await first_link(
                self._brokers,
                wish.client_id,
                max(0.0, patience_s),
                persist=True,
                # A lone broker is asked at once: whether it lives, its answer shows.
                greeted=len(wish.brokers) > 1,
            )
        self.line = await self._stack.enter_async_context(
            Line(link, wish.request.callback, self._inbox)
        )
        return self.line

    def _left(self, line: Line, refusal: RequestRefused) -> ConnectionLost:
        """A broker that is about to stop: another is asked first, or the same when it is back."""
        line.link.abort("it is about to stop")
        self._brokers.sort(key=lambda broker: broker == line.link.endpoint)
        return ConnectionLost(refusal.address, refusal.text)

    async def _tell_silence(self, patience_s: float) -> None:
        await asyncio.sleep(_SILENCE_S)
        brokers = ", ".join(map(str, self._wish.brokers))
        self._talk.say(f"no broker answers yet at {brokers}; trying for {patience_s:.0f} s")

    def _lost(self, lost: ConnectionLost, pause_s: float) -> None:
        """The broker is lost: ask another, or the same when it is back.

        Raises `lost` again if the broker has refused us, BrokerUnreachable if time is up before a
        pause of `pause_s` is over.
        """
        if isinstance(lost.__cause__, RequestRefused):
            raise lost
        if self._reach_by is None:
            self._reach_by = self._clock() + RECONNECT_S
            self._talk.say(f"{lost}; asking again")
        elif self._clock() + pause_s >= self._reach_by:
            raise BrokerUnreachable([(lost.address, lost.why)]) from lost

    async def _next_or_look(self, line: Line, job: SubmittedJob) -> Message:
        """As `_next`; raises _TryAgain also when the broker has forgotten the request.

        gearmand adds one that is made again to the same one of a lost connection, which it then
        drops.
        """
        while True:
            try:
                async with asyncio.timeout(_LOOK_S):
                    return await self._next(line)
            except TimeoutError:
                if not (await job.status()).known:
                    raise _TryAgain("the broker has forgotten it") from None

    async def _next(self, line: Line) -> Message:
        """The next message that matters to a request on `line`.

        Raises _TryAgain when the request is over, RequestFailed if it is refused, ConnectionLost.
        """
        while True:
            message = await self._inbox.get()
            if message.line is not line or message.is_stale:
                continue
            match message.news:
                case News.LOST:
                    lost: ConnectionLost = message.value
                    raise ConnectionLost(lost.address, lost.why) from lost.__cause__
                case News.ENDED if message.value.outcome is Outcome.EXCEPTION:
                    raise RequestFailed(self._wish.function, describe_end(message.value))
                case News.ENDED:
                    raise _TryAgain(describe_end(message.value))
            return message

    async def _take(self, line: Line, call: Assignment) -> Acquired | None:
        """Take an offer, and wait for its host to confirm; None if it is none, or comes to none."""
        job, since = self.job, boottime()
        if job is None or Resume.parse(call.arguments):
            decline(call)
            return None
        try:
            document = parse_offer(call.arguments)
            offered = Offered.of(document)
        except OfferRefused:
            decline(call)
            raise
        if offered is None:
            return Acquired(line, job, call, document, since)
        call.status(1, 0)
        tenure = Tenure.acked(offered.terms, self._grace_s, since)
        try:
            async with asyncio.timeout(tenure.due - since):
                await self._confirmed(line, offered)
        except TimeoutError:
            decline(call)
            return None
        except BaseException:  # a signal too: whoever offered should not wait for us
            decline(call)
            raise
        tenure = tenure.after(LeaseEvent.CONFIRMED, boottime(), sent=since)
        return Acquired(line, job, call, document, since, offered, tenure)

    async def _confirmed(self, line: Line, offered: Offered) -> None:
        while True:
            message = await self._next(line)
            if message.news is News.CALL:
                decline(message.value)
            elif _confirms(message.value, offered.id):
                return


def _confirms(progress: Progress, lease_id: str) -> bool:
    return progress.kind is ProgressKind.DATA and is_confirmation(progress.data, lease_id)


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
