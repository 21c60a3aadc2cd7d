"""The leases of one environment, one after the other: granted, kept to their end, remembered."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from broker.worker import Assignment
from hosts import lease_v1
from hosts.caretaker import Caretaker
from hosts.journal import Journal
from hosts.journal_rows import Remembered, StoredLease
from hosts.lease import End, Ending, Grant, HeldLease, secret_hash
from hosts.reception import Reception
from hosts.state import LeaseEvent, Tenure
from schemas.errors import JournalError
from schemas.lock import LockRequest
from schemas.names import random_id
from schemas.status import Lease
from schemas.terms import Terms

log = logging.getLogger(__name__)

_AGENT_RESTART = "the agent has started again"

Record = Callable[[Coroutine[Any, Any, None]], None]
"""Has something journalled, in its turn, without waiting for it."""


@dataclass(frozen=True)
class _Request:
    """A lock request that was assigned to us, and the secret of what it gets."""

    assignment: Assignment
    asked: LockRequest
    secret: str


class Leasing:
    """Grants an environment's leases, and keeps the one that runs.

    `terms` and `default_timeout_s` (where the client names none) are of new leases. `leaving`: the
    agent goes, and leaves the lease that runs to the next one.
    """

    def __init__(
        self,
        caretaker: Caretaker,
        reception: Reception,
        journal: Journal,
        record: Record,
        leaving: asyncio.Event,
        terms: Terms,
        default_timeout_s: float,
    ) -> None:
        self._caretaker = caretaker
        self._reception = reception
        self._journal = journal
        self._record = record
        self._leaving = leaving
        self._terms = terms
        self._default_timeout_s = default_timeout_s
        self._loop = asyncio.get_running_loop()
        self._generation = 0
        self._request: _Request | None = None
        self._stored: StoredLease | None = None
        self._held: HeldLease | None = None
        self.last = ""
        """The id of the newest that was granted; "" if there was none."""
        self.trouble = ""
        """What is wrong with the one that runs, for people."""

    @property
    def lease(self) -> Lease | None:
        """The one that runs now."""
        return self._stored.lease if self._stored else None

    @property
    def state(self) -> str:
        """Its state; "" in version 1, and without one."""
        return self._held.state.value if self._held else ""

    @property
    def outlives_agent(self) -> bool:
        """Whether it can be left to the next agent."""
        return self._held is not None

    def remember(self, remembered: Remembered) -> None:
        """Count on from, and go on with, what the journal says."""
        self._generation = remembered.generation
        self.last = remembered.last_lease
        self._stored = remembered.live

    def next_generation(self) -> int:
        """For new credentials: it has never been given before."""
        self._generation += 1
        return self._generation

    @property
    def job(self) -> str:
        """The one of the lease that runs now, as its client names it; "" if there is none."""
        return self._stored.job if self._stored else ""

    def grant(self, assignment: Assignment, asked: LockRequest) -> None:
        """Give the environment to who has asked; `serve` offers it to them."""
        secret = random_id()
        lease = Lease(
            id=random_id(),
            environment=self._caretaker.id,
            generation=self.next_generation(),
            holder=asked.holder,
            submitter=assignment.submitter,
            granted=datetime.now(UTC),
            timeout_s=asked.timeout_s or self._default_timeout_s,
        )
        self.last = lease.id
        self._stored = StoredLease(
            lease, asked.job, asked.callback, asked.version, secret_hash(secret)
        )
        self._request = _Request(assignment, asked, secret)

    def revoke(self, reason: str) -> bool:
        """Have its client end its command; False if there is none to be told."""
        if self._held is None:
            return False
        self._held.tell_to_end(reason)
        return True

    async def serve(self) -> Ending | None:
        """Until the lease is over; None if it is left to the next agent."""
        stored, request, self._request = self._stored, self._request, None
        assert stored, "there is no lease to serve"  # noqa: S101 - a defect of the slot
        try:
            ending = await (self._offer(stored, request) if request else self._resume(stored))
        except Exception:
            # A defect here must not end the other environments' leases. Whether this one's client
            # runs is unknown now; that it does not is certain only at the lease's own end.
            log.exception("%s: lease %s failed", self._caretaker.id, stored.lease.id)
            self.trouble = "internal error; kept until its lease's timeout"
            await asyncio.sleep(stored.lease.timeout_s + self._terms.margin_s)
            if request:
                request.assignment.fail()
            ending = Ending("internal error", touched=True)
        finally:
            self._held, self.trouble = None, ""
        if ending is not None:
            self._stored = None
        return ending

    async def _offer(self, stored: StoredLease, request: _Request) -> Ending | None:
        data = self._caretaker.data_file(stored.lease, request.secret, self._terms)
        granting = self._journal.grant(stored)
        if request.asked.version == 1:
            try:
                await granting
            except JournalError as error:
                log.warning("%s: no lease can be granted: %s", self._caretaker.id, error)
                request.assignment.fail()
                return Ending(End.NOT_JOURNALLED, touched=False)
            return await lease_v1.serve_lease(
                request.assignment, request.asked, stored.lease, data, self._terms
            )
        self._held = self._keep(stored, Tenure.offered(self._terms, self._loop.time()))
        return await self._unless_leaving(self._held.offer(request.assignment, data, granting))

    async def _resume(self, stored: StoredLease) -> Ending | None:
        """Keep a lease of an earlier agent. A client of version 1 can't come back."""
        lease = stored.lease
        self._record(self._journal.note(lease.environment, _AGENT_RESTART, lease=lease.id))
        tenure = Tenure.restored(self._terms, self._loop.time())
        if stored.version == 1:
            left_s = _time_left(lease) + self._terms.margin_s
            tenure = replace(tenure, due=self._loop.time() + left_s)
        self._held = self._keep(stored, tenure)
        return await self._unless_leaving(self._held.resume())

    async def _unless_leaving(self, keeping: Coroutine[Any, Any, Ending]) -> Ending | None:
        """The lease's end; None if the agent leaves before, which the lease outlives."""
        kept = asyncio.ensure_future(keeping)
        leaving = asyncio.ensure_future(self._leaving.wait())
        try:
            await asyncio.wait((kept, leaving), return_when=asyncio.FIRST_COMPLETED)
            return kept.result() if kept.done() else None
        finally:
            leaving.cancel()
            kept.cancel()
            await asyncio.gather(kept, leaving, return_exceptions=True)

    def _keep(self, stored: StoredLease, tenure: Tenure) -> HeldLease:
        lease = stored.lease
        expires = self._loop.time() + _time_left(lease) + self._terms.margin_s
        grant = Grant(lease, stored.callback, stored.secret_hash)

        def note(event: LeaseEvent, reason: str) -> None:
            noting = self._journal.note(lease.environment, event, lease=lease.id, reason=reason)
            self._record(noting)

        return HeldLease(grant, tenure, expires, self._reception, note)


def _time_left(lease: Lease) -> float:
    """Seconds until the client should have ended, by the wall clock, which may have jumped."""
    passed_s = (datetime.now(UTC) - lease.granted).total_seconds()
    return min(max(0.0, lease.timeout_s - passed_s), lease.timeout_s)
