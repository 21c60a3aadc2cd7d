"""The journal: what this host's agent must remember when everything else is dead (DESIGN.md 2, 4).

One SQLite file. The agent is its only writer (`Journal`, on a thread of its own); anybody who may
read the file can do so while the agent runs (`read_journal`). Every transition is committed to the
disk before the agent acts on it, except on a full or broken disk: then what ends or moves is kept
in memory and written later, and nothing new is granted.
"""

import asyncio
import logging
import sqlite3
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from hosts.journal_file import (
    BROKEN,
    DEFECT,
    SCHEMA_VERSION,
    journal_error,
    named_errors,
    schema_version,
    transaction,
    upgrade,
)
from hosts.journal_holds import (
    Statement,
    StoredHold,
    StoredHolds,
    drop_hold,
    put_autohold,
    put_generation,
    put_hold,
    stored_holds,
)
from hosts.journal_rows import (
    RECENTLY_ENDED,
    Ended,
    Entry,
    Remembered,
    StoredLease,
    add_lease,
    iso,
    remembered,
    text,
)
from hosts.state import Event
from schemas.errors import JournalError
from schemas.status import Autohold, EnvState

log = logging.getLogger(__name__)

T = TypeVar("T")

GATHER_S = 0.005
"""How long transitions wait for others: an environment is often granted again right away."""

MAX_PENDING = 10_000
"""What does not change the outcome is dropped from memory beyond this."""
BUSY_S = 2.0
"""How long another process may keep the file locked before a write counts as failed."""
_UNWRITABLE = (sqlite3.Error, OSError, OverflowError, ValueError)
"""What SQLite and its disk raise, and Python for a value that SQLite can't hold."""

CLOSE_S = 10.0
"""Closing waits this long for a disk that does not answer."""


class Journal:
    """The writer. Methods return when their transition is on the disk, in the order of the calls.

    `note`, `end` and `move` never fail: what cannot be written now is kept in memory and written
    ahead of whatever is written next. Cancelling a call does not take back what it writes.
    """

    def __init__(self, path: Path, now: Callable[[], datetime]) -> None:
        """Use `open`."""
        self._path = path
        self._now = now
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="journal")
        self._pending: deque[Entry] = deque()
        self._gathered: list[Entry] = []
        """What the next transaction writes ahead of its own."""
        self._gathering: asyncio.Future[None] | None = None
        self._db: sqlite3.Connection | None = None

    @classmethod
    @asynccontextmanager
    async def open(cls, path: Path, *, now: Callable[[], datetime]) -> AsyncIterator["Journal"]:
        """The journal at `path`, made if it does not exist; its directory must. `now`: UTC.

        Only one may be open for one file (`sole_agent` sees to that). Raises JournalError. At the
        end it is closed, which takes CLOSE_S at most.
        """
        journal = cls(path, now)
        try:
            await journal._call(journal._connect)
            yield journal
        finally:
            await journal._aclose()

    @property
    def path(self) -> Path:
        """The file, which anybody may read meanwhile."""
        return self._path

    @property
    def pending(self) -> int:
        """How many transitions are not on the disk, because it could not be written."""
        return len(self._pending)

    async def remembered(self, env_id: str) -> Remembered:
        """What is on the disk about an environment. Raises JournalError."""
        if self._gathering:
            await asyncio.shield(self._gathering)
        return await self._call(lambda: remembered(self._connection, env_id))

    async def grant(self, stored: StoredLease) -> None:
        """The environment is LEASED, with the lease's generation.

        Raises JournalError, and then nothing is granted: where this, or anything pending, cannot be
        written, where the generation is not greater than the last one, and where the environment's
        last lease has not ended.
        """
        at, gathered = self._time(), self._take_gathered()
        await self._call(lambda: self._write_with(gathered, lambda db: self._grant(db, stored, at)))
        # A failed COMMIT may still be found on the disk after a crash. That errs on the safe side:
        # the lease is then taken for live, and ends for want of beats.

    async def note(
        self, env_id: str, event: str, *, lease: str | None = None, reason: str = ""
    ) -> None:
        """Something happened that changes neither the environment's state nor a lease's end."""
        await self._record(Entry(self._time(), env_id, event, lease=lease, reason=text(reason)))

    async def end(
        self,
        lease_id: str,
        env_id: str,
        state: EnvState,
        reason: str,
        exit_code: int | None = None,
        also: tuple[Statement, ...] = (),
    ) -> None:
        """The lease has ended, and with it the environment is in `state`: DIRTY, or READY if
        nobody has touched it. `exit_code`: its command's, where that is known. `also`: what holds
        the environment from now on."""
        await self._record(
            Entry(
                self._time(),
                env_id,
                Event.LEASE_ENDED,
                state,
                lease=lease_id,
                ends_lease=True,
                reason=text(reason),
                exit_code=exit_code,
                also=also,
            )
        )

    async def cordon(self, env_id: str, reason: str) -> None:
        """An operator has the environment not offered, until `uncordon`."""
        await self._record(
            Entry(
                self._time(),
                env_id,
                "cordoned",
                reason=text(reason),
                is_cordon=True,
                cordon=text(reason),
            )
        )

    async def uncordon(self, env_id: str) -> None:
        """It may be offered again."""
        await self._record(Entry(self._time(), env_id, "uncordoned", is_cordon=True))

    async def holds(self) -> StoredHolds:
        """All that is on the disk. Raises JournalError."""
        return await self._call(lambda: stored_holds(self._connection))

    async def hold(self, env_id: str, stored: StoredHold, event: str) -> None:
        """The environment is held, or is to be; `event`: in words."""
        reason = text(stored.hold.reason)
        also = (put_hold(env_id, stored),)
        await self._record(Entry(self._time(), env_id, event, reason=reason, also=also))

    async def unhold(self, env_id: str, reason: str) -> None:
        """It is not held any more, nor to be."""
        also = (drop_hold(env_id),)
        await self._record(Entry(self._time(), env_id, Event.UNHELD, reason=reason, also=also))

    async def take_hold(self, env_id: str, stored: StoredHold) -> None:
        """The holder of `stored` gets credentials, which are the environment's newest.

        Raises JournalError, and then nobody may get them.
        """
        hold, key = stored.hold, stored.key
        assert key, "there are no credentials"  # noqa: S101 - a defect of the slot
        entry = Entry(
            self._time(),
            env_id,
            "hold taken",
            lease=key.id,
            reason=text(hold.holder),
            also=(put_hold(env_id, stored), put_generation(env_id, key.generation)),
        )
        gathered = self._take_gathered()
        await self._call(lambda: self._write_with(gathered, entry.write))

    async def autohold(self, host: str, rule: Autohold) -> None:
        """The rule holds on this host; not any more if none are left."""
        event = "autohold" if rule.left else "no autohold"
        said = text(f"{rule.job} ({rule.id}): {rule.reason}")
        also = (put_autohold(rule),)
        await self._record(Entry(self._time(), host, event, reason=said, also=also))

    async def recently_ended(self, env_id: str, leases: int) -> tuple[Ended, ...]:
        """The last `leases` of the environment that have ended, but none of before it was cleared
        last, and those of all others that have ended meanwhile; the oldest first. Raises
        JournalError."""
        asked = {"environment": env_id, "leases": leases, "cleared": Event.CLEARED}
        rows = await self._call(lambda: self._connection.execute(RECENTLY_ENDED, asked).fetchall())
        return tuple(Ended(*row) for row in rows)

    async def move(self, env_id: str, state: EnvState, reason: str = "") -> None:
        """The environment is in `state` now, by any other transition."""
        await self._record(Entry(self._time(), env_id, "moved", state, reason=text(reason)))

    async def probe(self) -> None:
        """Write what is pending, and at least a page. Raises JournalError where that fails."""
        rewrite = f"PRAGMA user_version = {SCHEMA_VERSION}"
        await self._call(lambda: self._write(lambda db: db.execute(rewrite)))

    def _time(self) -> str:
        return iso(self._now())

    async def _record(self, entry: Entry) -> None:
        """In one transaction with what follows within GATHER_S: each costs an fsync, and who waits
        for an environment waits for those of its last lease's end, too."""
        self._gathered.append(entry)
        if self._gathering is None:
            self._gathering = asyncio.ensure_future(self._write_gathered())
        await asyncio.shield(self._gathering)

    async def _write_gathered(self) -> None:
        await asyncio.sleep(GATHER_S)
        if gathered := self._take_gathered():
            await self._call(lambda: self._write_or_keep(gathered))
        else:
            await self._call(lambda: None)  # a grant has taken them, and is not done before this

    def _take_gathered(self) -> list[Entry]:
        gathered, self._gathered = self._gathered, []
        self._gathering = None
        return gathered

    async def _call(self, work: Callable[[], T]) -> T:
        """`work()` on the writer's thread, to its end even if the caller is cancelled."""

        def named() -> T:
            with named_errors(self._path):
                return work()

        loop = asyncio.get_running_loop()
        return await asyncio.shield(loop.run_in_executor(self._thread, named))

    async def _aclose(self) -> None:
        try:
            gathered = self._take_gathered()
            closing_db = asyncio.ensure_future(self._call(lambda: self._disconnect(gathered)))
            done, _ = await asyncio.wait([closing_db], timeout=CLOSE_S)
            if not done:
                log.error("journal %s: not closed, its disk does not answer", self._path)
            elif error := closing_db.exception():
                log.error("%s", error)
        finally:
            self._thread.shutdown(wait=False)

    # What follows runs on the writer's thread.

    @property
    def _connection(self) -> sqlite3.Connection:
        assert self._db is not None, "the journal is not open"  # noqa: S101
        return self._db

    def _connect(self) -> None:
        self._path.touch(mode=0o600)
        self._path.chmod(0o600)
        self._db = sqlite3.connect(self._path, timeout=BUSY_S, isolation_level=None)
        (mode,) = self._db.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise JournalError(
                self._path,
                "its file system cannot carry SQLite's write-ahead log",
                remedy="keep the state directory on a local disk",
            )
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute("PRAGMA foreign_keys = ON")
        version = schema_version(self._db, self._path)
        if version < SCHEMA_VERSION:
            with transaction(self._db):
                for statement in upgrade(version):
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        (finding,) = self._db.execute("PRAGMA quick_check(1)").fetchone()
        if finding != "ok":
            raise JournalError(self._path, f"is damaged ({finding})", remedy=BROKEN)

    def _disconnect(self, gathered: list[Entry]) -> None:
        if self._db is None:
            return
        with closing(self._db):
            self._write_or_keep(gathered)
            if self._pending:
                log.warning("journal %s: %d transitions left to write", self._path, self.pending)
                self._write(lambda _: None)

    def _grant(self, db: sqlite3.Connection, stored: StoredLease, at: str) -> None:
        lease = stored.lease
        last = remembered(db, lease.environment)
        if lease.generation <= last.generation:
            raise JournalError(
                self._path,
                f"generation {lease.generation} of {lease.environment} is not greater than"
                f" {last.generation}, which was granted before",
                remedy=DEFECT,
            )
        if last.live:
            raise JournalError(
                self._path,
                f"lease {last.live.lease.id} of {lease.environment} has not ended",
                remedy=DEFECT,
            )
        Entry(at, lease.environment, Event.GRANTED, EnvState.LEASED, lease=lease.id).write(db)
        db.execute(
            "UPDATE environments SET generation = ? WHERE id = ?",
            (lease.generation, lease.environment),
        )
        add_lease(db, stored)

    def _write(self, work: Callable[[sqlite3.Connection], object]) -> None:
        """All that is pending, then `work`, or none of it."""
        with transaction(self._connection) as db:
            for entry in self._pending:
                entry.write(db)
            work(db)
        if self._pending:
            log.info("journal %s: written again, %d transitions late", self._path, self.pending)
            self._pending.clear()

    def _write_with(
        self, gathered: list[Entry], work: Callable[[sqlite3.Connection], object]
    ) -> None:
        """`gathered`, which is never lost, and `work` in one transaction, if it can be."""

        def both(db: sqlite3.Connection) -> None:
            for entry in gathered:
                entry.write(db)
            work(db)

        try:
            self._write(both)
        except (*_UNWRITABLE, JournalError):
            self._write_or_keep(gathered)
            raise

    def _write_or_keep(self, gathered: list[Entry]) -> None:
        def write(db: sqlite3.Connection) -> None:
            for entry in gathered:
                entry.write(db)

        try:
            self._write(write)
        except _UNWRITABLE as exc:
            if gathered and not self._pending:
                log.warning("%s; until then nothing is granted", journal_error(self._path, exc))
            for entry in gathered:
                self._pending.append(entry)
                if len(self._pending) > MAX_PENDING:
                    self._forget_one()

    def _forget_one(self) -> None:
        """Drop the oldest entry that leaves no trace but its event."""
        last_state = {one.environment: one for one in self._pending if one.state is not None}
        for entry in self._pending:
            superseded = entry.state is None or last_state[entry.environment] is not entry
            lasts = entry.ends_lease or entry.is_cordon or entry.also
            if superseded and not lasts:
                self._pending.remove(entry)
                return
