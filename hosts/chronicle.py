"""The journal as people read it, also while its agent runs."""

import json
import re
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

from hosts.journal_file import KEEP_EVENTS, named_errors, schema_version
from schemas.errors import JournalError

READ_S = 5.0
"""How long a locked file is waited for."""


class EnvironmentRecord(NamedTuple):
    id: str
    generation: int
    state: str
    reason: str
    since: str
    cordoned: str | None = None


class LeaseRecord(NamedTuple):
    """A lease without what could be used to act for its holder."""

    id: str
    environment: str
    generation: int
    holder: str
    submitter: str
    job: str
    version: int
    granted: str
    timeout_s: float
    ended: str | None
    reason: str
    exit_code: int | None = None


class EventRecord(NamedTuple):
    """`state` is None for an event that changed none; `lease` for one that concerns none."""

    at: str
    environment: str
    lease: str | None
    event: str
    state: str | None
    reason: str


R = TypeVar("R", EnvironmentRecord, LeaseRecord, EventRecord)


class Chronicle(NamedTuple):
    """A journal at one moment, for people. Times are UTC, in ISO 8601; the newest comes last."""

    environments: tuple[EnvironmentRecord, ...]
    leases: tuple[LeaseRecord, ...]
    events: tuple[EventRecord, ...]


_ENVIRONMENTS = "SELECT {columns} FROM environments ORDER BY id"
_LEASES = (
    "SELECT * FROM (SELECT {columns} FROM leases ORDER BY ended IS NULL DESC, granted DESC"
    " LIMIT :limit + (SELECT count(*) FROM leases WHERE ended IS NULL)) ORDER BY granted"
)
_CHOSEN_LEASES = (
    "SELECT * FROM (SELECT {columns} FROM leases"
    " WHERE substr(id, 1, length(:lease)) = :lease"
    " AND (:environments = '[]' OR environment IN (SELECT value FROM json_each(:environments)))"
    " ORDER BY ended IS NULL DESC, granted DESC LIMIT :limit) ORDER BY granted"
)
_EVENTS = (
    "SELECT {columns} FROM (SELECT * FROM events ORDER BY number DESC LIMIT :limit) ORDER BY number"
)


def read_journal(path: Path, *, limit: int = KEEP_EVENTS) -> Chronicle:
    """The journal at `path`, also while its agent runs, which it does not disturb.

    All environments, all live leases, and the newest `limit` ended leases and events. Raises
    JournalError; a locked file is waited for, READ_S at most.
    """
    asked = {"limit": limit}
    with _opened(path) as db:
        return Chronicle(
            tuple(_records(db, EnvironmentRecord, _ENVIRONMENTS, asked)),
            tuple(_records(db, LeaseRecord, _LEASES, asked)),
            tuple(_records(db, EventRecord, _EVENTS, asked)),
        )


def read_leases(
    path: Path, *, environments: Iterable[str] = (), lease: str = "", limit: int
) -> tuple[LeaseRecord, ...]:
    """At most `limit` leases: those that run, then the newest; as `read_journal` reads and raises.

    Only those of `environments`, where any are given, and whose id begins with `lease`.
    """
    chosen = json.dumps(list(environments))
    asked = {"environments": chosen, "lease": lease, "limit": limit}
    with _opened(path) as db:
        return tuple(_records(db, LeaseRecord, _CHOSEN_LEASES, asked))


@contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    """The file as it is at one moment. Raises JournalError, also for what goes wrong within."""
    with named_errors(path):
        if not path.exists():
            raise _no_journal(path)
        source = f"{path.absolute().as_uri()}?mode=ro"
        with closing(sqlite3.connect(source, uri=True, timeout=READ_S, isolation_level=None)) as db:
            db.execute("BEGIN")
            if schema_version(db, path) == 0:
                raise _no_journal(path)
            yield db


def _records(
    db: sqlite3.Connection, kind: type[R], query: str, asked: Mapping[str, object]
) -> Iterator[R]:
    # A file that no newer agent has opened yet lacks the columns that have defaults here.
    [table] = re.findall(r"FROM (environments|leases|events)\b", query)[:1]
    there = {name for _, name, *_ in db.execute(f"PRAGMA table_info({table})")}
    columns = [name for name in kind._fields if name in there]
    rows = db.execute(query.format(columns=", ".join(columns)), asked)
    return (kind(**dict(zip(columns, row, strict=True))) for row in rows)


def _no_journal(path: Path) -> JournalError:
    return JournalError(path, "there is none yet", remedy="the agent makes it when it starts")
