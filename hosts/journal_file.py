"""The journal's file: its schema, its transactions, and its errors in words."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from schemas.errors import JournalError

JOURNAL_NAME = "journal.db"
"""The file's name in an agent's state directory."""
KEEP_EVENTS = 100_000
"""Older events are dropped: about 20 MB."""
SCHEMA_VERSION = 3
HOLDS = (
    """CREATE TABLE holds (
        environment TEXT NOT NULL PRIMARY KEY,
        hold TEXT NOT NULL,
        key TEXT NOT NULL,
        generation INTEGER NOT NULL,
        secret_hash TEXT NOT NULL
    ) STRICT""",
    """CREATE TABLE autoholds (
        id TEXT NOT NULL PRIMARY KEY,
        autohold TEXT NOT NULL
    ) STRICT""",
)
SCHEMA = (
    """CREATE TABLE environments (
        id TEXT NOT NULL PRIMARY KEY,
        generation INTEGER NOT NULL,
        state TEXT NOT NULL,
        reason TEXT NOT NULL,
        since TEXT NOT NULL,
        cordoned TEXT
    ) STRICT""",
    """CREATE TABLE leases (
        id TEXT NOT NULL PRIMARY KEY,
        environment TEXT NOT NULL REFERENCES environments (id),
        generation INTEGER NOT NULL,
        holder TEXT NOT NULL,
        submitter TEXT NOT NULL,
        job TEXT NOT NULL,
        callback TEXT NOT NULL,
        version INTEGER NOT NULL,
        secret_hash TEXT NOT NULL,
        granted TEXT NOT NULL,
        timeout_s REAL NOT NULL,
        ended TEXT,
        reason TEXT NOT NULL DEFAULT '',
        exit_code INTEGER,
        UNIQUE (environment, generation)
    ) STRICT""",
    "CREATE UNIQUE INDEX live_lease ON leases (environment) WHERE ended IS NULL",
    """CREATE TABLE events (
        number INTEGER PRIMARY KEY,
        at TEXT NOT NULL,
        environment TEXT NOT NULL,
        lease TEXT,
        event TEXT NOT NULL,
        state TEXT,
        reason TEXT NOT NULL
    ) STRICT""",
    *HOLDS,
)
MIGRATIONS = {
    1: (
        "ALTER TABLE environments ADD COLUMN cordoned TEXT",
        "ALTER TABLE leases ADD COLUMN exit_code INTEGER",
    ),
    2: HOLDS,
}
"""What leads from each older version to the next."""

BROKEN = "stop the jobs that run here, then move it away: the agent forgets their leases with it"
DEFECT = "this is a defect of the agent, please report it"
_REMEDIES = {
    sqlite3.SQLITE_FULL: "free some space on its disk",
    sqlite3.SQLITE_BUSY: "end what holds it (fuser names it)",
    sqlite3.SQLITE_CORRUPT: BROKEN,
    sqlite3.SQLITE_NOTADB: BROKEN,
    sqlite3.SQLITE_CANTOPEN: "its directory must exist, with space, and be the agent's user's",
    sqlite3.SQLITE_READONLY: "it and its directory must be writable for the agent's user",
    sqlite3.SQLITE_CONSTRAINT: DEFECT,
}


def upgrade(version: int) -> Iterator[str]:
    """The statements that make a file of an older `version` one of ours; 0 is an empty one."""
    if not version:
        yield from SCHEMA
        return
    for each in range(version, SCHEMA_VERSION):
        yield from MIGRATIONS[each]


def schema_version(db: sqlite3.Connection, path: Path) -> int:
    """The schema's version; 0 before there is one. Raises JournalError for one newer than ours."""
    version: int = db.execute("PRAGMA user_version").fetchone()[0]
    if version < 0:
        raise JournalError(path, f"is none of ours (schema {version})", remedy=BROKEN)
    if version > SCHEMA_VERSION:
        raise JournalError(
            path,
            f"was written by a newer testenv-host (schema {version}, this one knows"
            f" {SCHEMA_VERSION})",
            remedy="install that version again",
        )
    return version


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """All that is written within, or none of it."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield db
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:  # SQLite has rolled back by itself after some errors
            db.execute("ROLLBACK")
        raise


@contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """Whatever goes wrong within is a JournalError."""
    try:
        yield
    except (sqlite3.Error, OSError, OverflowError, ValueError) as exc:
        raise journal_error(path, exc) from exc


def journal_error(path: Path, exc: Exception) -> JournalError:
    """`exc` in words, with the remedy that fits it."""
    code = getattr(exc, "sqlite_errorcode", 0) & 0xFF  # the low byte tells the kind of error
    why = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
    remedy = "see that its disk works and has space, and that it is the agent's user's"
    return JournalError(path, why, remedy=_REMEDIES.get(code, remedy))
