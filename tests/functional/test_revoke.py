"""`testenv revoke`, with a real agent, a real client and its command."""

import asyncio
import json
import os
import pty
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from broker.endpoint import Endpoint
from schemas.exits import ExitStatus
from schemas.lock import KILL_AFTER_S
from tests.functional.brokers import RunningBroker
from tests.functional.client_rig import (
    BOUND_S,
    PEERS,
    Client,
    client,
    on_one_broker,
    shell,
)

BIN = Path(sys.executable).parent
REASON = "its host gets a new disk"

CLEANS_UP = """
trap 'echo cleaning; until test -e "$0"; do sleep 0.01; done; echo clean; exit 0' TERM
echo ready
while :; do sleep 0.01; done
"""
"""Takes SIGTERM, and is not done with it before there is a file `$0`."""

HANGS = "echo ready; while :; do sleep 0.1; done"

IGNORES_SIGTERM = "trap '' TERM; echo ready; while :; do sleep 0.1; done"


async def typed(
    *words: str | Path, stdin: int = asyncio.subprocess.DEVNULL
) -> tuple[int, str, str]:
    """One of our commands from start to end: its status, stdout and stderr."""
    name, *arguments = words
    process = await asyncio.create_subprocess_exec(
        BIN / name,
        *arguments,
        stdin=stdin,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(BOUND_S):
        out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


class Fleet:
    """One agent with one environment, as an operator and its host's admin see it."""

    def __init__(self, broker: Endpoint, state_dir: Path) -> None:
        self._broker = broker
        self._state_dir = state_dir

    async def environment(self) -> dict[str, Any]:
        """As `testenv status --json` has it; empty if there is none."""
        _, out, _ = await typed("testenv", "status", "--json", "-b", str(self._broker))
        reports = [host["report"] for host in json.loads(out)["hosts"] if host["report"]]
        environments = [env for report in reports for env in report["environments"]]
        return environments[0] if environments else {}

    async def becomes(self, state: str, lease_state: str = "") -> dict[str, Any]:
        """Wait until the environment, and its lease, are in these states."""
        async with asyncio.timeout(BOUND_S):
            while True:
                env = await self.environment()
                if env and (env["state"], env["lease_state"]) == (state, lease_state):
                    return env
                await asyncio.sleep(0.05)

    async def table(self) -> str:
        _, out, _ = await typed("testenv", "status", "-b", str(self._broker))
        return out

    async def journal(self) -> dict[str, Any]:
        printed = ("journal", "--json", "-n", "1", "--state-dir", str(self._state_dir))
        _, out, _ = await typed("testenv-host", *printed)
        document: dict[str, Any] = json.loads(out)
        return document

    async def revoke(
        self, target: str, *more: str, stdin: int = asyncio.subprocess.DEVNULL
    ) -> tuple[int, str, str]:
        where = ("-b", str(self._broker), "--reason", REASON)
        return await typed("testenv", "revoke", target, *where, *more, stdin=stdin)


@asynccontextmanager
async def serving(broker: RunningBroker, folder: Path) -> AsyncIterator[Fleet]:
    data = folder / "env.json"
    data.write_text('{"seed-ip": "203.0.113.10"}')
    process = await asyncio.create_subprocess_exec(
        BIN / "testenv-host",
        *("serve", data, "-b", str(broker.endpoint), "-n", "1", "--state-dir", folder),
        stderr=asyncio.subprocess.DEVNULL,
    )
    fleet = Fleet(broker.endpoint, folder)
    try:
        await fleet.becomes("ready")
        yield fleet
    finally:
        process.kill()
        await process.wait()


@asynccontextmanager
async def leased(
    broker: RunningBroker, folder: Path, script: str, *options: str
) -> AsyncIterator[tuple[Fleet, Client, dict[str, Any]]]:
    """A fleet, a client whose command runs, and the environment that it has."""
    async with (
        serving(broker, folder) as fleet,
        client(*options, *shell(script), folder / "clean", broker=broker.endpoint) as holder,
    ):
        await holder.hears("ready")
        yield fleet, holder, await fleet.becomes("leased", "active")


async def test_a_revoked_command_cleans_up_before_the_environment_is_offered_again(
    broker: RunningBroker, tmp_path: Path
) -> None:
    async with leased(broker, tmp_path, CLEANS_UP) as (fleet, holder, env):
        status, out, err = await fleet.revoke(env["id"], "--yes")
        assert (status, out) == (0, f"{env['id']}: the client is told to end its command\n")
        assert f"{env['id']}: lease {env['lease']['id']} of {env['lease']['holder']}" in err
        await holder.hears("cleaning")
        ending = await fleet.becomes("leased", "ending")
        assert ending["lease"] == env["lease"]
        assert "leased (ending)" in await fleet.table()
        (tmp_path / "clean").touch()
        assert await holder.exits() == ExitStatus.LEASE_LOST
        assert holder.out == "ready\ncleaning\nclean\n"
        await fleet.becomes("ready")
        document = await fleet.journal()
    assert REASON in holder.err.splitlines()[-1]
    assert document["leases"][-1]["reason"] == REASON
    told = [event for event in document["events"] if event["event"] == "told to end"]
    assert [(one["lease"], one["reason"]) for one in told] == [(env["lease"]["id"], REASON)]


async def test_a_revoked_command_that_ignores_sigterm_is_killed_after_kill_after(
    broker: RunningBroker, tmp_path: Path
) -> None:
    options = ("--kill-after", "1")
    async with leased(broker, tmp_path, IGNORES_SIGTERM, *options) as (fleet, holder, env):
        await fleet.revoke(env["lease"]["id"], "--yes")
        assert await holder.exits() == ExitStatus.LEASE_LOST
        assert REASON in holder.err
        await fleet.becomes("ready")
        events = (await fleet.journal())["events"]
    at = {one["event"]: datetime.fromisoformat(one["at"]) for one in events}
    took = at["lease ended"] - at["told to end"]
    assert timedelta(seconds=1) <= took < timedelta(seconds=KILL_AFTER_S)


@on_one_broker
async def test_the_report_of_a_revoked_job_says_so(broker: RunningBroker, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    options = ("--report", str(report))
    async with leased(broker, tmp_path, HANGS, *options) as (fleet, holder, env):
        _, out, _ = await fleet.revoke(env["id"], "--yes", "--json")
        assert json.loads(out) == {"lease": env["lease"]}
        await holder.exits()
    said = json.loads(report.read_text())
    assert (said["reason"], said["exit_code"]) == ("lease-lost", 70)
    assert REASON in said["message"]


@on_one_broker
async def test_nobody_is_revoked_without_a_yes(broker: RunningBroker, tmp_path: Path) -> None:
    async with leased(broker, tmp_path, HANGS) as (fleet, holder, env):
        status, _, err = await fleet.revoke(env["id"])
        assert status == ExitStatus.USAGE
        assert "--yes" in err
        assert await answered_on_a_terminal(fleet, env["id"], b"n\n") == 1
        await fleet.becomes("leased", "active")
        assert await answered_on_a_terminal(fleet, env["id"], b"y\n") == 0
        assert await holder.exits() == ExitStatus.LEASE_LOST


async def answered_on_a_terminal(fleet: Fleet, target: str, answer: bytes) -> int:
    ours, theirs = pty.openpty()
    os.write(ours, answer)
    try:
        status, _, err = await fleet.revoke(target, stdin=theirs)
    finally:
        os.close(ours)
        os.close(theirs)
    assert "Go on? [y/N]" in err
    return status


@on_one_broker
async def test_what_cannot_be_revoked_is_told_in_one_line(
    broker: RunningBroker, tmp_path: Path
) -> None:
    async with serving(broker, tmp_path) as fleet:
        env = (await fleet.environment())["id"]
        host = env.partition("/")[0]
        for target, words in {
            "te9/1": "there is no environment te9/1; see testenv status",
            f"{host}/7": f"there is no environment {host}/7; did you mean {env}?",
            env: f"{env} is ready: it has no lease; see testenv status",
            "0" * 32: f"no host has a lease {'0' * 32}; see testenv status",
        }.items():
            status, out, err = await fleet.revoke(target, "--yes")
            assert (status, out) == (ExitStatus.FAILED, "")
            assert err == f"testenv: {words}\n"


@on_one_broker
async def test_a_version_1_client_cannot_be_told(broker: RunningBroker, tmp_path: Path) -> None:
    async with serving(broker, tmp_path) as fleet:
        toci = await asyncio.create_subprocess_exec(
            *(sys.executable, PEERS / "v1_client.py", "-b", str(broker.endpoint)),
            *("--", "sleep", "60"),
            start_new_session=True,
        )
        env = await fleet.becomes("leased")
        status, out, err = await fleet.revoke(env["id"], "--yes")
        os.killpg(toci.pid, signal.SIGKILL)
        await toci.wait()
        assert (status, out) == (ExitStatus.FAILED, "")
        assert "version 1; it can't be told to end" in err.splitlines()[-1]


@on_one_broker
async def test_a_reason_is_one_line(broker: RunningBroker) -> None:
    for reason in ("", " ", "two\nlines", "x" * 201):
        words = ("revoke", "te1/1", "--yes", "-b", str(broker.endpoint), "--reason", reason)
        status, _, err = await typed("testenv", *words)
        assert status == ExitStatus.USAGE
        assert "--reason: must be one line" in err


async def test_without_a_broker_it_exits_69() -> None:
    words = ("revoke", "te1/1", "--yes", "-b", "127.0.0.1:1", "--reason", REASON)
    status, _, err = await typed("testenv", *words)
    assert status == ExitStatus.NO_BROKER
    assert "127.0.0.1:1" in err
