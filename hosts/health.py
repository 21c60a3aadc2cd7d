"""Whether this host is well, and its environments offered only while it is."""

import asyncio
import logging
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from hosts.admission import Admission, Bar
from hosts.journal import Journal
from hosts.vitals import Vital
from schemas.errors import TestenvError

log = logging.getLogger(__name__)

LOOK_S = 5.0
"""What has not answered within this time does not answer."""

WELL_AGAIN = "well again"
"""In the journal, where Bar.SICK has been before."""


class Health:
    """Looks at the host's `vitals`, and closes the environments' `admissions` while it is sick.

    Leases that run go on. Without any vitals it is always well. Made within a running loop.
    """

    def __init__(
        self,
        vitals: Sequence[Vital],
        admissions: Mapping[str, Admission],
        journal: Journal,
        *,
        check_interval_s: float,
    ) -> None:
        self._pool = ThreadPoolExecutor(max(1, len(vitals)), thread_name_prefix="health")
        self._sights = [_Sight(vital, self._pool) for vital in vitals]
        self._admissions = admissions
        self._journal = journal
        self._interval_s = check_interval_s
        self._loop = asyncio.get_running_loop()
        self._looking: asyncio.Future[None] | None = None
        self._looked_at = float("-inf")
        """When the last look began."""
        self._trouble = ""
        self._noting: set[asyncio.Future[None]] = set()

    async def run(self) -> None:
        """Look every `check_interval_s`, until cancelled.

        The first look is left to who asks first: before any environment is made, a host has no
        address yet.
        """
        try:
            while self._sights:
                await asyncio.sleep(self._interval_s)
                await self._look()
        finally:
            self._pool.shutdown(wait=False, cancel_futures=True)

    async def trouble(self, *, anew: bool = False) -> str:
        """Why the host is not well; "" if it is.

        By a look that began at most `check_interval_s` ago; but where the last one found something,
        and with `anew`, by one that begins now. Takes LOOK_S twice at most.
        """
        age_s = 0.0 if anew or self._trouble else self._interval_s
        oldest = self._loop.time() - age_s
        while self._sights and self._looked_at < oldest:
            await self._look()
        return self._trouble

    async def _look(self) -> None:
        """One look at everything; who asks while one is under way waits for that one."""
        if self._looking is None:
            self._looking = asyncio.ensure_future(self._look_at_all())
        await asyncio.shield(self._looking)

    async def _look_at_all(self) -> None:
        began = self._loop.time()
        try:
            found = await asyncio.gather(*(sight.look() for sight in self._sights))
            self._conclude("; ".join(why for why in found if why))
            self._looked_at = began
        finally:
            self._looking = None

    def _conclude(self, trouble: str) -> None:
        before, self._trouble = self._trouble, trouble
        for admission in self._admissions.values():
            if trouble:
                admission.close(Bar.SICK, trouble)
            else:
                admission.open(Bar.SICK)
        if bool(before) == bool(trouble):
            return
        if trouble:
            log.warning("this host is not well, nothing is offered: %s", trouble)
        else:
            log.info("this host is well again (it was not: %s)", before)
        event = Bar.SICK if trouble else WELL_AGAIN
        self._record(
            self._journal.note(env_id, event, reason=trouble) for env_id in self._admissions
        )

    def _record(self, writings: Iterable[Coroutine[Any, Any, None]]) -> None:
        """No look waits for the journal's disk, which may be what is not well."""
        for writing in writings:
            self._noting.add(task := asyncio.ensure_future(writing))
            task.add_done_callback(self._noting.discard)


class _Sight:
    """One vital as it is looked at: in a thread, and never twice at a time, however long it hangs,
    so that threads do not pile up."""

    def __init__(self, vital: Vital, pool: ThreadPoolExecutor) -> None:
        self._vital = vital
        self._pool = pool
        self._running: asyncio.Future[str | None] | None = None

    async def look(self) -> str | None:
        """What is wrong, or None. Takes LOOK_S at most."""
        if self._running is None or self._running.done():
            loop = asyncio.get_running_loop()
            self._running = loop.run_in_executor(self._pool, _finding, self._vital)
        done, _ = await asyncio.wait([self._running], timeout=LOOK_S)
        if not done:
            return f"{self._vital.name}: does not answer within {LOOK_S:g} s"
        return self._running.result()


def _finding(vital: Vital) -> str | None:
    try:
        why = _seen(vital)
        if why is None or vital.repair is None:
            return why
        vital.repair()
        still = _seen(vital)
        if still is None:
            log.info("repaired: %s", why)
        return still
    except TestenvError as error:
        return str(error)
    except Exception as error:
        log.exception("%s: a defect of the agent or its drivers", vital.name)
        return f"{vital.name}: internal error: {error!r}"


def _seen(vital: Vital) -> str | None:
    try:
        return vital.look()
    except TestenvError as error:
        return str(error)
