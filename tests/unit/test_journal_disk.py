"""A disk that is slow, locked or full: the journal grants nothing that it cannot write."""

import asyncio
import contextlib
import logging
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from hosts.chronicle import read_journal
from hosts.journal import Journal
from schemas.errors import JournalError
from schemas.status import EnvState
from tests.small_disk import fill, small_disk
from tests.unit.journal_rig import ENV, SOON_S, Clock, a_lease, events, grant_and_die


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


async def test_the_event_loop_goes_on_while_the_disk_is_slow(path: Path) -> None:
    async with Journal.open(path, now=Clock()) as journal:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            granting = asyncio.create_task(journal.grant(a_lease()))
            for _ in range(20):
                await asyncio.sleep(0.01)
            assert not granting.done()
            other.execute("ROLLBACK")
        async with asyncio.timeout(SOON_S):
            await granting


async def test_a_cancelled_call_is_written_all_the_same(path: Path) -> None:
    async with Journal.open(path, now=Clock()) as journal:
        calls = [asyncio.create_task(journal.note(ENV, f"note {n}")) for n in range(20)]
        await asyncio.sleep(0)
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
    assert [event for event, _, _ in events(path)] == [f"note {n}" for n in range(20)]


async def test_what_a_locked_file_does_not_take_is_written_first_later(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("hosts.journal.BUSY_S", 0.05)
    caplog.set_level(logging.INFO, "hosts.journal")
    lease_id = a_lease(1).lease.id
    async with Journal.open(path, now=Clock()) as journal:
        await journal.grant(a_lease(1))
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            await journal.note(ENV, "suspect", lease=lease_id)
            await journal.end(lease_id, ENV, EnvState.DIRTY, "silent")
            await journal.move(ENV, EnvState.READY)
            assert journal.pending == 3
            with pytest.raises(JournalError, match="locked"):
                await journal.grant(a_lease(2))
            with pytest.raises(JournalError, match="locked"):
                await journal.probe()
            assert journal.pending == 3
            other.execute("ROLLBACK")
        await journal.grant(a_lease(2))
        assert journal.pending == 0
        assert (await journal.remembered(ENV)).live == a_lease(2)
    chronicle = read_journal(path)
    assert [one.event for one in chronicle.events] == [
        "granted", "suspect", "lease ended", "moved", "granted",
    ]  # fmt: skip
    assert [one.at for one in chronicle.events] == sorted(one.at for one in chronicle.events)
    assert chronicle.leases[0].ended == chronicle.events[2].at
    warnings = [one for one in caplog.records if one.levelno == logging.WARNING]
    assert len(warnings) == 1, "said once, not for every transition"


async def test_probe_writes_what_is_pending(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hosts.journal.BUSY_S", 0.05)
    async with Journal.open(path, now=Clock()) as journal:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            await journal.move(ENV, EnvState.BROKEN, "x")
            other.execute("ROLLBACK")
        await journal.probe()
        assert journal.pending == 0
    assert events(path) == [("moved", "broken", "x")]


async def test_closing_writes_what_is_pending(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hosts.journal.BUSY_S", 0.05)
    async with Journal.open(path, now=Clock()) as journal:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            await journal.move(ENV, EnvState.HELD)
            other.execute("ROLLBACK")
    assert events(path) == [("moved", "held", "")]


async def test_memory_is_bounded_and_no_end_nor_last_state_is_dropped(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hosts.journal.BUSY_S", 0.0)
    monkeypatch.setattr("hosts.journal.MAX_PENDING", 10)
    async with Journal.open(path, now=Clock()) as journal:
        await journal.grant(a_lease())
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            await journal.move("te7/2", EnvState.HELD)
            await journal.end(a_lease().lease.id, ENV, EnvState.DIRTY, "silent")
            for _ in range(20):
                await journal.note(ENV, "suspect")
                await journal.move(ENV, EnvState.BROKEN)
                await journal.move(ENV, EnvState.BUILDING)
            assert journal.pending == 10
            other.execute("ROLLBACK")
        await journal.probe()
        assert (await journal.remembered("te7/2")).state is EnvState.HELD
        remembered = await journal.remembered(ENV)
        assert (remembered.state, remembered.live) == (EnvState.BUILDING, None)


async def test_closing_is_bounded(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("hosts.journal.CLOSE_S", 0.1)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        async with asyncio.timeout(1.5):
            async with Journal.open(path, now=Clock()) as journal:
                other.execute("BEGIN IMMEDIATE")
                late = asyncio.create_task(journal.note(ENV, "late"))
                await asyncio.sleep(0)
        assert "does not answer" in caplog.text
        other.execute("ROLLBACK")
    await late
    assert events(path) == [("late", None, "")]


async def test_a_journal_without_room_grants_nothing_and_keeps_what_ends(path: Path) -> None:
    """SQLite's page limit stands for a full disk, where no small disk can be had."""
    async with Journal.open(path, now=Clock()) as journal:
        await journal.grant(a_lease(1))
        await in_writer(journal, "PRAGMA max_page_count = 1")
        await journal.move("te7/2", EnvState.BROKEN, "x" * 100_000)
        await journal.end(a_lease(1).lease.id, ENV, EnvState.DIRTY, "completed")
        assert journal.pending == 2
        with pytest.raises(JournalError, match="free some space"):
            await journal.grant(a_lease(2))
        with pytest.raises(JournalError, match="free some space"):
            await journal.probe()
        assert (await journal.remembered(ENV)).live == a_lease(1), "nothing half-written"
        await in_writer(journal, "PRAGMA max_page_count = 100000")
        await journal.grant(a_lease(2))
        assert journal.pending == 0
    assert [event for event, _, _ in events(path)] == ["granted", "moved", "lease ended", "granted"]


async def in_writer(journal: Journal, statement: str) -> None:
    await journal._call(lambda: journal._connection.execute(statement).fetchall())


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path, kib=512) as mounted:
        yield mounted


async def test_a_full_disk_grants_nothing_and_keeps_running_leases(disk: Path) -> None:
    path = disk / "journal.db"
    async with Journal.open(path, now=Clock()) as journal:
        await journal.grant(a_lease(1))
        fill(disk)
        noted = 0
        async with asyncio.timeout(SOON_S):
            while not journal.pending:
                await journal.note(ENV, f"note {noted}")
                noted += 1
        with pytest.raises(JournalError, match="space"):
            await journal.probe()
        await journal.end(a_lease(1).lease.id, ENV, EnvState.READY, "completed")
        with pytest.raises(JournalError, match="space"):
            await journal.grant(a_lease(2))
        (disk / "filler").unlink()
        await journal.grant(a_lease(2))
        assert journal.pending == 0
        assert (await journal.remembered(ENV)).live == a_lease(2)
    told = [event for event, _, _ in events(path)]
    notes = [f"note {n}" for n in range(noted)]
    assert told == ["granted", *notes, "lease ended", "granted"]


async def test_an_agent_that_starts_on_a_full_disk_remembers_its_leases(disk: Path) -> None:
    path = disk / "journal.db"
    await asyncio.to_thread(grant_and_die, path)
    fill(disk)
    async with Journal.open(path, now=Clock()) as journal:
        remembered = await journal.remembered(ENV)
    assert remembered.state is EnvState.LEASED
    assert remembered.live is not None
