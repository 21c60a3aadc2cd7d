"""The journal is true after every crash, and grants nothing that it cannot write."""

import asyncio
import contextlib
import json
import logging
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from hosts.chronicle import Chronicle, read_journal
from hosts.journal import Ended, Journal, Remembered, StoredLease
from hosts.journal_file import SCHEMA
from hosts.state import Event
from schemas.errors import JournalError
from schemas.status import EnvState, Lease
from tests.small_disk import fill, small_disk

ENV = "te7/1"
NOON = datetime(2026, 11, 26, 12, tzinfo=UTC)
SOON_S = 30
KILLED_AFTER = range(1, 60, 3)
"""Twenty times: after so many transitions, in the middle of the next."""


class Clock:
    """A second later at every look."""

    def __init__(self) -> None:
        self._now = NOON

    def __call__(self) -> datetime:
        self._now += timedelta(seconds=1)
        return self._now


def a_lease(generation: int = 1, *, environment: str = ENV, holder: str = "job 42") -> StoredLease:
    lease = Lease(
        id=f"{generation:08x}{environment}",
        environment=environment,
        generation=generation,
        holder=holder,
        submitter="job/ci-7",
        granted=NOON + timedelta(microseconds=generation),
        timeout_s=90.5,
    )
    return StoredLease(lease, f"job-{generation}", "cb", 2, "5ec")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


def events(path: Path) -> list[tuple[str, str | None, str]]:
    return [(one.event, one.state, one.reason) for one in read_journal(path).events]


async def test_a_new_journal_remembers_nothing(path: Path) -> None:
    async with Journal.open(path, now=Clock()) as journal:
        assert await journal.remembered(ENV) == Remembered()
        await journal.probe()
        assert journal.pending == 0
    assert read_journal(path) == Chronicle((), (), ())


async def test_a_cordon_is_remembered_until_it_is_lifted(path: Path) -> None:
    async with Journal.open(path, now=Clock()) as journal:
        await journal.cordon(ENV, "new disk")
        assert (await journal.remembered(ENV)).cordoned == "new disk"
        await journal.grant(a_lease())
        await journal.end(a_lease().lease.id, ENV, EnvState.DIRTY, "exited", 7)
    async with Journal.open(path, now=Clock()) as journal:
        assert (await journal.remembered(ENV)).cordoned == "new disk"
        await journal.uncordon(ENV)
        assert (await journal.remembered(ENV)).cordoned is None
    assert [name for name, *_ in events(path)] == [
        "cordoned",
        Event.GRANTED,
        Event.LEASE_ENDED,
        "uncordoned",
    ]


async def test_the_latest_leases_are_told_with_what_ended_elsewhere_meanwhile(path: Path) -> None:
    peer = "te1/2"

    async def used(journal: Journal, environment: str, generation: int, code: int | None) -> None:
        stored = a_lease(generation, environment=environment)
        await journal.grant(stored)
        await journal.end(stored.lease.id, environment, EnvState.DIRTY, "why", code)

    async with Journal.open(path, now=Clock()) as journal:
        await used(journal, ENV, 1, 3)
        await used(journal, peer, 1, 4)
        await used(journal, ENV, 2, None)
        await used(journal, peer, 2, 0)
        await used(journal, ENV, 3, 0)
        last, between = Ended(ENV, "why", 0), Ended(peer, "why", 0)
        assert await journal.recently_ended(ENV, 2) == (Ended(ENV, "why", None), between, last)
        await journal.note(ENV, Event.CLEARED)
        assert await journal.recently_ended(ENV, 2) == ()
        await used(journal, ENV, 4, 5)
        assert await journal.recently_ended(ENV, 2) == (Ended(ENV, "why", 5),)
        assert len(await journal.recently_ended(peer, 9)) == 5


async def test_a_journal_of_version_1_is_read_and_carried_over(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db:
        for statement in SCHEMA:
            older = statement.replace(",\n        cordoned TEXT", "")
            db.execute(older.replace("        exit_code INTEGER,\n", ""))
        db.execute("INSERT INTO environments VALUES (?, 4, 'leased', '', 'then')", (ENV,))
        values = ("1ea5e", ENV, 4, "job", "", "1", "cb", 2, "5ec", NOON.isoformat(), 60.0)
        db.execute("INSERT INTO leases VALUES (?,?,?,?,?,?,?,?,?,?,?, NULL, '')", values)
        db.execute("PRAGMA user_version = 1")
        db.commit()
    assert read_journal(path).environments[0].cordoned is None
    async with Journal.open(path, now=Clock()) as journal:
        remembered = await journal.remembered(ENV)
        assert remembered.live
        assert (remembered.generation, remembered.live.lease.id) == (4, "1ea5e")
        await journal.end("1ea5e", ENV, EnvState.DIRTY, "exited", 3)
        await journal.grant(a_lease(5))
    assert [each.exit_code for each in read_journal(path).leases] == [3, None]


async def test_only_its_user_may_read_it(path: Path) -> None:
    async with Journal.open(path, now=Clock()) as journal:
        await journal.grant(a_lease())
        modes = {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
    assert modes == dict.fromkeys(["journal.db", "journal.db-wal", "journal.db-shm"], 0o600)


async def test_a_live_lease_is_remembered_by_the_next_agent(path: Path) -> None:
    async with Journal.open(path, now=Clock()) as journal:
        await journal.grant(a_lease(3))
    async with Journal.open(path, now=Clock()) as journal:
        stored = a_lease(3)
        assert await journal.remembered(ENV) == Remembered(
            3, EnvState.LEASED, "", stored, last_lease=stored.lease.id
        )


async def test_an_ended_lease_is_not_live_any_more(path: Path) -> None:
    async with Journal.open(path, now=Clock()) as journal:
        await journal.grant(a_lease())
        await journal.end(a_lease().lease.id, ENV, EnvState.DIRTY, "completed")
        assert await journal.remembered(ENV) == Remembered(
            1, EnvState.DIRTY, "completed", None, last_lease=a_lease().lease.id
        )


async def test_every_transition_leaves_one_event(path: Path) -> None:
    lease_id = a_lease().lease.id
    async with Journal.open(path, now=Clock()) as journal:
        await journal.move(ENV, EnvState.BROKEN, "no space")
        await journal.move(ENV, EnvState.READY)
        await journal.grant(a_lease())
        await journal.note(ENV, "suspect", lease=lease_id, reason="the broker is away")
        await journal.end(lease_id, ENV, EnvState.DIRTY, "completed")
    assert events(path) == [
        ("moved", "broken", "no space"),
        ("moved", "ready", ""),
        ("granted", "leased", ""),
        ("suspect", None, "the broker is away"),
        ("lease ended", "dirty", "completed"),
    ]
    chronicle = read_journal(path)
    assert [one.lease for one in chronicle.events] == [None, None, lease_id, lease_id, lease_id]
    assert [one.at[:19] for one in chronicle.events] == [
        f"2026-11-26T12:00:0{second}" for second in (1, 2, 3, 4, 5)
    ]
    assert chronicle.environments[0].since == chronicle.leases[0].ended == chronicle.events[-1].at
    assert chronicle.leases[0].reason == "completed"


async def test_a_note_leaves_state_and_lease_as_they_are(path: Path) -> None:
    async with Journal.open(path, now=Clock()) as journal:
        await journal.grant(a_lease())
        before = await journal.remembered(ENV)
        await journal.note(ENV, "told to end", lease=a_lease().lease.id, reason="revoked")
        assert await journal.remembered(ENV) == before


@pytest.mark.parametrize("generation", [1, 2])
async def test_a_generation_never_goes_back(path: Path, generation: int) -> None:
    async with Journal.open(path, now=Clock()) as journal:
        await journal.grant(a_lease(2))
        await journal.end(a_lease(2).lease.id, ENV, EnvState.READY, "declined")
        with pytest.raises(JournalError, match="is not greater than 2") as refused:
            await journal.grant(a_lease(generation))
        assert "defect" in str(refused.value)
        assert (await journal.remembered(ENV)).live is None
        await journal.grant(a_lease(3))


async def test_an_environment_never_has_two_live_leases(path: Path) -> None:
    async with Journal.open(path, now=Clock()) as journal:
        await journal.grant(a_lease(1))
        with pytest.raises(JournalError, match="has not ended"):
            await journal.grant(a_lease(2))
        await journal.grant(a_lease(1, environment="te7/2"))
        assert (await journal.remembered(ENV)).live == a_lease(1)


async def test_a_refused_grant_leaves_no_trace(path: Path) -> None:
    async with Journal.open(path, now=Clock()) as journal:
        await journal.grant(a_lease(1))
        twin = StoredLease(
            a_lease(1, environment="te7/2").lease.model_copy(update={"id": a_lease(1).lease.id}),
            "job", "cb", 2, "5ec",
        )  # fmt: skip
        with pytest.raises(JournalError, match="UNIQUE"):
            await journal.grant(twin)
        assert await journal.remembered("te7/2") == Remembered()
    assert len(events(path)) == 1


async def test_words_of_a_client_that_are_not_unicode_are_stored_all_the_same(path: Path) -> None:
    async with Journal.open(path, now=Clock()) as journal:
        await journal.grant(a_lease(holder="job \ud800"))
        await journal.end(a_lease().lease.id, ENV, EnvState.DIRTY, "\udfff")
    assert read_journal(path).leases[0].holder == "job ?"


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


async def test_old_events_and_old_leases_are_dropped(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hosts.journal.KEEP_EVENTS", 5)
    monkeypatch.setattr("hosts.journal.KEEP_LEASES", 2)
    async with Journal.open(path, now=Clock()) as journal:
        await journal.grant(a_lease(1, environment="te7/2"))
        for generation in range(1, 6):
            await journal.grant(a_lease(generation))
            await journal.end(a_lease(generation).lease.id, ENV, EnvState.READY, "")
    chronicle = read_journal(path)
    assert len(chronicle.events) == 5
    kept = [(one.environment, one.generation) for one in chronicle.leases]
    assert kept == [("te7/2", 1), (ENV, 4), (ENV, 5)]


async def test_a_reader_sees_all_live_leases_and_the_newest_of_the_rest(path: Path) -> None:
    async with Journal.open(path, now=Clock()) as journal:
        await journal.grant(a_lease(1, environment="te7/2"))
        for generation in range(1, 6):
            await journal.grant(a_lease(generation))
            await journal.end(a_lease(generation).lease.id, ENV, EnvState.READY, "")
        chronicle = read_journal(path, limit=2)
    assert [one.event for one in chronicle.events] == ["granted", "lease ended"]
    kept = [(one.environment, one.generation) for one in chronicle.leases]
    assert kept == [("te7/2", 1), (ENV, 4), (ENV, 5)]


# What cannot be used.


async def test_a_newer_schema_is_refused(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(JournalError, match="was written by a newer testenv-host"):
        async with Journal.open(path, now=Clock()):
            pass
    with pytest.raises(JournalError, match="was written by a newer testenv-host"):
        read_journal(path)


@pytest.mark.parametrize("damage", ["no database", "torn page"])
async def test_a_damaged_file_is_named_with_what_to_do(path: Path, damage: str) -> None:
    if damage == "no database":
        path.write_bytes(b"x" * 5000)
    else:
        async with Journal.open(path, now=Clock()) as journal:
            await journal.grant(a_lease())
        with path.open("r+b") as file:
            file.seek(4096)
            file.write(b"\xff" * 8192)
    with pytest.raises(JournalError, match="move it away") as refused:
        async with Journal.open(path, now=Clock()):
            pass
    assert refused.value.path == path
    assert str(path) in str(refused.value)


async def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="No such file"):
        async with Journal.open(tmp_path / "none" / "journal.db", now=Clock()):
            pass


def test_reading_makes_no_journal(path: Path) -> None:
    with pytest.raises(JournalError, match="there is none yet"):
        read_journal(path)
    assert not path.exists()


# Death, and a full disk.


def test_a_writer_killed_at_any_moment_leaves_the_journal_true(path: Path) -> None:
    said: list[list[str | None]] = []
    for transitions in KILLED_AFTER:
        with subprocess.Popen(
            [sys.executable, "-m", "tests.unit.journal_writer", str(path), ENV],
            stdout=subprocess.PIPE,
            text=True,
        ) as writer:
            assert writer.stdout is not None
            said += [json.loads(writer.stdout.readline()) for _ in range(transitions)]
            writer.kill()
            said += [json.loads(line) for line in writer.stdout if line.endswith("\n")]
        chronicle = read_journal(path)
        written: list[list[str | None]] = [[one.event, one.lease] for one in chronicle.events]
        assert written[: len(said)] == said, "all that was said to be written is there"
        assert len(written) <= len(said) + 1, "and at most the one of which it could not speak"
        said = written
        assert_true(chronicle)


def assert_true(chronicle: Chronicle) -> None:
    """Environment, lease and events tell the same story: no half of a transition."""
    (environment,) = chronicle.environments
    newest = chronicle.leases[-1]
    live = [one.id for one in chronicle.leases if one.ended is None]
    assert live == ([newest.id] if environment.state == "leased" else [])
    assert environment.generation == newest.generation == len(chronicle.leases)
    assert sum(one.event == "granted" for one in chronicle.events) == len(chronicle.leases)
    moves = [one.state for one in chronicle.events if one.state]
    assert moves[-1] == environment.state


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


def grant_and_die(path: Path) -> None:
    words = ["tests.unit.journal_writer", str(path), ENV, "--die-leased"]
    died = subprocess.run(
        [sys.executable, "-m", *words], check=False, timeout=SOON_S, capture_output=True
    )
    assert died.returncode == -signal.SIGKILL
