"""One lease from its offer to its end, as version 2 has it: two legs, beats, re-attachment.

hosts/state.py decides; this sends and hears. docs/leases.md explains the guarantee.
"""

import asyncio
import hashlib
import hmac
import logging
import time
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Any
from uuid import uuid4

from broker.client import Outcome, Progress, ProgressKind, SubmittedJob, submit
from broker.protocol import UNCERTAIN_LOSS
from broker.worker import Assignment
from hosts.reception import Reception
from hosts.state import LeaseEvent, LeaseState, Tenure
from schemas.errors import BrokerError, ConnectionLost, JournalError
from schemas.legs import MAX_BEAT, Attach, BadMessage, Result, Resume, confirmation
from schemas.status import Lease

log = logging.getLogger(__name__)

_LATE_BEATS = 1.5
"""A client that is silent for so long may be gone."""

_ATTEMPTS = 4
"""How many re-attachments of one lease may be under way; the rest is somebody's flood."""


def secret_hash(secret: str) -> str:
    """What the journal keeps of a lease's secret. The secret is random: no salt is needed."""
    return hashlib.sha256(secret.encode()).hexdigest()


class End(StrEnum):
    """How a lease ended, for people."""

    COMPLETED = "completed"
    DECLINED = "the client did not want it"
    UNTAKEN = "no client took it"
    NOT_JOURNALLED = "it could not be journalled"
    CUT = "the client is gone"
    SILENT = "nothing was heard of the client in time"
    OUT_OF_TIME = "its time is over"


@dataclass(frozen=True)
class Ending:
    """`reason` is for people; `touched`: whether a command may have run; `exit_code`: its, if the
    client has told it; `hold_s`: how long the client wishes its leavings kept, if it does."""

    reason: str
    touched: bool
    exit_code: int | None = None
    hold_s: float | None = None


@dataclass(frozen=True)
class Grant:
    """What a lease begins with; of its secret only the hash is kept."""

    lease: Lease
    callback: str
    secret_hash: str


class _Leg:
    """Both legs as one: `up` is the client's job, on which we speak; the callback is ours."""

    def __init__(self, up: Assignment) -> None:
        self.up = up
        self.callback: SubmittedJob | None = None
        self.heard_at = 0.0
        """When anything came on it, in the event loop's time."""
        self.looking = False
        """Whether the broker is being asked about it."""
        self.heard = 0
        """The last beat of the client that came on this leg and counts."""
        self.uncertain = False
        """Whether the broker has said that it does not know why the client was silent."""
        self.is_over = False
        """Whether another has taken its place."""


class HeldLease:
    """Keeps one lease until it is over. `note` is told what happens, for the journal."""

    def __init__(
        self,
        grant: Grant,
        tenure: Tenure,
        expires: float,
        reception: Reception,
        note: Callable[[LeaseEvent, str], None],
    ) -> None:
        """`expires`: when the client is told to end, in the event loop's time."""
        self._grant = grant
        self._lease = grant.lease
        self._tenure = tenure
        self._expires = expires
        self._reception = reception
        self._note = note
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[_Leg | None, LeaseEvent, Any]] = asyncio.Queue()
        self._leg: _Leg | None = None
        self._beat = 0
        self._next_beat = float("inf")
        self._told = ""
        self._why = ""
        self._result: Result | None = None
        self._granting: asyncio.Future[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._attempts: list[_Leg] = []
        """The re-attachments that are under way."""
        self._newest = 0
        """The number of the last one."""
        self._desk = ExitStack()

    @property
    def state(self) -> LeaseState:
        return self._tenure.state

    def tell_to_end(self, reason: str) -> None:
        """Have the client end its command; the lease ends when it has, or can't any more."""
        self._events.put_nowait((None, LeaseEvent.TOLD, reason))

    async def offer(
        self, assignment: Assignment, data: bytes, granting: Coroutine[Any, Any, None]
    ) -> Ending:
        """Offer `data` to the client behind `assignment`; return when the lease is over.

        `granting` journals the grant: nothing is confirmed before that is done.
        """
        leg = self._leg = _Leg(assignment)
        self._granting = asyncio.ensure_future(granting)
        try:
            self._spawn(self._call(leg, data))
            ending = await self._until_over()
        finally:
            await asyncio.wait([self._granting], timeout=self._tenure.terms.untaken_s)
        if not ending.touched and leg.callback and not leg.callback.is_over:
            # Nobody took it: it is still queued. No packet withdraws a job; closing does.
            await assignment.link.aclose()
        return ending

    async def resume(self) -> Ending:
        """Wait for the client of a lease that an earlier agent granted."""
        self._open_desk()
        return await self._until_over()

    async def _until_over(self) -> Ending:
        with self._desk:
            try:
                while self._tenure.state is not LeaseState.ENDED:
                    await self._live()
            finally:
                for task in self._tasks:
                    task.cancel()
                await asyncio.gather(*self._tasks, return_exceptions=True)
            if self._leg and self._tenure.touched:
                self._leg.up.complete()
            elif self._leg:
                # gearmand gives us the request of an agent that it has lost: its client may have a
                # lease on it, of which we can't say that it is over.
                self._leg.up.fail()
        told = self._result or Result(self._why)
        return Ending(self._why, self._tenure.touched, told.exit_code, told.hold_s)

    def _open_desk(self) -> None:
        self._desk.enter_context(self._reception.open_for(self._lease.id, self._called))

    async def _live(self) -> None:
        """Hear the next event, or see what time has brought."""
        soonest = min(self._tenure.due, self._next_beat, self._expires)
        try:
            async with asyncio.timeout_at(soonest):
                leg, event, value = await self._events.get()
        except TimeoutError:
            self._on_time()
            return
        if leg and leg is not self._leg and event is not LeaseEvent.RESUMED:
            return  # of an earlier leg
        if event is LeaseEvent.ACKED and not await self._is_journalled():
            return
        if leg and event is LeaseEvent.RESUMED:
            self._follow(leg)
        self._happened(event, value)

    def _follow(self, leg: _Leg) -> None:
        """The client is on `leg` now: it has left all others."""
        for other in (self._leg, *self._attempts):
            if other and other is not leg and not other.is_over:
                other.is_over = True
                other.up.complete()
        self._attempts.clear()
        self._leg = leg

    def _on_time(self) -> None:
        now = self._loop.time()
        if now >= self._tenure.due:
            self._happened(LeaseEvent.DUE, None)
        elif now >= self._expires:
            self._expires = float("inf")
            self._happened(LeaseEvent.TOLD, End.OUT_OF_TIME)
        elif now >= self._next_beat:
            self._send_beat()

    def _happened(self, event: LeaseEvent, value: Any) -> None:
        before = self._tenure
        self._tenure = before.after(event, self._loop.time())
        if self._leg and (before.echoes(event) or event in _FIRST_BEATS):
            self._leg.heard = max(self._leg.heard, value)
        if self._tenure.state is not before.state:
            self._entered(event, value)
        elif event is LeaseEvent.RESUMED and self._leg:
            if self._tenure.state is LeaseState.ACTIVE:
                self._send_beat()  # its client was back before we had missed it, and is in a hurry
            elif self._tenure.state is LeaseState.ENDING:
                self._leg.up.exception(self._told.encode())  # the client came back too late to hear

    def _entered(self, event: LeaseEvent, value: Any) -> None:
        """Act on a change of state."""
        lease = self._lease
        name = f"{lease.environment}: lease {lease.id}"
        self._next_beat = float("inf")
        match self._tenure.state:
            case LeaseState.ACTIVE:
                if event is LeaseEvent.ACKED and self._leg:
                    self._leg.up.data(confirmation(lease.id))
                    self._open_desk()
                    log.info("%s to %s (%s)", name, lease.holder, lease.submitter)
                else:
                    self._note(event, "")
                    log.info("%s: its client is back", name)
                self._send_beat()
            case LeaseState.SUSPECT:
                self._note(event, "")
                left_s = self._tenure.due - self._loop.time()
                log.warning("%s: %s; waiting %.0f s for it", name, _SUSPICIONS[event], left_s)
            case LeaseState.ENDING:
                self._told = value
                self._note(event, value)
                log.info("%s is told to end: %s", name, value)
                if self._leg:
                    self._leg.up.exception(value.encode())
            case LeaseState.ENDED:
                self._why = self._ending(event, value)
                if event is LeaseEvent.COMPLETED and isinstance(value, Result):
                    self._result = value

    def _ending(self, event: LeaseEvent, value: Any) -> str:
        if self._told:
            return self._told
        if event is LeaseEvent.COMPLETED and isinstance(value, Result):
            return value.reason
        if event is LeaseEvent.DUE and not self._tenure.touched:
            return End.UNTAKEN
        if event is LeaseEvent.TOLD:
            return str(value)
        return _ENDS[event]

    async def _is_journalled(self) -> bool:
        """Before anything is confirmed; if it can't be, the client gets nothing."""
        if self._granting is None:
            return True
        try:
            async with asyncio.timeout_at(self._tenure.due):
                await asyncio.shield(self._granting)
        except (JournalError, TimeoutError) as error:
            why = str(error) or "the journal's disk does not answer"
            log.warning("%s: no lease can be granted: %s", self._lease.environment, why)
            self._happened(LeaseEvent.TOLD, End.NOT_JOURNALLED)
            return False
        return True

    # Legs

    def _send_beat(self) -> None:
        """Only while ACTIVE: an echo is a promise."""
        self._next_beat = self._loop.time() + self._tenure.terms.beat_s
        if self._leg:
            self._beat = min(self._beat + 1, MAX_BEAT)
            self._leg.up.status(self._beat, self._leg.heard)
            late_s = _LATE_BEATS * self._tenure.terms.beat_s
            if self._loop.time() - self._leg.heard_at > late_s and not self._leg.looking:
                self._spawn(self._look(self._leg))

    async def _look(self, leg: _Leg) -> None:
        """Is the client still connected? gearmand keeps a lost one's job, and tells nobody."""
        leg.looking = True
        try:
            if leg.callback and not (await leg.callback.status()).running:
                self._tell(leg, LeaseEvent.CUT, None)
        except ConnectionLost:
            pass  # `_call` tells of that
        finally:
            leg.looking = False

    async def _call(self, leg: _Leg, data: bytes) -> None:
        """Submit the callback, and hear what becomes of it."""
        try:
            leg.callback = await submit(
                leg.up.link,
                self._grant.callback,
                data,
                unique=uuid4().hex,
                on_progress=partial(self._progress, leg),
            )
            result = await leg.callback.result()
        except ConnectionLost as lost:
            log.info("%s: lease %s: %s", self._lease.environment, self._lease.id, lost)
            self._tell(leg, LeaseEvent.UNREACHED, None)
        except BrokerError as error:
            log.warning("%s: no client could be called: %s", self._lease.environment, error)
            self._tell(leg, LeaseEvent.UNREACHED, None)
        else:
            event = _OUTCOMES[result.outcome]
            if event is LeaseEvent.CUT and leg.uncertain:
                event = LeaseEvent.UNREACHED
            self._tell(leg, event, Result.parse(result.data))

    def _progress(self, leg: _Leg, progress: Progress) -> None:
        if leg.is_over:
            return
        if progress.kind is ProgressKind.WARNING:
            leg.uncertain = leg.uncertain or progress.data == UNCERTAIN_LOSS
        elif progress.kind is ProgressKind.STATUS:
            leg.heard_at = self._loop.time()
            if leg is not self._leg:
                event = LeaseEvent.RESUMED
            elif self._tenure.state is LeaseState.OFFERED:
                event = LeaseEvent.ACKED
            else:
                event = LeaseEvent.BEAT
            self._tell(leg, event, progress.numerator)

    def _tell(self, leg: _Leg, event: LeaseEvent, value: Any) -> None:
        self._events.put_nowait((leg, event, value))

    def _called(self, call: Assignment) -> None:
        """The client has come back, or its guard says that it has not: `lease_<id>`."""
        try:
            attach = Attach.parse(call.arguments)
        except BadMessage as bad:
            call.exception(f"not understood: {bad}".encode())
            return
        known = (attach.lease, attach.generation) == (self._lease.id, self._lease.generation)
        right = hmac.compare_digest(secret_hash(attach.secret), self._grant.secret_hash)
        self._attempts = [one for one in self._attempts if not one.up.is_over]
        if not (known and right):
            log.warning("%s: lease %s: a stranger (%s) asked for it",
                        self._lease.environment, self._lease.id, call.submitter)  # fmt: skip
            call.exception(b"refused")
        elif len(self._attempts) >= _ATTEMPTS:
            call.exception(b"too many at a time")
        elif told := attach.told:
            call.complete()
            self._events.put_nowait((None, LeaseEvent.COMPLETED, told))
        elif self._told:
            call.exception(self._told.encode())
        elif attach.callback == self._grant.callback:
            # By the wall clock, so that a restarted agent counts on; one that was set back
            # costs no more than that its next second's legs look like older ones.
            self._newest = max(self._newest + 1, time.time_ns() // 1_000_000)
            resume = Resume(self._lease.id, self._lease.generation, self._newest)
            self._attempts.append(leg := _Leg(call))
            self._spawn(self._call(leg, resume.dump()))
        else:
            call.exception(b"refused")

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


_FIRST_BEATS = (LeaseEvent.ACKED, LeaseEvent.RESUMED)

_OUTCOMES = {
    Outcome.COMPLETE: LeaseEvent.COMPLETED,
    Outcome.EXCEPTION: LeaseEvent.DECLINED,
    Outcome.FAIL: LeaseEvent.CUT,
}

_SUSPICIONS = {
    LeaseEvent.UNREACHED: "its client can't be heard",
    LeaseEvent.CUT: "its client's connection was closed",
}

_ENDS = {
    LeaseEvent.COMPLETED: End.COMPLETED,
    LeaseEvent.DECLINED: End.DECLINED,
    LeaseEvent.UNREACHED: End.UNTAKEN,
    LeaseEvent.CUT: End.CUT,
    LeaseEvent.DUE: End.SILENT,
}
