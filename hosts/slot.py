"""One environment's life: built, offered, leased, turned over, offered again."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any

from broker.links import LinkSource
from hosts.admission import Admission, Bar
from hosts.caretaker import Caretaker
from hosts.holding import Holding
from hosts.holds import Holds, Leavings
from hosts.journal import Journal
from hosts.journal_holds import Statement
from hosts.journal_rows import Ended
from hosts.lease import End, Ending
from hosts.leasing import Leasing
from hosts.offering import Differs, Offering, Taken
from hosts.rebuild import Remaking
from hosts.reception import Reception
from hosts.state import (
    EFFECTS,
    Effect,
    Event,
    step,
)
from hosts.vetting import Vetting
from hosts.waiting import any_set
from schemas.control import Held, HoldRequest
from schemas.errors import HostError, TestenvError
from schemas.lock import DEFAULT_TIMEOUT_S
from schemas.plan import Environment
from schemas.status import EnvironmentReport, EnvState, Lease
from schemas.terms import Terms

log = logging.getLogger(__name__)

_FOUND = "found different"
"""In the journal: what the fence of an ended lease found that is not as planned."""
_MAX_FOUND = 2000
"""Characters of it."""
_HOOK_FAILED = "after_lease failed"


@dataclass(frozen=True)
class SlotTiming:
    """Seconds. `default_timeout_s`: a lease's length where the client names none.
    `retry_s`: pause before a BROKEN environment is built again. `journal_retry_s`: before a
    journal that could not be written is tried again."""

    terms: Terms = field(default_factory=Terms)
    default_timeout_s: float = DEFAULT_TIMEOUT_S
    retry_s: float = 60.0
    journal_retry_s: float = 5.0


class Slot:
    """Drives one environment through its states.

    It is registered with the brokers only while READY and admitted. What the journal remembers is
    gone on with: a live lease is kept, a dirty environment is turned over. `run` returns after the
    admission has been stopped; a lease that runs then is left to the next agent.
    """

    def __init__(
        self,
        caretaker: Caretaker,
        links: LinkSource,
        reception: Reception,
        journal: Journal,
        admission: Admission,
        vetting: Vetting,
        holds: Holds,
        timing: SlotTiming,
    ) -> None:
        self._caretaker = caretaker
        self._journal = journal
        self._admission = admission
        self._vetting = vetting
        self._timing = timing
        self._offering = Offering(
            caretaker, links, journal, admission, vetting, journal_retry_s=timing.journal_retry_s
        )
        self._leasing = Leasing(
            caretaker,
            reception,
            journal,
            self._record,
            admission.shutdown.leaving,
            timing.terms,
            timing.default_timeout_s,
        )
        self._holding = Holding(
            caretaker, holds, journal, self._record, admission, self._leasing.next_generation
        )
        self._reason = ""
        self._state = EnvState.BUILDING
        self._loop = asyncio.get_running_loop()
        self._since = self._loop.time()
        self._cleared = asyncio.Event()
        self._remaking = Remaking(admission)
        self.is_removed = False
        """Whether there is no such environment any more; `run` has returned then, or will."""
        self.remembered = asyncio.Event()
        """Set once it knows what the journal does."""
        self._recording: set[asyncio.Future[None]] = set()

    @property
    def id(self) -> str:
        return self._caretaker.id

    @property
    def outlives_agent(self) -> bool:
        """Whether the lease that runs can be left to the next agent."""
        return self._leasing.outlives_agent

    @property
    def lease(self) -> Lease | None:
        """The one that runs now."""
        return self._leasing.lease

    def report(self) -> EnvironmentReport:
        """The slot as it is now."""
        return EnvironmentReport(
            id=self.id,
            state=self._state,
            reason=self._trouble,
            since_s=round(self._loop.time() - self._since, 1),
            cordoned=self._admission.reason(Bar.CORDON) is not None,
            cordon_reason=self._admission.reason(Bar.CORDON) or "",
            withdrawn=self._admission.reason(Bar.SICK) or "",
            rebuilding=self._remaking.is_pending,
            rebuild_reason=self._admission.reason(Bar.REBUILD) or "",
            offered=self._offering.is_registered,
            labels=self._caretaker.labels,
            lease=self.lease,
            lease_state=self._leasing.state,
            hold=self._holding.hold,
        )

    @property
    def _trouble(self) -> str:
        parts = (self._leasing, self._offering, self._holding)
        return self._reason or next((part.trouble for part in parts if part.trouble), "")

    def revoke(self, reason: str) -> bool:
        """Have the running lease's client end its command; False if there is none to be told."""
        return self._leasing.revoke(reason)

    def clear(self) -> bool:
        """Trust it again, and build it anew; False if it is neither quarantined nor broken."""
        if self._state not in (EnvState.QUARANTINED, EnvState.BROKEN):
            return False
        self._cleared.set()
        return True

    async def hold(self, request: HoldRequest) -> Held:
        """Keep it for a person, once no lease runs in it.

        Raises HostError for what is quarantined, and as Holding.ask does.
        """
        if self._state is EnvState.QUARANTINED and not self._holding.hold:
            raise HostError(
                f"{self.id} is quarantined: it is kept as it is until somebody clears it",
                remedy="testenv clear, once you have seen enough",
            )
        return await self._holding.ask(request)

    def unhold(self) -> bool:
        """Turn it over, and offer it again; False if it is not held, nor to be."""
        return self._holding.release("an operator has ended it")

    def rebuild(self, plan: Environment | None, reason: str) -> bool:
        """Have it made anew as `plan`, or removed if that is None, once no lease runs in it.

        False if that is asked for, or under way, already.
        """
        if not self._remaking.ask(plan, reason):
            return False
        self._record(self._journal.note(self.id, Event.REBUILD, reason=reason))
        return True

    async def run(self) -> None:
        """Live until the admission is stopped, or the environment removed.

        Never raises for a broken environment.
        """
        acts: dict[Effect, Callable[[], Awaitable[Event | None]]] = {
            Effect.BUILD: self._build,
            Effect.OFFER: self._offer,
            Effect.SERVE: self._serve,
            Effect.TURN_OVER: self._turn_over,
            Effect.WAIT: self._wait_for_retry,
            Effect.REST: self._rest,
            Effect.KEEP: self._keep,
        }
        await self._remember()
        self.remembered.set()
        try:
            await self._live(acts)
        finally:
            await asyncio.gather(*self._recording, return_exceptions=True)

    async def _live(self, acts: Mapping[Effect, Callable[[], Awaitable[Event | None]]]) -> None:
        effect = EFFECTS[self._state]
        while True:
            event = await acts[effect]()
            if event is None:
                return
            event = await self._vetted(event)
            before = self._state
            self._state, effect = step(before, event)
            self._since = self._loop.time()
            if EnvState.LEASED in (before, self._state):
                continue  # the grant and the end of a lease are journalled with it
            self._record(self._journal.move(self.id, self._state, self._reason))
            log.info("%s is %s%s", self.id, self._state,
                     f": {self._reason}" if self._reason else "")  # fmt: skip

    async def _remember(self) -> None:
        """Go on where the last agent has ended."""
        remembered = await self._journal.remembered(self.id)
        self._leasing.remember(remembered)
        self._holding.remember()
        if remembered.cordoned is not None:
            self._admission.close(Bar.CORDON, remembered.cordoned)
        if remembered.live:
            self._state = EnvState.LEASED
            passed = datetime.now(UTC) - remembered.live.lease.granted
            self._since -= max(0.0, passed.total_seconds())
            log.info("%s: lease %s goes on", self.id, remembered.live.lease.id)
        elif remembered.state is EnvState.DIRTY:
            self._state = EnvState.DIRTY
        elif remembered.state is EnvState.HELD:
            self._state = EnvState.HELD
        elif remembered.state is EnvState.QUARANTINED:
            self._state, self._reason = EnvState.QUARANTINED, remembered.reason

    async def _vetted(self, event: Event) -> Event:
        """`event`, or DISTRUSTED if that is one too many of its kind."""
        if event not in (Event.BUILT, Event.TURNED_OVER, Event.FAILED):
            return event
        objection = await self._vetting.objection(event)
        if not objection:
            return event
        self._reason = ": ".join(filter(None, (objection, self._reason)))
        return Event.DISTRUSTED

    async def _build(self) -> Event | None:
        if self._remaking.asked.is_set():
            return await self._rebuild()
        if self._cleared.is_set():  # it came just when this was due anyway
            self._clear()
        return await self._attempt(Event.BUILT, self._caretaker.build, self._vetting.before_offer)

    async def _rebuild(self) -> Event | None:
        """None once it is removed."""
        plan = self._remaking.begin()
        if plan is None:
            gone = await self._attempt(Event.REBUILD, self._caretaker.remove)
            if self._remaking.asked.is_set():
                return await self._rebuild()
            left = f", but not all of it yet: {self._reason}" if gone is Event.FAILED else ""
            log.info("%s is removed%s", self.id, left)
            self.is_removed = True
            return None
        self._clear()
        make = partial(self._caretaker.rebuild, plan)
        try:
            return await self._attempt(Event.BUILT, make, self._vetting.before_offer)
        finally:
            self._remaking.end()

    async def _turn_over(self) -> Event:
        if self._holding.asked.is_set():
            return Event.KEPT
        if due := self._rebuild_if_due():
            return await self._attempt(due, self._fence, self._after_lease)
        return await self._attempt(
            Event.TURNED_OVER,
            self._fence,
            self._after_lease,
            self._caretaker.turn_over,
            self._vetting.before_offer,
        )

    async def _fence(self) -> None:
        last = self._leasing.last
        found = await self._caretaker.fence(last)
        if found:
            reason = "; ".join(str(difference) for difference in found)[:_MAX_FOUND]
            self._record(self._journal.note(self.id, _FOUND, lease=last or None, reason=reason))
            log.info("%s: %s: %s", self.id, _FOUND, reason)

    async def _after_lease(self) -> None:
        lease = self._leasing.last
        if lease and (why := await self._vetting.after_lease(lease)):
            self._record(self._journal.note(self.id, _HOOK_FAILED, lease=lease, reason=why))

    async def _attempt(self, done: Event, *acts: Callable[[], Awaitable[None]]) -> Event:
        try:
            for act in acts:
                await act()
        except TestenvError as error:
            self._reason = str(error)
            return Event.FAILED
        except Exception as error:
            log.exception("%s: a defect of the agent or its drivers", self.id)
            self._reason = f"internal error: {error!r}"
            return Event.FAILED
        self._reason = ""
        return done

    async def _wait_for_retry(self) -> Event | None:
        """For a while, and longer while the host is not well, which nothing can be made on."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._timing.retry_s):
                    return await self._rest()
            if not await self._vetting.host_trouble():
                return Event.RETRY

    async def _rest(self) -> Event | None:
        """Until an operator clears, holds or rebuilds it; None when the agent stops."""
        # What is quarantined is kept as it is already, and not to be offered after a hold.
        may_be_held = self._state is EnvState.BROKEN
        events = (self._admission.shutdown.stopped, self._cleared, self._remaking.asked)
        await any_set((*events, self._holding.asked) if may_be_held else events)
        if not self._cleared.is_set():
            return self._next_if_due() if may_be_held else self._rebuild_if_due()
        self._clear()
        return Event.CLEARED

    async def _keep(self) -> Event | None:
        """Until its hold ends; None when the agent stops."""
        return Event.UNHELD if await self._holding.keep() else None

    def _clear(self) -> None:
        self._cleared.clear()
        self._reason = ""
        self._vetting.clear()
        self._record(self._journal.note(self.id, Event.CLEARED))

    def _next_if_due(self) -> Event | None:
        """KEPT or REBUILD if that is asked for, and the agent does not stop."""
        if self._holding.asked.is_set() and not self._admission.shutdown.stopped.is_set():
            return Event.KEPT
        return self._rebuild_if_due()

    def _rebuild_if_due(self) -> Event | None:
        """REBUILD if that is asked for, and the agent does not stop."""
        stopped = self._admission.shutdown.stopped.is_set()
        return Event.REBUILD if self._remaking.asked.is_set() and not stopped else None

    async def _offer(self) -> Event | None:
        """Until it is leased, to be turned over, held or rebuilt; None when the agent stops."""
        match await self._offering.wait():
            case Taken(assignment, asked):
                self._leasing.grant(assignment, asked)
                return Event.GRANTED
            case Differs(how):
                self._reason, self._leasing.last = how, ""
                return Event.DIFFERS
        return self._next_if_due()

    async def _serve(self) -> Event | None:
        """Until the lease is over; None if it is left to the next agent."""
        lease, job = self._leasing.lease, self._leasing.job
        ending = await self._leasing.serve()
        if ending is None or lease is None:
            return None
        held_s = self._loop.time() - self._since
        log.info("%s: lease %s ended after %.1f s: %s",
                 self.id, lease.id, held_s, ending.reason)  # fmt: skip
        if ending.reason == End.NOT_JOURNALLED:
            self._offering.trouble = "no lease can be journalled"
        after = EnvState.DIRTY if ending.touched else EnvState.READY
        hold = self._hold_after(lease, job, ending) if ending.touched else ()
        self._record(
            self._journal.end(lease.id, self.id, after, ending.reason, ending.exit_code, hold)
        )
        return Event.LEASE_ENDED if ending.touched else Event.UNTOUCHED

    def _hold_after(self, lease: Lease, job: str, ending: Ending) -> tuple[Statement, ...]:
        ended = Ended(self.id, ending.reason, ending.exit_code)
        return self._holding.after_lease(Leavings(lease, job, ended, ending.hold_s))

    def _record(self, writing: Coroutine[Any, Any, None]) -> None:
        """Have it journalled, in its turn: only a grant must be on disk before we go on."""
        self._recording.add(task := asyncio.ensure_future(writing))
        task.add_done_callback(self._recorded)

    def _recorded(self, task: asyncio.Future[None]) -> None:
        self._recording.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.error("%s: a defect: not journalled", self.id, exc_info=error)
