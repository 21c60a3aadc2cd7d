"""Waiting for an environment: what is said, and how a wait ends without one."""

import asyncio
import json
import signal
import time
from pathlib import Path

import pytest

from broker import admin
from broker.client import Outcome
from broker.endpoint import Endpoint
from broker.link import Link
from schemas.lock import LockRequest
from testenv.line import Inbox, Line
from tests.functional.brokers import GEARMAND, RunningBroker, free_port, running_broker
from tests.functional.client_rig import (
    client,
    is_alive,
    on_one_broker,
    run_client,
    shell,
    stub_agent,
)


async def queued(broker: Endpoint) -> int:
    """Lock requests that nobody has taken."""
    return sum(row.queued for row in await admin.status(broker) if row.name == "lockenv")


async def test_client_says_that_no_environment_is_registered(broker: RunningBroker) -> None:
    async with client(*shell("true"), broker=broker.endpoint) as job:
        await job.hears("waiting for 2 s: no environment is registered for lockenv", "err")


async def test_client_says_how_many_environments_are_leased_and_who_waits(
    broker: RunningBroker,
) -> None:
    async with (
        stub_agent(broker.endpoint) as agent,
        client(*shell("read never"), broker=broker.endpoint),
    ):
        await agent.asked()
        async with client(*shell("true"), broker=broker.endpoint) as job:
            await job.hears("waiting for 2 s: 1 environment, all leased; 1 request waiting", "err")


@on_one_broker
async def test_client_behind_others_says_its_place_in_the_queue(broker: RunningBroker) -> None:
    async with client(*shell("true"), broker=broker.endpoint) as first:
        await first.hears("waiting for 2 s: no environment .*; place 1 of 1 in the queue", "err")
        async with client(*shell("true"), broker=broker.endpoint) as second:
            await second.hears("waiting for 2 s: place 2 of 2 in the queue", "err")


async def test_wait_timeout_gives_75_and_the_situation(
    broker: RunningBroker, tmp_path: Path
) -> None:
    report = tmp_path / "report.json"
    status, job = await run_client(
        "--wait-timeout", "0.3", "--report", report, *shell("true"), broker=broker.endpoint
    )
    assert status == 75
    assert "no environment for lockenv within 0.3 s (no environment is registered" in job.err
    document = json.loads(report.read_text())
    assert 0.3 <= document["waited_s"] < 3
    assert (document["reason"], document["exit_code"]) == ("no-environment", 75)
    assert document["ran_s"] is document["lease"] is None
    assert document["message"] in job.err


async def test_request_that_was_given_up_is_never_served(broker: RunningBroker) -> None:
    status, _ = await run_client("--wait-timeout", "0.2", *shell("true"), broker=broker.endpoint)
    assert status == 75
    async with (
        stub_agent(broker.endpoint) as agent,
        client("-n", "next", *shell("true"), broker=broker.endpoint) as job,
    ):
        grant = await agent.grant()
        assert LockRequest.parse(grant.lock.arguments).callback.startswith("callback_next_")
        await grant.returned()
        assert await job.exits() == 0, job.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_signal_while_waiting_ends_the_wait_at_once(
    broker: RunningBroker, number: signal.Signals, tmp_path: Path
) -> None:
    report = tmp_path / "report.json"
    async with client("--report", report, *shell("true"), broker=broker.endpoint) as job:
        await job.hears("waiting for lockenv", "err")
        guard = job.guard
        sent = time.monotonic()
        job.signal(number)
        assert await job.exits() == 128 + number, job.err
        assert time.monotonic() - sent < 1
    assert f"interrupted by {number.name} while waiting" in job.err
    assert json.loads(report.read_text())["reason"] == "interrupted"
    assert not is_alive(guard)


async def test_signal_while_connecting_ends_the_client() -> None:
    async with client(*shell("true"), broker=Endpoint("127.0.0.1", free_port())) as job:
        await job.hears("no broker answers yet", "err")
        job.signal(signal.SIGTERM)
        assert await job.exits() == 143, job.err


async def test_no_broker_gives_69_after_the_connect_timeout(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    ports = f"127.0.0.1:{free_port()},127.0.0.1:{free_port()}"
    started = time.monotonic()
    status, job = await run_client(
        "-b", ports, "--connect-timeout", "0.5", "--report", report, *shell("true")
    )
    assert status == 69
    assert 0.5 <= time.monotonic() - started < 3
    for port in ports.split(","):
        assert port in job.err.splitlines()[-1]
    assert json.loads(report.read_text())["reason"] == "no-broker"


async def test_second_broker_of_the_list_serves_when_the_first_is_down(
    broker: RunningBroker,
) -> None:
    places = f"127.0.0.1:{free_port()},{broker.endpoint}"
    async with (
        stub_agent(broker.endpoint) as agent,
        client("-b", places, *shell("exit 3")) as job,
    ):
        await (await agent.grant()).returned()
        assert await job.exits() == 3, job.err


async def test_broker_that_starts_within_the_connect_timeout_is_found() -> None:
    with running_broker(GEARMAND) as broker:
        broker.kill()
        async with client(*shell("exit 3"), broker=broker.endpoint) as job:
            await job.hears("no broker answers yet", "err")
            await asyncio.to_thread(broker.start)
            async with stub_agent(broker.endpoint) as agent:
                await (await agent.grant()).returned()
                assert await job.exits() == 3, job.err


async def test_client_keeps_waiting_for_a_broker_that_was_lost(broker: RunningBroker) -> None:
    async with client(*shell("exit 3"), broker=broker.endpoint) as job:
        await job.hears("waiting for lockenv", "err")
        broker.kill()
        await job.hears("lost the connection to broker .*; asking again", "err")
        await asyncio.to_thread(broker.start)
        async with stub_agent(broker.endpoint) as agent:
            await (await agent.grant()).returned()
            assert await job.exits() == 3, job.err


async def test_offer_that_is_no_json_is_declined_with_its_text(broker: RunningBroker) -> None:
    async with (
        stub_agent(broker.endpoint) as agent,
        client(*shell("true"), broker=broker.endpoint) as job,
    ):
        result = await (await agent.grant(b"Couldn't retrieve env")).returned()
        assert await job.exits() == 70, job.err
    assert result.outcome is Outcome.EXCEPTION
    assert "Couldn't retrieve env" in job.err


async def test_request_that_fails_before_any_offer_is_made_again(broker: RunningBroker) -> None:
    async with (
        stub_agent(broker.endpoint) as agent,
        client(*shell("exit 3"), broker=broker.endpoint) as job,
    ):
        first = await agent.asked()
        first.fail()
        grant = await agent.grant()
        assert grant.lock.unique == first.unique
        await grant.returned()
        assert await job.exits() == 3, job.err


@on_one_broker
async def test_requests_that_always_fail_at_once_give_70(broker: RunningBroker) -> None:
    async with (
        stub_agent(broker.endpoint) as agent,
        client(*shell("true"), broker=broker.endpoint) as job,
    ):
        for _ in range(6):
            (await agent.asked()).fail()
        assert await job.exits() == 70, job.err
    assert "no environment of lockenv was offered" in job.err


async def test_typed_refusal_is_told_in_the_hosts_words(broker: RunningBroker) -> None:
    async with (
        stub_agent(broker.endpoint) as agent,
        client(*shell("true"), broker=broker.endpoint) as job,
    ):
        (await agent.asked()).exception(b"timeout is longer than this host allows")
        assert await job.exits() == 70, job.err
    assert "timeout is longer than this host allows" in job.err


async def test_offer_that_comes_when_the_wait_is_over_is_declined(broker: RunningBroker) -> None:
    request = LockRequest("callback_late", timeout_s=60)
    inbox: Inbox = asyncio.Queue()
    async with stub_agent(broker.endpoint) as agent:
        link = await Link.open(broker.endpoint, client_id="late")
        async with Line(link, request.callback, inbox) as line:
            await line.submit("lockenv", request.dump(), "late")
            grant = await agent.grant()
            async with asyncio.timeout(5):
                while inbox.empty():
                    await asyncio.sleep(0.01)
        assert (await grant.returned()).outcome is Outcome.EXCEPTION


async def test_interrupted_client_makes_room_for_the_next_in_the_queue(
    broker: RunningBroker,
) -> None:
    async with (
        client("-n", "first", *shell("true"), broker=broker.endpoint) as first,
        client("-n", "second", *shell("exit 3"), broker=broker.endpoint) as second,
    ):
        await first.hears("waiting for lockenv", "err")
        await second.hears("waiting for lockenv", "err")
        first.signal(signal.SIGINT)
        assert await first.exits() == 130, first.err
        async with stub_agent(broker.endpoint) as agent:
            grant = await agent.grant()
            assert LockRequest.parse(grant.lock.arguments).callback.startswith("callback_second_")
            await grant.returned()
            assert await second.exits() == 3, second.err
