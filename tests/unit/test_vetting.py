"""An environment's record: what counts against it, and for how long."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from hosts.health import Health
from hosts.hooks import Hooks
from hosts.journal import Journal
from hosts.journal_rows import StoredLease
from hosts.quarantine import Rules
from hosts.state import Event
from hosts.vetting import Standards, Vetting
from schemas.errors import DriverError
from schemas.status import EnvState, Lease
from tests.functional.slot_rig import Counting

ENV, PEER = Counting.id, "te1/2"
RULES = Rules(turnovers=2, window=6, min_leases=3, chance=0.05)
STRICT = Standards(quarantine=RULES)


class Record:
    """One environment of a host that is well, with its journal."""

    def __init__(self, journal: Journal, standards: Standards) -> None:
        self.caretaker = Counting()
        health = Health([], {}, journal, check_interval_s=60)
        self.vetting = Vetting(self.caretaker, journal, health, standards)
        self._journal = journal
        self._leases = 0

    async def leases(self, environment: str, *exit_codes: int) -> None:
        """So many leases of it end, one after another."""
        for code in exit_codes:
            self._leases += 1
            lease = Lease(
                id=str(self._leases),
                environment=environment,
                generation=self._leases,
                holder="job",
                granted=datetime.now(UTC),
                timeout_s=60,
            )
            await self._journal.grant(StoredLease(lease, "job", "cb", 2, "5ec"))
            await self._journal.end(lease.id, environment, EnvState.DIRTY, "completed", code)

    async def cleared(self) -> None:
        """As the slot does it."""
        self.vetting.clear()
        await self._journal.note(ENV, Event.CLEARED)


@asynccontextmanager
async def record(folder: Path, standards: Standards = STRICT) -> AsyncIterator[Record]:
    async with Journal.open(folder / "journal.db", now=partial(datetime.now, UTC)) as journal:
        yield Record(journal, standards)


async def test_failures_count_from_one_good_turnover_to_the_next(tmp_path: Path) -> None:
    async with record(tmp_path) as env:
        assert not await env.vetting.objection(Event.FAILED)
        assert not await env.vetting.objection(Event.TURNED_OVER)
        assert not await env.vetting.objection(Event.FAILED)
        # It could be built, and may fail again at its next turnover.
        assert not await env.vetting.objection(Event.BUILT)
        assert await env.vetting.objection(Event.FAILED)
        await env.cleared()
        assert not await env.vetting.objection(Event.FAILED)


async def test_an_environment_whose_leases_fail_unlike_its_peers_is_objected_to(
    tmp_path: Path,
) -> None:
    async with record(tmp_path) as env:
        await env.leases(ENV, 1, 1)
        assert not await env.vetting.objection(Event.TURNED_OVER)
        await env.leases(PEER, 0, 0, 0, 0)
        await env.leases(ENV, 1)
        why = await env.vetting.objection(Event.TURNED_OVER)
        assert why.startswith("3 of its last 3 leases failed, and 0 of the 4 that its peers had")


async def test_an_agent_that_has_just_started_knows_of_the_leases_of_before(
    tmp_path: Path,
) -> None:
    async with record(tmp_path) as before:
        await before.leases(ENV, 1, 1)
        await before.leases(PEER, 0, 0, 0, 0)
        await before.leases(ENV, 1)
    async with record(tmp_path) as env:
        assert await env.vetting.objection(Event.TURNED_OVER)


async def test_leases_of_before_it_was_cleared_do_not_count_again(tmp_path: Path) -> None:
    async with record(tmp_path) as env:
        await env.leases(ENV, 1)
        await env.leases(PEER, 0, 0, 0, 0)
        await env.leases(ENV, 1, 1)
        await env.cleared()
        assert not await env.vetting.objection(Event.TURNED_OVER)
        await env.leases(ENV, 1)
        assert not await env.vetting.objection(Event.TURNED_OVER)


async def test_without_rules_nothing_is_objected_to(tmp_path: Path) -> None:
    async with record(tmp_path, Standards()) as env:
        for _ in range(10):
            assert not await env.vetting.objection(Event.FAILED)


async def test_an_after_lease_that_fails_counts_once_as_a_failed_turnover(tmp_path: Path) -> None:
    standards = Standards(Hooks(after_lease=("false",)), RULES)
    async with record(tmp_path, standards) as env:
        assert await env.vetting.after_lease("1ea5e")
        assert not await env.vetting.objection(Event.TURNED_OVER)
        assert await env.vetting.after_lease("1ea5f")
        assert await env.vetting.objection(Event.FAILED)


async def test_what_cannot_be_compared_on_a_host_that_is_well_differs(tmp_path: Path) -> None:
    async with record(tmp_path) as env:
        assert await env.vetting.difference() == ""
        env.caretaker.verifying = DriverError("seed_1", "it is gone")
        assert await env.vetting.difference() == "object seed_1: it is gone"
