"""`testenv logs` against an agent with consoles, through a broker."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import NamedTuple

from hosts.agent import Agent
from hosts.archive import Archive
from hosts.caretaker import ReadyMade
from hosts.consoles import KEPT
from hosts.journal import Journal
from hosts.slot import SlotTiming
from schemas.exits import ExitStatus
from tests.functional.brokers import OURS, RunningBroker, running_broker
from tests.functional.client_rig import BOUND_S
from tests.functional.lease_rig import BIN

LEASE = "621da58ba2ced851a4b6f395594d44c1"
SAID = b"\x1b[2Jlogin: \xff\n" + 300_000 * b"."


class Said(NamedTuple):
    status: int
    out: bytes
    err: str


@asynccontextmanager
async def agent_with_consoles(
    broker: RunningBroker, folder: Path, *, ours: bool = True
) -> AsyncIterator[None]:
    """Of te1/1, which had one lease. `ours`: whether its domains are the agent's."""
    kept = folder / "console" / KEPT / "1" / LEASE
    kept.mkdir(parents=True)
    (kept / "seed_1.log").write_bytes(SAID)
    (kept / "baremetalbrbm1_0.log").write_bytes(b"")
    data = folder / "env.json"
    data.write_text('{"seed-ip": "203.0.113.10"}')
    async with Journal.open(folder / "journal.db", now=partial(datetime.now, UTC)) as journal:
        agent = Agent(
            "te1",
            [broker.endpoint],
            [ReadyMade(data, "te1/1", "1")],
            journal,
            drain_timeout_s=0,
            timing=SlotTiming(),
            archive=Archive(folder / "console") if ours else None,
        )
        life = asyncio.create_task(agent.run())
        try:
            yield
        finally:
            life.cancel()
            await asyncio.wait([life], timeout=BOUND_S)


async def logs(broker: RunningBroker, *words: str) -> Said:
    process = await asyncio.create_subprocess_exec(
        *(str(BIN / "testenv"), "logs", *words, "-b", str(broker.endpoint)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(BOUND_S):
        out, err = await process.communicate()
    assert process.returncode is not None
    return Said(process.returncode, out, err.decode())


async def test_consoles_are_fetched_as_they_are_however_long(tmp_path: Path) -> None:
    folder = tmp_path / "fetched"
    with running_broker(OURS) as broker:
        async with agent_with_consoles(broker, tmp_path):
            piped = await logs(broker, "te1/1")
            written = await logs(broker, "te1/1", "--lease", LEASE[:8], "--output", str(folder))
            as_json = await logs(broker, "te1/1", "--json")
            unknown = await logs(broker, "te1/1", "--lease", "ffff")
    assert piped.status == 0
    assert piped.out == b"==> baremetalbrbm1_0 <==\n\n==> seed_1 <==\n" + SAID + b"\n"
    assert f"te1/1: consoles of lease {LEASE}, which has ended" in piped.err
    assert (written.status, written.out) == (0, b"")
    assert (folder / "seed_1.log").read_bytes() == SAID
    assert (folder / "baremetalbrbm1_0.log").read_bytes() == b""
    consoles = json.loads(as_json.out)["consoles"]
    assert consoles == {"baremetalbrbm1_0": "", "seed_1": SAID.decode(errors="replace")}
    assert unknown.status == ExitStatus.FAILED
    assert f"no console of lease ffff is kept of te1/1; there are those of {LEASE}" in unknown.err


async def test_of_what_others_have_made_no_console_is_kept(tmp_path: Path) -> None:
    with running_broker(OURS) as broker:
        async with agent_with_consoles(broker, tmp_path, ours=False):
            said = await logs(broker, "te1/1")
    assert (said.status, said.out) == (ExitStatus.FAILED, b"")
    assert "te1 offers what others have made: no console is kept" in said.err
