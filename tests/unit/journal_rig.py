"""Leases to journal, and what the journal says of them."""

import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from hosts.chronicle import read_journal
from hosts.journal_rows import StoredLease
from schemas.status import Lease

ENV = "te7/1"
NOON = datetime(2026, 11, 26, 12, tzinfo=UTC)
SOON_S = 30


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


def events(path: Path) -> list[tuple[str, str | None, str]]:
    return [(one.event, one.state, one.reason) for one in read_journal(path).events]


def grant_and_die(path: Path) -> None:
    words = ["tests.unit.journal_writer", str(path), ENV, "--die-leased"]
    died = subprocess.run(
        [sys.executable, "-m", *words], check=False, timeout=SOON_S, capture_output=True
    )
    assert died.returncode == -signal.SIGKILL
