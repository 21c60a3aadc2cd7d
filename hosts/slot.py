"""One environment's life: built, offered, leased, turned over, offered again."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from uuid import uuid4

from broker.links import LinkSource
from broker.worker import Assignment, Worker
from hosts.admission import Admission
from hosts.caretaker import Caretaker
from hosts.lease import End, LeaseTiming, serve_lease
from hosts.state import EFFECTS, Effect, Event, ForbiddenTransition, step
from schemas.errors import TestenvError
from schemas.lock import DEFAULT_TIMEOUT_S, BadLockRequest, LockRequest
from schemas.names import lock_functions
from schemas.status import EnvironmentReport, EnvState, Lease

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SlotTiming:
    """Seconds. `default_timeout_s`: a lease's length where the client names none.
    `retry_s`: pause before a BROKEN environment is built again."""

    lease: LeaseTiming = field(default_factory=LeaseTiming)
    default_timeout_s: float = DEFAULT_TIMEOUT_S
    retry_s: float = 60.0


@dataclass(frozen=True)
class Grant:
    """A lock request that was assigned to us, and the lease it gets."""

    assignment: Assignment
    request: LockRequest
    lease: Lease


class Slot:
    """Drives one environment through its states, and is its one Gearman worker.

    Registered with the brokers only while READY and admitted. `run` returns after the admission
    has been stopped and the lease that ran, if any, is over.
    """

    def __init__(
        self,
        caretaker: Caretaker,
        links: LinkSource,
        admission: Admission,
        timing: SlotTiming,
    ) -> None:
        self._caretaker = caretaker
        self._links = links
        self._worker = Worker(links, lock_functions(caretaker.labels))
        self._admission = admission
        self._timing = timing
        self._generation = 0
        self._grant: Grant | None = None
        self._reason = ""
        self._state = EnvState.BUILDING
        self._since = asyncio.get_running_loop().time()

    @property
    def leased(self) -> bool:
        return self._state is EnvState.LEASED

    def report(self) -> EnvironmentReport:
        """The slot as it is now."""
        return EnvironmentReport(
            id=self._caretaker.id,
            state=self._state,
            reason=self._reason,
            since_s=round(asyncio.get_running_loop().time() - self._since, 1),
            cordoned=self._admission.cordoned,
            labels=self._caretaker.labels,
            lease=self._grant.lease if self._grant else None,
        )

    async def run(self) -> None:
        """Live until the admission is stopped. Never raises for a broken environment."""
        acts: dict[Effect, Callable[[], Awaitable[Event | None]]] = {
            Effect.BUILD: self._build,
            Effect.OFFER: self._offer,
            Effect.SERVE: self._serve,
            Effect.TURN_OVER: self._turn_over,
            Effect.WAIT: self._wait_for_retry,
        }
        effect = EFFECTS[self._state]
        while True:
            event = await acts[effect]()
            if event is None:
                return
            self._state, effect = step(self._state, event)
            self._since = asyncio.get_running_loop().time()
            if self._state is not EnvState.LEASED:  # of that the lease itself tells
                log.info("%s is %s%s", self._caretaker.id, self._state,
                         f": {self._reason}" if self._reason else "")  # fmt: skip

    async def _build(self) -> Event:
        return await self._attempt(self._caretaker.build, Event.BUILT)

    async def _turn_over(self) -> Event:
        return await self._attempt(self._caretaker.turn_over, Event.TURNED_OVER)

    async def _attempt(self, act: Callable[[], Awaitable[None]], done: Event) -> Event:
        try:
            await act()
        except TestenvError as error:
            self._reason = str(error)
            return Event.FAILED
        except Exception as error:
            log.exception("%s: a defect of the agent or its drivers", self._caretaker.id)
            self._reason = f"internal error: {error!r}"
            return Event.FAILED
        self._reason = ""
        return done

    async def _wait_for_retry(self) -> Event | None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._timing.retry_s):
                await self._admission.stopped.wait()
        return None if self._admission.stopped.is_set() else Event.RETRY

    async def _offer(self) -> Event | None:
        """Be registered until a usable request comes; None when the agent stops."""
        while await self._admission.admitted():
            assignment = await self._worker.take(self._admission.closed)
            if assignment is None:
                continue
            try:
                request = LockRequest.parse(assignment.arguments)
            except BadLockRequest as bad:
                log.warning("%s: a lock request was refused: %s", self._caretaker.id, bad)
                assignment.fail()
                continue
            lease = self._new_lease(request, assignment.submitter)
            self._grant = Grant(assignment, request, lease)
            return Event.GRANTED
        return None

    async def _serve(self) -> Event:
        if self._grant is None:
            raise ForbiddenTransition(self._state, Event.GRANTED)
        assignment, request, lease = (
            self._grant.assignment,
            self._grant.request,
            self._grant.lease,
        )
        try:
            data = self._caretaker.data_file(lease)
            end = await serve_lease(
                assignment, request, lease, data, self._links, self._timing.lease
            )
        except Exception:
            # A defect here must not end the other environments' leases. Whether this one's client
            # runs is unknown now; that it does not is certain only at the lease's own end.
            log.exception("%s: lease %s failed", self._caretaker.id, lease.id)
            self._reason = "internal error; kept until its lease's timeout"
            await asyncio.sleep(lease.timeout_s + self._timing.lease.margin_s)
            assignment.fail()
            end = End.TIMED_OUT
        held_s = asyncio.get_running_loop().time() - self._since
        log.info("%s: lease %s ended after %.1f s: %s", self._caretaker.id, lease.id, held_s, end)
        self._grant = None
        return Event.LEASE_ENDED

    def _new_lease(self, request: LockRequest, submitter: str) -> Lease:
        self._generation += 1
        return Lease(
            id=uuid4().hex,
            environment=self._caretaker.id,
            generation=self._generation,
            holder=request.holder,
            submitter=submitter,
            granted=datetime.now(UTC),
            timeout_s=request.timeout_s or self._timing.default_timeout_s,
        )
