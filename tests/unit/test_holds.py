"""What is kept for people: who gets it, how much of it, and that the journal remembers."""

import sqlite3
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from hosts.holds import HoldLimits, Holds, Leavings
from hosts.journal import Journal
from hosts.journal_file import HOLDS, SCHEMA
from hosts.journal_holds import Key, StoredHold, StoredHolds, put_hold
from hosts.journal_rows import Ended
from hosts.lease import End
from schemas.control import MAX_AUTOHOLDS
from schemas.errors import HostError, JournalError
from schemas.legs import INTERRUPTED
from schemas.status import Autohold, EnvState, Hold
from tests.unit.journal_rig import ENV, NOON, Clock, a_lease

PEER = "te7/2"
RULE = Autohold(id="r1", job="job-*", left=2, for_s=60, reason="hangs", asked_by="ann@te")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


@pytest.fixture
async def journal(path: Path) -> AsyncIterator[Journal]:
    async with Journal.open(path, now=Clock()) as opened:
        yield opened


def holds_of(journal: Journal, **limits: float) -> Holds:
    return Holds("te7", journal, HoldLimits(**limits))  # type: ignore[arg-type]  # for brevity


def leavings(
    reason: str = "exited",
    exit_code: int | None = 1,
    *,
    environment: str = ENV,
    job: str = "job-1",
    wishes_s: float | None = None,
) -> Leavings:
    lease = a_lease(environment=environment).lease
    return Leavings(lease, job, Ended(environment, reason, exit_code), wishes_s)


async def test_a_clients_wish_is_a_hold_from_its_leases_end_on(journal: Journal) -> None:
    holds = holds_of(journal, max_held=1, max_s=600)
    assert holds.after(leavings(wishes_s=90), NOON)
    stored = holds[ENV]
    assert stored == StoredHold(
        Hold(
            for_s=90,
            since=NOON,
            until=NOON + timedelta(seconds=90),
            reason="its job failed",
            asked_by="--hold-on-failure of job-1",
            lease=a_lease().lease.id,
            job="job-1",
        )
    )


async def test_nobody_holds_longer_than_the_host_allows(journal: Journal) -> None:
    holds = holds_of(journal, max_held=2, max_s=50)
    holds.after(leavings(wishes_s=90), NOON)
    await holds.autohold(RULE)
    holds.after(leavings(environment=PEER), NOON)
    for env_id in (ENV, PEER):
        stored = holds[env_id]
        assert stored
        assert (stored.hold.for_s, stored.hold.until) == (50, NOON + timedelta(seconds=50))


async def test_a_wish_beyond_the_limit_is_not_granted_and_an_operators_is_refused_with_names(
    journal: Journal,
) -> None:
    holds = holds_of(journal, max_held=1)
    holds.after(leavings(wishes_s=90), NOON)
    assert holds.after(leavings(environment=PEER, wishes_s=90), NOON) == ()
    assert holds[PEER] is None
    with pytest.raises(HostError) as caught:
        holds.put(PEER, StoredHold(Hold(for_s=1)))
    assert str(caught.value) == (
        f"te7 may hold 1 environments at a time ({ENV}); "
        "unhold one of them, or raise [hold] max_held"
    )
    holds.put(ENV, StoredHold(Hold(for_s=7)))  # it has its place already
    holds.drop(ENV)
    holds.put(PEER, StoredHold(Hold(for_s=1)))


async def test_a_wish_after_a_success_is_none(journal: Journal) -> None:
    holds = holds_of(journal)
    assert holds.after(leavings("exited", 0, wishes_s=90), NOON) == ()
    assert holds[ENV] is None


@pytest.mark.parametrize(
    ("reason", "exit_code", "is_held"),
    [
        ("exited", 1, True),
        ("signalled", -9, True),
        ("lease timed out", 124, True),
        (End.CUT, None, True),
        (End.SILENT, None, True),
        ("exited", 0, False),
        (INTERRUPTED, -15, False),
        (INTERRUPTED, 143, False),
        ("an operator needs it", None, False),
        (End.COMPLETED, None, False),
    ],
)
async def test_an_autohold_is_for_jobs_that_are_known_to_have_failed(
    journal: Journal, reason: str, exit_code: int | None, is_held: bool
) -> None:
    holds = holds_of(journal)
    await holds.autohold(RULE)
    assert bool(holds.after(leavings(reason, exit_code), NOON)) is is_held
    assert (holds[ENV] is not None) is is_held
    assert holds.autoholds[0].left == (1 if is_held else 2)


async def test_an_autohold_is_used_up_by_jobs_of_its_pattern_only(journal: Journal) -> None:
    holds = holds_of(journal, max_held=9)
    await holds.autohold(RULE)
    assert holds.after(leavings(job="other-1"), NOON) == ()
    assert holds.after(leavings(wishes_s=5), NOON)  # a wish of its own does not use it
    assert holds.autoholds == (RULE,)
    holds.after(leavings(environment=PEER), NOON)
    assert [rule.left for rule in holds.autoholds] == [1]
    stored = holds[PEER]
    assert stored
    assert (stored.hold.asked_by, stored.hold.reason) == ("autohold r1 of ann@te", "hangs")
    holds.after(leavings(environment="te7/3"), NOON)
    assert not holds.autoholds
    assert holds.after(leavings(environment="te7/4"), NOON) == ()


async def test_the_oldest_autohold_that_fits_comes_first(journal: Journal) -> None:
    holds = holds_of(journal)
    for name in ("r1", "r2"):
        await holds.autohold(RULE.model_copy(update={"id": name}))
    holds.after(leavings(), NOON)
    assert {rule.id: rule.left for rule in holds.autoholds} == {"r1": 1, "r2": 2}


async def test_what_an_operator_has_asked_for_begins_however_the_lease_ends(
    journal: Journal,
) -> None:
    holds = holds_of(journal)
    asked = Hold(for_s=60, reason="a look", asked_by="ann@te", holder="ann@te")
    holds.put(ENV, StoredHold(asked, Key("k", 7, "5ec")))
    assert holds.after(leavings("exited", 0), NOON)
    stored = holds[ENV]
    assert stored
    assert stored.key is None
    assert (stored.hold.since, stored.hold.job) == (NOON, "job-1")
    assert stored.hold.until == NOON + timedelta(seconds=60)


async def test_autoholds_are_replaced_removed_and_limited(journal: Journal) -> None:
    holds = holds_of(journal)
    assert await holds.autohold(RULE)
    assert not await holds.autohold(RULE)
    assert await holds.autohold(RULE.model_copy(update={"left": 5}))
    assert [rule.left for rule in holds.autoholds] == [5]
    assert await holds.autohold(RULE.model_copy(update={"left": 0}))
    assert not await holds.autohold(RULE.model_copy(update={"left": 0}))
    for number in range(MAX_AUTOHOLDS):
        await holds.autohold(RULE.model_copy(update={"id": f"r{number}"}))
    with pytest.raises(HostError, match="te7 has 100 autoholds; remove some"):
        await holds.autohold(RULE.model_copy(update={"id": "one more"}))


async def test_the_next_agent_remembers_holds_autoholds_and_who_took_what(path: Path) -> None:
    async with Journal.open(path, now=Clock()) as journal:
        holds = holds_of(journal, max_held=2)
        await holds.autohold(RULE)
        await journal.grant(a_lease())
        also = holds.after(leavings(), NOON)
        await journal.end(a_lease().lease.id, ENV, EnvState.DIRTY, "exited", 1, also)
        held = holds[ENV]
        assert held
        taken = StoredHold(held.hold.model_copy(update={"holder": "bob"}), Key("k", 2, "5ec"))
        await journal.take_hold(ENV, taken)
    async with Journal.open(path, now=Clock()) as journal:
        holds = holds_of(journal)
        await holds.remember()
        assert holds[ENV] == taken
        assert [rule.left for rule in holds.autoholds] == [1]
        remembered = await journal.remembered(ENV)
        assert (remembered.state, remembered.generation) == (EnvState.DIRTY, 2)
        with pytest.raises(JournalError, match="generation 2 of te7/1 is not greater"):
            await journal.grant(a_lease(2))
        await journal.unhold(ENV, "it is over")
        assert await journal.holds() == StoredHolds({}, holds.autoholds)


async def test_a_lease_does_not_end_in_the_journal_without_what_holds_it(
    journal: Journal, path: Path
) -> None:
    await journal.grant(a_lease())
    await journal.move(PEER, EnvState.READY)
    with sqlite3.connect(path, isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        also = holds_of(journal).after(leavings(wishes_s=60), NOON)
        await journal.end(a_lease().lease.id, ENV, EnvState.DIRTY, "exited", 1, also)
        assert journal.pending == 1
        other.execute("ROLLBACK")
    assert (await journal.remembered(ENV)).live
    assert await journal.holds() == StoredHolds()
    await journal.probe()
    assert (await journal.remembered(ENV)).live is None
    assert list((await journal.holds()).holds) == [ENV]


async def test_nobody_takes_over_what_cannot_be_journalled(journal: Journal, path: Path) -> None:
    stored = StoredHold(Hold(for_s=60, since=NOON, holder="bob"), Key("k", 2, "5ec"))
    await journal.move(ENV, EnvState.HELD)
    with sqlite3.connect(path, isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(JournalError):
            await journal.take_hold(ENV, stored)
        other.execute("ROLLBACK")
    assert journal.pending == 0
    assert (await journal.holds()).holds == {}
    assert (await journal.remembered(ENV)).generation == 0


async def test_a_journal_of_version_2_is_carried_over(path: Path) -> None:
    with sqlite3.connect(path) as db:
        for statement in SCHEMA[: -len(HOLDS)]:
            db.execute(statement)
        db.execute("PRAGMA user_version = 2")
    db.close()
    async with Journal.open(path, now=Clock()) as journal:
        assert await journal.holds() == StoredHolds()
        await journal.hold(ENV, StoredHold(Hold(for_s=60)), "hold asked for")
        assert list((await journal.holds()).holds) == [ENV]


async def test_a_time_without_its_zone_is_an_error_and_no_guess(
    journal: Journal, path: Path
) -> None:
    hold = Hold(for_s=60, since=datetime(2026, 11, 26, tzinfo=UTC).replace(tzinfo=None))
    statement, values = put_hold(ENV, StoredHold(hold))
    with sqlite3.connect(path) as other:
        other.execute(statement, values)
    other.close()
    with pytest.raises(JournalError, match="has no time zone"):
        await journal.holds()
