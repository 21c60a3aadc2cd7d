"""What an environment must pass before it is offered, besides being made."""

import logging
from dataclasses import dataclass, field

from hosts.caretaker import Caretaker
from hosts.health import Health
from hosts.hooks import Hooks
from hosts.journal import Journal
from hosts.quarantine import Rules, failed_leases, failed_turnovers
from hosts.state import Event
from schemas.errors import HookError, JournalError, TestenvError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Standards:
    """What an admin demands of every environment of a host.

    `check_interval_s`: how old a look at the host may be, and how often an environment that waits
    for a lease is compared with its plan.
    """

    hooks: Hooks = field(default_factory=Hooks)
    quarantine: Rules | None = None
    check_interval_s: float = float("inf")


DEMANDS_NOTHING = Standards()


class Vetting:
    """One environment's: its host's health, the admin's hooks, its plan, and its own record."""

    def __init__(
        self, caretaker: Caretaker, journal: Journal, health: Health, standards: Standards
    ) -> None:
        self._caretaker = caretaker
        self._journal = journal
        self._health = health
        self._standards = standards
        self._failures = 0
        """Since the last good turnover."""
        self._hook_failed = ""
        """Why, in the turnover that is under way."""

    @property
    def check_interval_s(self) -> float:
        return self._standards.check_interval_s

    async def host_trouble(self) -> str:
        """Why nothing of this host is offered now; "" if it is well."""
        return await self._health.trouble()

    async def before_offer(self) -> None:
        """Raises HookError where the admin's hook says no."""
        hooks = self._standards.hooks
        await hooks.run_before_offer(self._caretaker.id, self._caretaker.describe())

    async def after_lease(self, lease: str) -> str:
        """Why the admin's hook has failed, which counts as a failed turnover; "" if it has not."""
        hooks = self._standards.hooks
        try:
            await hooks.run_after_lease(self._caretaker.id, self._caretaker.describe(), lease)
        except HookError as error:
            log.warning("%s: %s", self._caretaker.id, error)
            self._hook_failed = str(error)
            return self._hook_failed
        return ""

    async def difference(self) -> str:
        """How it differs from its plan, while it should be ready; "" if it does not.

        Nor does it where nobody can tell, because the host is not well.
        """
        try:
            return "; ".join(str(one) for one in await self._caretaker.differences())
        except TestenvError as error:
            return "" if await self._health.trouble(anew=True) else str(error)

    async def objection(self, event: Event) -> str:
        """Why it is not to be trusted, now that it was made, or not (`event`); "" if it is."""
        rules = self._standards.quarantine
        hook_failed, self._hook_failed = self._hook_failed, ""
        if event is Event.FAILED and await self._health.trouble(anew=True):
            return ""
        if hook_failed or event is Event.FAILED:
            self._failures += 1
        elif event is Event.TURNED_OVER:
            self._failures = 0
        if rules is None:
            return ""
        if why := failed_turnovers(self._failures, rules):
            return f"{why}: {hook_failed}" if hook_failed else why
        if event is not Event.TURNED_OVER:
            return ""
        try:
            ended = await self._journal.recently_ended(self._caretaker.id, rules.window)
        except JournalError as error:
            log.warning("%s: %s; its leases are not judged", self._caretaker.id, error)
            return ""
        return failed_leases(self._caretaker.id, ended, rules)

    def clear(self) -> None:
        """An operator trusts it again. What the journal says of before is not asked for again."""
        self._failures = 0
