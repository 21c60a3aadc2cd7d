"""A lease that ends before its command: timeout, revocation, lost connections, further offers."""

import asyncio
import json
import time
from pathlib import Path

from broker.client import Outcome
from tests.functional.brokers import RunningBroker
from tests.functional.client_rig import client, is_alive, on_one_broker, shell, stub_agent

TELL_PID = "echo pid $$; "
CLEAN_UP = "trap 'echo cleaned up; exit 0' TERM; " + TELL_PID
STUBBORN = "trap '' TERM; " + TELL_PID
WAIT = "while :; do sleep 0.05; done"


async def test_command_that_outlives_its_timeout_is_stopped_and_gives_124(
    broker: RunningBroker, tmp_path: Path
) -> None:
    report = tmp_path / "report.json"
    options = ("-t", "1", "--report", report)
    async with (
        stub_agent(broker.endpoint) as agent,
        client(*options, *shell(CLEAN_UP + WAIT), broker=broker.endpoint) as job,
    ):
        grant = await agent.grant()
        await job.hears("pid")
        started = time.monotonic()
        assert (await grant.returned()).outcome is Outcome.COMPLETE
        assert 0.8 < time.monotonic() - started < 2
        assert "cleaned up" in job.out
        assert await job.exits() == 124, job.err
    assert "stopped after 1 s" in job.err
    document = json.loads(report.read_text())
    assert (document["reason"], document["exit_code"]) == ("lease-timeout", 124)
    assert document["ran_s"] >= 0.8


async def test_command_that_ignores_sigterm_is_killed_after_kill_after(
    broker: RunningBroker,
) -> None:
    options = ("-t", "1", "--kill-after", "0.3")
    async with (
        stub_agent(broker.endpoint) as agent,
        client(*options, *shell(STUBBORN + WAIT), broker=broker.endpoint) as job,
    ):
        grant = await agent.grant()
        pid = int((await job.hears(r"pid (\d+)"))[1])
        await grant.callback.result()
        assert not is_alive(pid)
        grant.lock.complete()
        assert await job.exits() == 124, job.err


async def test_host_that_ends_the_lease_ends_the_command(
    broker: RunningBroker, tmp_path: Path
) -> None:
    report = tmp_path / "report.json"
    async with (
        stub_agent(broker.endpoint) as agent,
        client("--report", report, *shell(CLEAN_UP + WAIT), broker=broker.endpoint) as job,
    ):
        grant = await agent.grant()
        await job.hears("pid")
        grant.lock.complete()
        assert (await grant.callback.result()).outcome is Outcome.COMPLETE
        assert await job.exits() == 70, job.err
    assert "cleaned up" in job.out
    assert "lease lost: the environment's host ended the lease" in job.err
    assert json.loads(report.read_text())["reason"] == "lease-lost"


async def test_broker_that_dies_ends_the_lease_and_the_command(broker: RunningBroker) -> None:
    async with (
        stub_agent(broker.endpoint) as agent,
        client(*shell(CLEAN_UP + WAIT), broker=broker.endpoint) as job,
    ):
        await agent.grant()
        pid = int((await job.hears(r"pid (\d+)"))[1])
        broker.kill()
        assert await job.exits() == 70, job.err
        assert not is_alive(pid)
    assert "cleaned up" in job.out
    assert "lost the connection to broker" in job.err


async def test_host_that_dies_ends_the_lease_also_where_the_broker_tells_nobody(
    broker: RunningBroker,
) -> None:
    async with client(*shell(CLEAN_UP + WAIT), broker=broker.endpoint) as job:
        async with stub_agent(broker.endpoint) as agent:
            await agent.grant()
            await job.hears("pid")
        assert await job.exits() == 70, job.err
    assert "cleaned up" in job.out
    assert "gone" in job.err


async def test_second_offer_is_declined_at_once_and_the_first_goes_on(
    broker: RunningBroker, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    script = f"echo started; while ! [ -e {go} ]; do sleep 0.01; done; exit 3"
    async with (
        stub_agent(broker.endpoint) as agent,
        client(*shell(script), broker=broker.endpoint) as job,
    ):
        grant = await agent.grant()
        await job.hears("started")
        asked = time.monotonic()
        for _ in range(3):
            second = await agent.call(grant.lock, b'{"seed-ip": "192.0.2.8"}')
            async with asyncio.timeout(5):
                assert (await second.result()).outcome is Outcome.EXCEPTION
        assert time.monotonic() - asked < 1
        go.touch()
        assert (await grant.returned()).outcome is Outcome.COMPLETE
        assert await job.exits() == 3, job.err


@on_one_broker
async def test_client_does_not_wait_long_for_a_host_that_says_no_goodbye(
    broker: RunningBroker,
) -> None:
    async with (
        stub_agent(broker.endpoint) as agent,
        client(*shell("exit 3"), broker=broker.endpoint) as job,
    ):
        grant = await agent.grant()
        await grant.callback.result()
        returned = time.monotonic()
        assert await job.exits() == 3, job.err
        assert 2 < time.monotonic() - returned < 5
