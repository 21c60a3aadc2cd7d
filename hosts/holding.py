"""One environment kept as it is, for a person: asked for, begun, taken over, ended."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from hosts.admission import Admission, Bar
from hosts.caretaker import Caretaker
from hosts.holds import Holds, Leavings, Record, begun
from hosts.journal import Journal
from hosts.journal_holds import Key, Statement, StoredHold
from hosts.lease import secret_hash
from hosts.waiting import any_set
from schemas.control import DEFAULT_HOLD_S, Held, HoldRequest
from schemas.errors import HostError, TestenvError
from schemas.names import random_id
from schemas.status import Hold, Lease

log = logging.getLogger(__name__)

_LOOK_S = 60.0
"""A hold ends by the wall clock, which may be set meanwhile: so often it is looked at."""
_EXPIRED = "its time is over"


class Holding:
    """Whether the environment is held. From when that is asked for, no lease begins in it.

    `next_generation`: counts credentials of leases and of holders alike.
    """

    def __init__(
        self,
        caretaker: Caretaker,
        holds: Holds,
        journal: Journal,
        record: Record,
        admission: Admission,
        next_generation: Callable[[], int],
    ) -> None:
        self._caretaker = caretaker
        self._holds = holds
        self._journal = journal
        self._record = record
        self._admission = admission
        self._next_generation = next_generation
        self._is_kept = False
        self._asking = asyncio.Lock()
        self._changed = asyncio.Event()
        self.asked = asyncio.Event()
        """Set while it is held, or to be."""
        self.trouble = ""
        """What is wrong with the hold, for people."""

    @property
    def hold(self) -> Hold | None:
        """The one in force, or asked for."""
        return self._stored.hold if self._stored else None

    @property
    def _stored(self) -> StoredHold | None:
        return self._holds[self._caretaker.id]

    def remember(self) -> None:
        """Go on with what the journal has told `holds`."""
        if self._stored:
            self._await()

    def after_lease(self, left: Leavings) -> tuple[Statement, ...]:
        """See whether it is held now; returns what is journalled with the lease's end."""
        statements = self._holds.after(left, datetime.now(UTC))
        if self._stored:
            self._await()
        return statements

    async def ask(self, request: HoldRequest) -> Held:
        """Hold it once no lease runs in it, or change how it is held.

        Raises HostError where that is one too many, or too long, JournalError where nobody may get
        its credentials.
        """
        if request.for_s and request.for_s > self._holds.max_s:
            most = f"{self._holds.max_s:g} s ([hold] max_s)"
            raise HostError(f"{self._caretaker.id} may be held for {most}", remedy="ask for less")
        async with self._asking:
            before = self._stored
            stored = _asked(before, request, min(DEFAULT_HOLD_S, self._holds.max_s))
            if stored != before:
                self._holds.put(self._caretaker.id, stored)
                self._note(stored, "hold asked for")
                self._await()
                self._changed.set()
            data = None
            if request.take and self._is_kept:
                data = await self._take(stored, request.holder)
            now = self._stored or stored
            return Held(hold=now.hold, data_file=data)

    def release(self, why: str) -> bool:
        """Turn it over, if it is held; do not hold it, if it was to be. False if it was neither."""
        if not self._stored:
            return False
        self._holds.drop(self._caretaker.id)
        self._admission.open(Bar.HOLD)
        self.asked.clear()
        self._changed.set()
        self.trouble = ""
        self._record(self._journal.unhold(self._caretaker.id, why))
        log.info("%s is not held any more: %s", self._caretaker.id, why)
        return True

    async def keep(self) -> bool:
        """Keep it until the hold ends; False if the agent stops before."""
        try:
            while (stored := self._stored) and not self._admission.shutdown.stopped.is_set():
                self._changed.clear()
                if stored.hold.since is None:
                    stored = begun(stored, datetime.now(UTC))
                    self._holds.put(self._caretaker.id, stored)
                    self._note(stored, "hold begun")
                await self._wire(stored.hold)
                await self._sleep()
            return not self._stored
        finally:
            self._is_kept = False

    async def _sleep(self) -> None:
        """Until the hold changes, or ends, or might have."""
        stored = self._stored
        if stored is None:
            return
        left_s = _left_s(stored.hold)
        if left_s <= 0:
            self.release(_EXPIRED)
            return
        events = (self._changed, self._admission.shutdown.stopped)
        await any_set(events, within_s=min(left_s, _LOOK_S))

    async def _wire(self, hold: Hold) -> None:
        """Have it reached from outside, or not; what can't be cut off is not held."""
        wire = self._caretaker.connect if hold.connected else self._caretaker.seclude
        try:
            await wire()
        except TestenvError as error:
            if hold.connected:
                self.trouble = f"not connected: {error}"
            else:
                self.release(f"it can't be cut off from outside: {error}")
                return
        else:
            self.trouble = ""
        self._is_kept = True

    async def _take(self, stored: StoredHold, holder: str) -> str:
        """New credentials for `holder`; those of before end."""
        secret = random_id()
        lease = Lease(
            id=random_id(),
            environment=self._caretaker.id,
            generation=self._next_generation(),
            holder=holder,
            granted=datetime.now(UTC),
            timeout_s=max(0.0, _left_s(stored.hold)),
        )
        taken = StoredHold(
            stored.hold.model_copy(update={"holder": holder}),
            Key(lease.id, lease.generation, secret_hash(secret)),
        )
        await self._journal.take_hold(self._caretaker.id, taken)
        if self._stored is None:
            raise HostError(f"{self._caretaker.id} is not held any more")
        self._holds.put(self._caretaker.id, taken)
        log.info("%s: its holder is %s", self._caretaker.id, holder)
        return self._caretaker.data_file(lease, secret, None).decode()

    def _await(self) -> None:
        hold = self._stored.hold if self._stored else None
        self._admission.close(Bar.HOLD, hold.reason if hold else "")
        self.asked.set()

    def _note(self, stored: StoredHold, event: str) -> None:
        self._record(self._journal.hold(self._caretaker.id, stored, event))


def _asked(before: StoredHold | None, request: HoldRequest, default_s: float) -> StoredHold:
    """`before`, as `request` wants it; that itself if it wants nothing new."""
    if before is None:
        hold = Hold(
            for_s=request.for_s or default_s,
            reason=request.reason,
            asked_by=request.holder,
            connected=bool(request.connect),
        )
        return StoredHold(hold)
    changes: dict[str, Any] = {}
    if request.for_s:
        changes["for_s"] = request.for_s
    if request.reason:
        changes["reason"] = request.reason
    if request.connect is not None:
        changes["connected"] = request.connect
    stored = replace(before, hold=before.hold.model_copy(update=changes))
    if request.for_s and before.hold.since:
        return begun(stored, datetime.now(UTC))
    return stored


def _left_s(hold: Hold) -> float:
    """Seconds that it goes on; a clock that was set back gives it no more than it was meant to
    have."""
    if hold.until is None:
        return hold.for_s
    return min((hold.until - datetime.now(UTC)).total_seconds(), hold.for_s)
