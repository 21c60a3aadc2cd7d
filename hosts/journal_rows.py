"""What the journal's rows say: the types, and the statements that read and write them."""

import sqlite3
from dataclasses import dataclass
from datetime import UTC, datetime

from hosts.journal_file import KEEP_EVENTS
from hosts.journal_holds import Statement
from schemas.status import EnvState, Lease

KEEP_LEASES = 1000
"""Of each environment; older ones are dropped once they have ended."""


@dataclass(frozen=True)
class StoredLease:
    """A lease with what its agent needs to take it up again.

    `job`: the unique id of the client's request. `callback`: the function that reaches the client.
    `version`: of the lock protocol. `secret_hash`: of the lease's secret, which is never stored.
    """

    lease: Lease
    job: str
    callback: str
    version: int
    secret_hash: str


@dataclass(frozen=True)
class Remembered:
    """One environment as the journal has it; `generation` 0 and no state if never seen."""

    generation: int = 0
    state: EnvState | None = None
    reason: str = ""
    live: StoredLease | None = None
    """The lease that has not ended."""
    cordoned: str | None = None
    """Why an operator has it not offered; None if none has."""
    last_lease: str = ""
    """The id of the newest, live or ended."""


@dataclass(frozen=True)
class Ended:
    """How a lease ended. `exit_code`: its command's, None where that is not known."""

    environment: str
    reason: str
    exit_code: int | None


@dataclass(frozen=True)
class Entry:
    """One event, with what it changes: `state` of the environment, or its cordon, the end of
    `lease`, and what `also` says."""

    at: str
    environment: str
    event: str
    state: EnvState | None = None
    lease: str | None = None
    ends_lease: bool = False
    reason: str = ""
    exit_code: int | None = None
    is_cordon: bool = False
    """It sets or, without `cordon`, lifts the environment's."""
    cordon: str | None = None
    also: tuple[Statement, ...] = ()

    def write(self, db: sqlite3.Connection) -> None:
        """Raises sqlite3.Error, OverflowError."""
        if self.ends_lease:
            db.execute(
                "UPDATE leases SET ended = ?, reason = ?, exit_code = ?"
                " WHERE id = ? AND ended IS NULL",
                (self.at, self.reason, self.exit_code, self.lease),
            )
        if self.state is not None:
            db.execute(
                "INSERT INTO environments VALUES (?, 0, ?, ?, ?, NULL) ON CONFLICT (id) DO UPDATE"
                " SET state = excluded.state, reason = excluded.reason, since = excluded.since",
                (self.environment, self.state, self.reason, self.at),
            )
        if self.is_cordon:
            db.execute(
                "INSERT INTO environments VALUES (?, 0, ?, '', ?, ?) ON CONFLICT (id) DO UPDATE"
                " SET cordoned = excluded.cordoned",
                (self.environment, EnvState.BUILDING, self.at, self.cordon),
            )
        for statement in self.also:
            db.execute(*statement)
        added = db.execute(
            "INSERT INTO events (at, environment, lease, event, state, reason)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (self.at, self.environment, self.lease, self.event, self.state, self.reason),
        )
        db.execute("DELETE FROM events WHERE number <= ?", ((added.lastrowid or 0) - KEEP_EVENTS,))


def add_lease(db: sqlite3.Connection, stored: StoredLease) -> None:
    """A live one; of those that have ended only the last KEEP_LEASES stay."""
    lease = stored.lease
    db.execute(
        "INSERT INTO leases VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, NULL, '', NULL)",
        (
            lease.id,
            lease.environment,
            lease.generation,
            text(lease.holder),
            text(lease.submitter),
            text(stored.job),
            text(stored.callback),
            stored.version,
            stored.secret_hash,
            iso(lease.granted),
            lease.timeout_s,
        ),
    )
    db.execute(
        "DELETE FROM leases WHERE environment = ? AND generation <= ? AND ended IS NOT NULL",
        (lease.environment, lease.generation - KEEP_LEASES),
    )


RECENTLY_ENDED = """
    SELECT environment, reason, exit_code FROM leases WHERE ended >= (
        SELECT min(ended) FROM (
            SELECT ended FROM leases
            WHERE environment = :environment AND ended > (
                SELECT coalesce(max(at), '') FROM events
                WHERE environment = :environment AND event = :cleared
            )
            ORDER BY generation DESC LIMIT :leases
        )
    ) ORDER BY ended"""


def remembered(db: sqlite3.Connection, env_id: str) -> Remembered:
    """What the rows say of an environment. Raises sqlite3.Error, ValueError."""
    row = db.execute(
        "SELECT generation, state, reason, cordoned FROM environments WHERE id = ?", (env_id,)
    ).fetchone()
    if row is None:
        return Remembered()
    generation, state, reason, cordoned = row
    live = _live_lease(db, env_id)
    last = db.execute(
        "SELECT id FROM leases WHERE environment = ? ORDER BY generation DESC LIMIT 1", (env_id,)
    ).fetchone()
    return Remembered(generation, EnvState(state), reason, live, cordoned, last[0] if last else "")


def _live_lease(db: sqlite3.Connection, env_id: str) -> StoredLease | None:
    row = db.execute(
        "SELECT id, generation, holder, submitter, granted, timeout_s, job, callback, version,"
        " secret_hash FROM leases WHERE environment = ? AND ended IS NULL",
        (env_id,),
    ).fetchone()
    if row is None:
        return None
    lease_id, generation, holder, submitter, granted, timeout_s, *rest = row
    lease = Lease(
        id=lease_id,
        environment=env_id,
        generation=generation,
        holder=holder,
        submitter=submitter,
        granted=_moment(granted),
        timeout_s=timeout_s,
    )
    return StoredLease(lease, *rest)


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{text} has no time zone")
    return moment


def iso(moment: datetime) -> str:
    """A moment as all rows have it: UTC, so that they sort as they came."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds")


def text(said: str) -> str:
    """What others say may hold half a surrogate pair, which SQLite refuses."""
    return said.encode(errors="replace").decode()
