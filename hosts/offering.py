"""How an environment that is READY is offered to the brokers' clients."""

import asyncio
import contextlib
import logging
from dataclasses import dataclass

from broker.links import LinkSource
from broker.worker import Assignment, Worker
from hosts.admission import Admission, Bar
from hosts.caretaker import Caretaker
from hosts.journal import Journal
from hosts.vetting import Vetting
from schemas.errors import JournalError
from schemas.lock import BadLockRequest, LockRequest
from schemas.names import lock_functions

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Taken:
    """A usable lock request that was assigned to us."""

    assignment: Assignment
    asked: LockRequest


@dataclass(frozen=True)
class Differs:
    """The environment is not as it is planned, `how`: somebody has changed it."""

    how: str


class Offering:
    """An environment's one Gearman worker, registered only while a lease may begin in it.

    That is: while it is admitted, its host is well, and the lease could be journalled.
    """

    def __init__(
        self,
        caretaker: Caretaker,
        links: LinkSource,
        journal: Journal,
        admission: Admission,
        vetting: Vetting,
        *,
        journal_retry_s: float,
    ) -> None:
        self._id = caretaker.id
        self._worker = Worker(links, lock_functions(caretaker.labels))
        self._journal = journal
        self._admission = admission
        self._vetting = vetting
        self._journal_retry_s = journal_retry_s
        self._loop = asyncio.get_running_loop()
        self.trouble = ""
        """Why no lease can be journalled; "" if one could, the last time that one was to be."""

    @property
    def is_registered(self) -> bool:
        """Whether a broker may still give us a request."""
        return self._worker.is_taking

    async def wait(self) -> Taken | Differs | None:
        """Offer the environment, which is READY, until one of these happens; None when the agent
        stops, or the environment is to be rebuilt, or held.

        Now and then it is compared with its plan, while it is not registered and so stays ours.
        """
        due = self._loop.time() + self._vetting.check_interval_s
        while await self._admission.admitted():
            if await self._vetting.host_trouble() or not await self._can_journal():
                continue
            if self._loop.time() >= due:
                if difference := await self._vetting.difference():
                    return Differs(difference)
                due = self._loop.time() + self._vetting.check_interval_s
            assignment = await self._take(until=due)
            if assignment is None:
                continue
            try:
                return Taken(assignment, LockRequest.parse(assignment.arguments))
            except BadLockRequest as bad:
                log.warning("%s: a lock request was refused: %s", self._id, bad)
                assignment.fail()
        return None

    async def _take(self, *, until: float) -> Assignment | None:
        check = self._loop.call_at(until, self._admission.close, Bar.CHECK, "")
        try:
            return await self._worker.take(self._admission.closed)
        finally:
            check.cancel()
            self._admission.open(Bar.CHECK)

    async def _can_journal(self) -> bool:
        """Whether a lease could be journalled; if not, wait a while, and say why."""
        if not self._journal.pending and not self.trouble:
            return True
        try:
            await self._journal.probe()
        except JournalError as error:
            self.trouble = str(error)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._journal_retry_s):
                    await self._admission.shutdown.stopped.wait()
            return False
        self.trouble = ""
        return True
