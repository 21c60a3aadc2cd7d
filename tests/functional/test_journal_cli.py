"""`testenv-host journal` as an admin types it."""

import asyncio
import json
import socket
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from hosts.journal import Journal
from hosts.journal_file import JOURNAL_NAME
from hosts.journal_rows import StoredLease
from schemas.status import EnvState, Lease

SOON_S = 30
ENV = "te7/1"
LEASE_ID = "0123456789abcdef"
NOON = datetime(2026, 11, 26, 12, tzinfo=UTC)
SECRET_HASH = "f00dfeed"  # noqa: S105
CALLBACK = "callback_of_the_client"


def type_command(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from hosts.cli import main; main()", *words],
        capture_output=True,
        text=True,
        timeout=SOON_S,
        check=False,
    )


def stored_lease() -> StoredLease:
    lease = Lease(
        id=LEASE_ID,
        environment=ENV,
        generation=1,
        holder="job 42",
        granted=NOON,
        timeout_s=90,
    )
    return StoredLease(lease, "request-1", CALLBACK, 2, SECRET_HASH)


async def write_a_journal(state_dir: Path, *, reason: str = "completed") -> None:
    state_dir.mkdir(parents=True)
    async with Journal.open(state_dir / JOURNAL_NAME, now=lambda: NOON) as journal:
        await journal.move(ENV, EnvState.READY)
        await journal.grant(stored_lease())
        await journal.end(LEASE_ID, ENV, EnvState.DIRTY, reason)


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    path = tmp_path / "state"
    asyncio.run(write_a_journal(path))
    return path


def test_the_journal_is_a_table_with_the_newest_event_last(state_dir: Path) -> None:
    printed = type_command("journal", "--state-dir", str(state_dir))
    assert printed.returncode == 0, printed.stderr
    assert [line.split() for line in printed.stdout.splitlines()] == [
        ["time", "(UTC)", "environment", "event", "state", "lease", "reason"],
        ["2026-11-26", "12:00:00", ENV, "moved", "ready"],
        ["2026-11-26", "12:00:00", ENV, "granted", "leased", "01234567"],
        ["2026-11-26", "12:00:00", ENV, "lease", "ended", "dirty", "01234567", "completed"],
    ]


def test_a_limit_leaves_the_newest_events(state_dir: Path) -> None:
    printed = type_command("journal", "--state-dir", str(state_dir), "--limit", "1")
    assert len(printed.stdout.splitlines()) == 2
    assert "lease ended" in printed.stdout


def test_the_journal_as_json_is_one_document(state_dir: Path) -> None:
    printed = type_command("journal", "--state-dir", str(state_dir), "--json")
    document = json.loads(printed.stdout)
    assert list(document) == ["environments", "leases", "events"]
    assert document["environments"] == [
        {
            "id": ENV,
            "generation": 1,
            "state": "dirty",
            "reason": "completed",
            "since": "2026-11-26T12:00:00.000000+00:00",
            "cordoned": None,
        }
    ]
    (lease,) = document["leases"]
    assert (lease["id"], lease["holder"], lease["job"]) == (LEASE_ID, "job 42", "request-1")
    assert [event["event"] for event in document["events"]] == ["moved", "granted", "lease ended"]


@pytest.mark.parametrize("words", [[], ["--json"]])
def test_nothing_is_printed_with_which_one_could_act_for_a_holder(
    state_dir: Path, words: list[str]
) -> None:
    printed = type_command("journal", "--state-dir", str(state_dir), *words)
    assert LEASE_ID[:8] in printed.stdout
    assert SECRET_HASH not in printed.stdout
    assert CALLBACK not in printed.stdout


def test_a_holder_s_words_do_not_steer_the_terminal(tmp_path: Path) -> None:
    asyncio.run(write_a_journal(tmp_path / "state", reason="\x1b[2J:cd: [red]"))
    printed = type_command("journal", "--state-dir", str(tmp_path / "state"))
    assert printed.stdout.rstrip().endswith("?[2J:cd: [red]")


def test_the_configuration_says_where_the_journal_is(state_dir: Path, tmp_path: Path) -> None:
    config = tmp_path / "host.toml"
    config.write_text(f'[host]\nname = "te7"\nstate_dir = "{state_dir}"\n')
    printed = type_command("--config", str(config), "journal")
    assert "granted" in printed.stdout


def test_a_number_finds_the_journal_of_serve(tmp_path: Path) -> None:
    asyncio.run(write_a_journal(tmp_path / f"{socket.gethostname()}-7"))
    printed = type_command("journal", "--state-dir", str(tmp_path), "-n", "7")
    assert "granted" in printed.stdout


def test_no_journal_is_said_in_one_line(tmp_path: Path) -> None:
    refused = type_command("journal", "--state-dir", str(tmp_path))
    assert refused.returncode == 1
    assert refused.stdout == ""
    (line,) = refused.stderr.splitlines()
    assert line.startswith(f"testenv-host: journal {tmp_path / JOURNAL_NAME}: there is none yet")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_journal_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / JOURNAL_NAME).write_bytes(b"x" * 5000)
    refused = type_command("journal", "--state-dir", str(tmp_path))
    assert refused.returncode == 1
    (line,) = refused.stderr.splitlines()
    assert "move it away" in line


def test_the_journal_can_be_read_while_it_is_written(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "tests.unit.journal_writer", str(tmp_path / JOURNAL_NAME), ENV],
        stdout=subprocess.PIPE,
        text=True,
    ) as writer:
        try:
            assert writer.stdout is not None
            writer.stdout.readline()
            printed = type_command("journal", "--state-dir", str(tmp_path))
            assert writer.poll() is None
        finally:
            writer.kill()
    assert printed.returncode == 0, printed.stderr
    assert "granted" in printed.stdout


def test_help_has_an_example() -> None:
    helped = type_command("journal", "--help")
    assert "testenv-host journal --limit 20" in helped.stdout
