"""Which environments of a host are kept for people: its limits, and its autoholds."""

import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from fnmatch import fnmatchcase
from typing import Any

from hosts.journal import Journal
from hosts.journal_holds import Statement, StoredHold, put_autohold, put_hold
from hosts.journal_rows import Ended
from hosts.quarantine import has_failed
from schemas.control import MAX_AUTOHOLDS
from schemas.errors import HostError
from schemas.status import Autohold, Hold, Lease

log = logging.getLogger(__name__)

Record = Callable[[Coroutine[Any, Any, None]], None]
"""Has something journalled, in its turn, without waiting for it."""


@dataclass(frozen=True)
class HoldLimits:
    """`max_held`: environments of a host at a time. `max_s`: seconds that each may be held."""

    max_held: int = 1
    max_s: float = 24 * 3600


@dataclass(frozen=True)
class Leavings:
    """What a lease has left. `wishes_s`: for how long its client wants that held; None if it does
    not."""

    lease: Lease
    job: str
    ended: Ended
    wishes_s: float | None


class Holds:
    """All of one host, and who wants more of them. Its environments share it."""

    def __init__(self, host: str, journal: Journal, limits: HoldLimits) -> None:
        self._host = host
        self._journal = journal
        self._limits = limits
        self._held: dict[str, StoredHold] = {}
        self._rules: dict[str, Autohold] = {}

    async def remember(self) -> None:
        """What the journal says. Raises JournalError."""
        stored = await self._journal.holds()
        self._held = dict(stored.holds)
        self._rules = {rule.id: rule for rule in stored.autoholds}

    @property
    def autoholds(self) -> tuple[Autohold, ...]:
        return tuple(self._rules.values())

    @property
    def max_s(self) -> float:
        return self._limits.max_s

    def __getitem__(self, env_id: str) -> StoredHold | None:
        return self._held.get(env_id)

    def put(self, env_id: str, stored: StoredHold) -> None:
        """The environment is held, or is to be. Raises HostError if that is one too many."""
        if why := self._no_room(env_id):
            raise HostError(why, remedy="unhold one of them, or raise [hold] max_held")
        self._held[env_id] = stored

    def drop(self, env_id: str) -> None:
        """It is not held any more, nor to be."""
        self._held.pop(env_id, None)

    async def autohold(self, rule: Autohold) -> bool:
        """From now on; none `left`: not any more. False if it is so already. Raises HostError."""
        if self._rules.get(rule.id) == rule or (rule.id not in self._rules and not rule.left):
            return False
        if rule.id not in self._rules and len(self._rules) >= MAX_AUTOHOLDS:
            raise HostError(f"{self._host} has {MAX_AUTOHOLDS} autoholds", remedy="remove some")
        self._set(rule)
        await self._journal.autohold(self._host, rule)
        return True

    def after(self, left: Leavings, now: datetime) -> tuple[Statement, ...]:
        """Have the environment held if somebody wants that; what to journal with the lease's end.

        One that is to be held already begins to be so now.
        """
        env_id = left.lease.environment
        if stored := self._held.get(env_id):
            begun = _begun(stored.hold, now, lease=left.lease.id, job=left.job)
            self._held[env_id] = StoredHold(begun)
            return (put_hold(env_id, self._held[env_id]),)
        rule = next((rule for rule in self.autoholds if _applies(rule, left)), None)
        wished = _wished(left)
        hold = wished or (rule and _by_rule(rule))
        if not hold:
            return ()
        if why := self._no_room(env_id):
            log.warning("%s: not held for %s: %s", env_id, hold.asked_by, why)
            return ()
        hold = hold.model_copy(update={"for_s": min(hold.for_s, self.max_s)})
        stored = StoredHold(_begun(hold, now, lease=left.lease.id, job=left.job))
        self._held[env_id] = stored
        log.info("%s: held for %s", env_id, hold.asked_by)
        held = put_hold(env_id, stored)
        if not rule or wished:
            return (held,)
        rule = rule.model_copy(update={"left": rule.left - 1})
        self._set(rule)
        return held, put_autohold(rule)

    def _set(self, rule: Autohold) -> None:
        if rule.left:
            self._rules[rule.id] = rule
        else:
            self._rules.pop(rule.id, None)

    def _no_room(self, env_id: str) -> str:
        others = sorted(self._held.keys() - {env_id})
        if env_id in self._held or len(others) < self._limits.max_held:
            return ""
        held = f" ({', '.join(others)})" if others else ""
        return f"{self._host} may hold {self._limits.max_held} environments at a time{held}"


def begun(stored: StoredHold, now: datetime) -> StoredHold:
    """From now on; nobody's lease has left anything."""
    return replace(stored, hold=_begun(stored.hold, now))


def _begun(hold: Hold, now: datetime, **left: str) -> Hold:
    until = now + timedelta(seconds=hold.for_s)
    return hold.model_copy(update={"since": now, "until": until, **left})


def _wished(left: Leavings) -> Hold | None:
    if left.wishes_s is None or not has_failed(left.ended):
        return None
    return Hold(
        for_s=left.wishes_s, reason="its job failed", asked_by=f"--hold-on-failure of {left.job}"
    )


def _applies(rule: Autohold, left: Leavings) -> bool:
    return fnmatchcase(left.job, rule.job) and has_failed(left.ended)


def _by_rule(rule: Autohold) -> Hold:
    by = f"autohold {rule.id} of {rule.asked_by}"
    return Hold(for_s=rule.for_s, reason=rule.reason, asked_by=by)
