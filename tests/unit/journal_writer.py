"""Writes one transition after the other, and says each on stdout when it is written. For tests that
kill it."""

import asyncio
import json
import os
import signal
import sys
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

from hosts.journal import Journal
from hosts.journal_rows import StoredLease
from schemas.status import EnvState, Lease


async def write(path: Path, env_id: str, *, die_leased: bool) -> None:
    async with Journal.open(path, now=lambda: datetime.now(UTC)) as journal:
        remembered = await journal.remembered(env_id)
        if remembered.live:
            await end(journal, remembered.live.lease.id, env_id)
        for generation in count(remembered.generation + 1):
            lease = Lease(
                id=f"lease-{generation}",
                environment=env_id,
                generation=generation,
                holder="job 42",
                granted=datetime.now(UTC),
                timeout_s=60,
            )
            await journal.grant(StoredLease(lease, "job", "cb", 2, "5ec"))
            say("granted", lease.id)
            if die_leased:
                os.kill(os.getpid(), signal.SIGKILL)
            await journal.note(env_id, "suspect", lease=lease.id)
            say("suspect", lease.id)
            await end(journal, lease.id, env_id)
            await journal.move(env_id, EnvState.READY)
            say("moved", None)


async def end(journal: Journal, lease_id: str, env_id: str) -> None:
    await journal.end(lease_id, env_id, EnvState.DIRTY, "completed")
    say("lease ended", lease_id)


def say(event: str, lease_id: str | None) -> None:
    sys.stdout.write(json.dumps([event, lease_id]) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(write(Path(sys.argv[1]), sys.argv[2], die_leased="--die-leased" in sys.argv))
