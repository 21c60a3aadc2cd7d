"""Keep a lease: beats, the way back when a leg is lost, and the end. testenv/state.py decides."""

import asyncio
from contextlib import AsyncExitStack
from itertools import cycle
from typing import TYPE_CHECKING

from broker.client import Outcome, ProgressKind, SubmittedJob
from broker.connection import is_refusal
from broker.link import Link
from broker.worker import Assignment
from schemas.errors import (
    BrokerError,
    BrokerUnreachable,
    LeaseLost,
    LeaseTimeout,
    LockError,
    OfferRefused,
)
from schemas.legs import MAX_BEAT, Attach, Offered, Result, Resume
from schemas.lock import parse_offer
from schemas.names import lease_function, random_id
from testenv.acquire import Acquired, Wish
from testenv.guard import Guard, boottime
from testenv.line import Inbox, Line, Message, News, decline, describe_end
from testenv.state import LeaseEvent, LeaseState, Tenure, cut_s
from testenv.talk import Talk

if TYPE_CHECKING:
    from collections.abc import Iterator

    from broker.endpoint import Endpoint

_KILLED = "client killed"

_RETRY_S = 0.5
"""Between two tries to find the host again."""

_ANSWER_S = 3.0
"""How long a broker of several has to bring us to the host; another may be nearer to it."""

_SILENT_BEATS = 3
"""A host that leaves out so many beats has lost its leg, whatever the broker tells."""

_GOODBYE_S = 3.0
"""How long the host gets to confirm the end of a lease."""


class Keeper:
    """Keeps the lease in `acquired` while its command runs; `run` is for a task of its own.

    `timeout_s` is the lease's, from its offer. Lines that it opens belong to `stack`.
    """

    def __init__(
        self,
        acquired: Acquired,
        offered: Offered,
        tenure: Tenure,
        *,
        wish: Wish,
        timeout_s: float,
        guard: Guard,
        inbox: Inbox,
        stack: AsyncExitStack,
        talk: Talk,
    ) -> None:
        self._lease = offered
        self._tenure = tenure
        self._line = acquired.line
        self._leg_line: Line | None = acquired.line
        """The one whose end our host may be told of."""
        self._call = acquired.call
        self._brokers = wish.brokers
        self._callback = wish.request.callback
        self._client_id = wish.client_id
        self._timeout_s = timeout_s
        self._expires = acquired.since + timeout_s
        self._guard = guard
        self._inbox = inbox
        self._stack = stack
        self._talk = talk
        self._beat = 1
        self._sent = {1: acquired.since}
        """When each beat was sent that may still be echoed."""
        self._heard = 0
        self._heard_at = boottime()
        self._next_beat = self._heard_at + offered.terms.beat_s
        self._returning: asyncio.Task[None] | None = None
        self._is_told = False
        self._newest = 0
        """The last Resume's leg."""
        self.over: asyncio.Future[LockError] = asyncio.get_running_loop().create_future()
        self._repeated: list[Assignment] = []
        """Calls that gearmand has made again, to be answered at the end."""

    @property
    def due(self) -> float:
        """When the command is told to end, on `boottime`'s clock."""
        return min(self._tenure.due, self._expires)

    @property
    def stop_s(self) -> float:
        """How long the command may take to end then."""
        return self._tenure.stop_s

    def farewell(self) -> bytes:
        """What the guard writes in our place, if we are killed; nothing over TLS."""
        return self._call.completion(Result(_KILLED).dump())

    def last_words(self) -> tuple[str, bytes]:
        """What it submits instead, and to which function, over a connection of its own."""
        return lease_function(self._lease.id), self._attach(Result(_KILLED))

    def when_closed(self) -> tuple[float, float]:
        """What the guard does once the connection is closed, if we don't see it: see LastWill."""
        cut = self._tenure.after(LeaseEvent.CUT, 0.0)
        return cut_s(self._lease.terms) - cut.stop_s, cut.stop_s

    async def run(self) -> None:
        """Keep the lease, until cancelled.

        Goes on when it is over: if we give the connection up while the command is being ended, it
        has less time for that.
        """
        try:
            while True:
                message = await self._message()
                over = self._on_time() if message is None else self._on_message(message)
                if over and not self.over.done():
                    self.over.set_result(over)
        finally:
            await self._stop_returning()

    async def end(self, result: Result) -> None:
        """The command is dead: tell the host, which may take a while to hear it."""
        is_up = self._tenure.state is LeaseState.ACTIVE
        self._tenure = self._tenure.after(LeaseEvent.OVER, boottime())
        try:
            async with asyncio.timeout(_GOODBYE_S):
                sent = self._call.complete(result.dump())
                # A host that told us to end has ended the lock leg with that: it says no more.
                if not (sent and (self._is_told or (is_up and await self._is_heard()))):
                    await self._say_goodbye(result)
        except TimeoutError:
            self._talk.say("the environment's host did not answer; it finds out by itself")
        else:
            if result.hold_s:
                self._talk.say(f"asked for {self._lease.environment} to be held: see testenv holds")
        finally:
            for call in self._repeated:
                decline(call)

    async def _is_heard(self) -> bool:
        """Whether the host ends the lock leg; False if that is lost before."""
        while True:
            message = await self._inbox.get()
            if message.line is self._line and not message.is_stale:
                match message.news:
                    case News.ENDED:
                        return message.value.outcome is not Outcome.FAIL
                    case News.LOST:
                        return False

    async def _say_goodbye(self, result: Result) -> None:
        """Without a callback leg: by way of `lease_<id>`."""
        while True:
            try:
                line = await self._reachable(cycle(self._brokers))
                job = await line.submit(
                    lease_function(self._lease.id), self._attach(result), random_id()
                )
                await job.result()
            except BrokerError:
                await asyncio.sleep(_RETRY_S)
            else:
                return

    async def _message(self) -> Message | None:
        """The next one, or None when time has brought something."""
        if self._tenure.state is LeaseState.ENDED:
            return await self._inbox.get()
        left = min(self.due, self._next_beat) - boottime()
        if left <= 0:
            return None  # first of all: we may have been stopped (SIGSTOP) for long
        try:
            async with asyncio.timeout(left):
                return await self._inbox.get()
        except TimeoutError:
            return None

    def _on_time(self) -> LockError | None:
        now = boottime()
        if now >= self._expires:
            # The lease is kept for what its command needs to end.
            self._expires = float("inf")
            self._guard.until(self.due, self._tenure.stop_s)
            return LeaseTimeout(self._timeout_s)
        if now >= self._tenure.due:
            self._happened(LeaseEvent.DUE)
            return LeaseLost(f"its host was not heard of in {self._lease.terms.ttl_s:g} s")
        if now >= self._next_beat:
            self._send_beat(now)
        return None

    def _on_message(self, message: Message) -> LockError | None:
        match message.news:
            case News.CALL:
                self._called(message.line, message.value)
            case _ if message.line is not self._line or message.is_stale:
                return None
            case News.PROGRESS if message.value.kind is ProgressKind.STATUS:
                self._on_beat(message.value.numerator, message.value.denominator)
            case News.ENDED if message.value.outcome is not Outcome.FAIL:
                self._is_told = True
                self._happened(LeaseEvent.TOLD)
                return LeaseLost(describe_end(message.value))
            case News.ENDED:
                if message.line is self._leg_line:
                    self._leg_line = None  # its host has no connection there any more
                    self._guard.ignore_link()
                self._leg_lost(LeaseEvent.LEG_LOST, describe_end(message.value))
            case News.LOST if message.line is self._leg_line:
                self._leg_line = None
                closer = message.line.link.endpoint if message.value.by_peer else None
                self._leg_lost(LeaseEvent.CUT, str(message.value), closer)
        return None

    def _happened(self, event: LeaseEvent, sent: float = 0.0) -> None:
        before = self.due
        self._tenure = self._tenure.after(event, boottime(), sent)
        if self.due != before:
            self._guard.until(self.due, self._tenure.stop_s)

    # Beats

    def _send_beat(self, now: float) -> None:
        self._next_beat = now + self._lease.terms.beat_s
        if self._tenure.state is not LeaseState.ACTIVE:
            return
        if now - self._heard_at > _SILENT_BEATS * self._lease.terms.beat_s:
            self._leg_lost(LeaseEvent.LEG_LOST, "its host is silent")
            return
        self._beat = min(self._beat + 1, MAX_BEAT)
        self._sent[self._beat] = now
        self._call.status(self._beat, self._heard)

    def _on_beat(self, number: int, echo: int) -> None:
        self._heard, self._heard_at = number, boottime()
        if (sent := self._sent.get(echo)) is not None:
            self._happened(LeaseEvent.ECHOED, sent)
            self._sent = {beat: at for beat, at in self._sent.items() if beat >= echo}

    # The way back

    def _leg_lost(self, event: LeaseEvent, why: str, closer: "Endpoint | None" = None) -> None:
        """`closer`: the broker that has closed our connection, if that is why."""
        self._happened(event)
        if self._returning and closer:  # what was under way does not know of that
            self._returning.cancel()
            self._returning = None
        if self._returning is None and self._tenure.state is LeaseState.SUSPECT:
            self._returning = asyncio.create_task(self._return(why, closer))

    async def _return(self, why: str, closer: "Endpoint | None") -> None:
        """Ask for our lease at one broker after the other, until its host resumes it."""
        if closer:
            await self._look_at(closer)
        left_s = self.due - boottime()
        self._talk.say(
            f"{why}; the command runs on for {left_s:.0f} s while the environment's host is sought"
        )
        brokers = cycle(self._brokers)
        while True:
            try:
                line = await self._reachable(brokers)
                job = await line.submit(lease_function(self._lease.id), self._attach(), random_id())
                await self._answered(line, job)
            except (BrokerError, TimeoutError):
                pass  # that broker does not bring us there: on to the next try
            await asyncio.sleep(_RETRY_S)

    async def _look_at(self, closer: "Endpoint") -> None:
        """See at once whether the broker that has closed our connection has died.

        It refuses another then, and has told our host nothing. One that answers, or is silent, may
        have; and so may one that is back later.
        """
        try:
            await self._reachable(iter((closer,)))
        except BrokerUnreachable as error:
            if is_refusal(error.__cause__):
                self._guard.ignore_link()
                self._happened(LeaseEvent.SPARED)

    async def _answered(self, line: Line, job: SubmittedJob) -> None:
        """Wait for the job's end: no way back here. When the host resumes, this task is ended."""
        alone = len(self._brokers) == 1
        try:
            async with asyncio.timeout(None if alone else _ANSWER_S):
                await job.result()
        except TimeoutError:
            line.link.abort("another broker may know more")
            raise

    async def _reachable(self, brokers: "Iterator[Endpoint]") -> Line:
        """The line that we have, or one to the next broker. Raises BrokerError."""
        if not self._line.link.is_lost:
            return self._line
        link = await Link.open(next(brokers), client_id=self._client_id, timeout=_ANSWER_S)
        self._line = await self._stack.enter_async_context(Line(link, self._callback, self._inbox))
        return self._line

    def _attach(self, result: Result | None = None) -> bytes:
        lease = self._lease
        proof = (lease.id, lease.generation, lease.secret)
        if result is None:
            return Attach(*proof, callback=self._callback).dump()
        return Attach(*proof, "", *result).dump()

    def _called(self, line: Line, call: Assignment) -> None:
        """By our host, which is back, or by another, which gets its environment back."""
        resume = Resume.parse(call.arguments)
        ours = resume and (resume.lease, resume.generation) == (
            self._lease.id,
            self._lease.generation,
        )
        is_old = bool(ours and resume and resume.leg and resume.leg <= self._newest)
        is_lost = line is not self._line or self._tenure.state is LeaseState.ENDED
        if not ours or is_old or is_lost:
            if is_old or self._is_our_offer(call):
                self._repeated.append(call)
            else:
                decline(call)
            return
        now = boottime()
        self._newest = resume.leg if resume else 0
        self._call, self._leg_line = call, line
        self._heard, self._heard_at = 0, now
        self._beat = min(self._beat + 1, MAX_BEAT)
        self._sent[self._beat] = now
        call.status(self._beat, 0)
        self._guard.will(line.link.fileno(), self.farewell())
        if self._tenure.state is LeaseState.SUSPECT:
            self._talk.say("the environment's host is back, and the lease goes on")
        self._happened(LeaseEvent.RESUMED)
        self._next_beat = now + self._lease.terms.beat_s
        if self._returning:
            self._returning.cancel()
            self._returning = None

    def _is_our_offer(self, call: Assignment) -> bool:
        """gearmand makes a call again when its client's connection was cut and is back.

        The host would take our "declined" for the end of the lease that we have on it.
        """
        try:
            offered = Offered.of(parse_offer(call.arguments))
        except OfferRefused:
            return False
        return offered is not None and offered.id == self._lease.id

    async def _stop_returning(self) -> None:
        if self._returning:
            self._returning.cancel()
            await asyncio.gather(self._returning, return_exceptions=True)
            self._returning = None
