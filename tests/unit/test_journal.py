"""The journal is true after every crash: what it remembers, refuses and tells."""

import contextlib
import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from hosts.chronicle import Chronicle, read_journal
from hosts.journal import Journal
from hosts.journal_file import HOLDS, SCHEMA
from hosts.journal_rows import Ended, Remembered, StoredLease
from hosts.state import Event
from schemas.errors import JournalError
from schemas.status import EnvState
from tests.unit.journal_rig import (
    ENV,
    NOON,
    Clock,
    a_lease,
    events,
)

KILLED_AFTER = range(1, 60, 3)
"""Twenty times: after so many transitions, in the middle of the next."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


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
        for statement in SCHEMA[: -len(HOLDS)]:
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


async def test_old_events_and_old_leases_are_dropped(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hosts.journal_rows.KEEP_EVENTS", 5)
    monkeypatch.setattr("hosts.journal_rows.KEEP_LEASES", 2)
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
