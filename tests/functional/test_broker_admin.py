"""The text protocol: what operators see of a broker."""

import asyncio
import time

import pytest

from broker import admin
from broker.admin import FunctionStatus
from broker.client import Outcome, submit
from broker.endpoint import Endpoint
from broker.link import Link
from broker.links import OneLink
from broker.worker import Worker
from schemas.errors import BrokerUnreachable, ConnectionLost, ProtocolError, RequestRefused
from tests.functional.brokers import (
    BROKERS,
    GEARD,
    GEARMAND,
    HOST,
    OURS,
    BrokerKind,
    RunningBroker,
    free_port,
    running_broker,
)
from tests.functional.wire_peers import BOUND_S, banner_server, black_hole

any_broker = pytest.mark.parametrize("kind", BROKERS, ids=str)


@any_broker
async def test_status_counts_jobs_and_workers(kind: BrokerKind) -> None:
    with running_broker(kind) as broker:
        assert await admin.status(broker.endpoint) == []
        async with (
            await Link.open(broker.endpoint, client_id="client") as here,
            await Link.open(broker.endpoint, client_id="worker") as there,
        ):
            for function in ("f", "f", "f", "lockenv:a+b"):
                await submit(here, function, b"")
            async with asyncio.timeout(BOUND_S):
                assert await Worker(OneLink(there), ["f"]).take()
            await there.ask_status(b"any").wait()
            rows = {row.name: row for row in await admin.status(broker.endpoint)}
    assert rows == {
        "f": FunctionStatus("f", total=3, running=1, workers=1),
        "lockenv:a+b": FunctionStatus("lockenv:a+b", total=1, running=0, workers=0),
    }
    assert rows["f"].queued == 2


@any_broker
async def test_workers_are_listed_with_what_they_offer(kind: BrokerKind) -> None:
    with running_broker(kind) as broker:
        async with await Link.open(broker.endpoint, client_id="te-host-01/1") as link:
            link.register(object(), ["f", "g"], lambda: None)
            await link.ask_status(b"any").wait()
            [worker] = [each for each in await admin.workers(broker.endpoint) if each.functions]
    assert (worker.client_id, worker.address) == ("te-host-01/1", HOST)
    assert sorted(worker.functions) == ["f", "g"]


@any_broker
async def test_queued_job_can_be_cancelled_once(kind: BrokerKind) -> None:
    with running_broker(kind) as broker:
        async with (
            await Link.open(broker.endpoint, client_id="client") as here,
            await Link.open(broker.endpoint, client_id="worker") as there,
        ):
            job = await submit(here, "f", b"cancelled")
            other = await submit(here, "f", b"other")
            assert await admin.cancel(broker.endpoint, job.handle)
            assert not await admin.cancel(broker.endpoint, "H:nobody:1")
            async with asyncio.timeout(BOUND_S):
                assignment = await Worker(OneLink(there), ["f"]).take()
                assert assignment
                assert assignment.arguments == b"other"
                assignment.complete()
                await other.result()


async def test_gearmand_tells_the_submitter_of_a_cancelled_job() -> None:
    with running_broker(GEARMAND) as broker:
        async with await Link.open(broker.endpoint, client_id="client") as here:
            job = await submit(here, "f", b"")
            await admin.cancel(broker.endpoint, job.handle)
            async with asyncio.timeout(BOUND_S):
                assert (await job.result()).outcome is Outcome.FAIL


@pytest.mark.parametrize(
    ("kind", "begins"), [(GEARMAND, "1."), (GEARD, None), (OURS, "testenv-broker ")], ids=str
)
async def test_version_is_what_the_broker_says_if_it_says(
    kind: BrokerKind, begins: str | None
) -> None:
    with running_broker(kind) as broker:
        started = time.monotonic()
        version = await admin.version(broker.endpoint)
        assert time.monotonic() - started < 1.0
        assert (version is None) is (begins is None)
        assert (version or "").startswith(begins or "")


async def test_nobody_there_is_unreachable() -> None:
    with pytest.raises(BrokerUnreachable, match="Connection refused"):
        await admin.status(Endpoint(HOST, free_port()))


async def test_silent_broker_is_unreachable_in_time() -> None:
    with black_hole() as silent:
        started = time.monotonic()
        with pytest.raises(BrokerUnreachable, match=r"no answer within 0\.2 s"):
            await admin.status(silent, timeout=0.2)
        assert time.monotonic() - started < 1.0


async def test_paused_broker_is_unreachable_in_time(broker: RunningBroker) -> None:
    broker.pause()
    with pytest.raises(BrokerUnreachable, match="no answer"):
        await admin.workers(broker.endpoint, timeout=0.2)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", ProtocolError),
        (b"f\t1\tmany\t0\n", ProtocolError),
        (b"x" * (admin.MAX_LINE + 1000), ProtocolError),
        (b"ERR UNKNOWN_COMMAND Unknown+server+command\r\n", RequestRefused),
    ],
    ids=["ssh", "not a number", "endless line", "refused"],
)
async def test_answers_that_are_no_table_are_typed_errors(
    answer: bytes, error: type[Exception]
) -> None:
    async with banner_server(answer) as endpoint:
        with pytest.raises(error):
            await admin.status(endpoint)


async def test_half_an_answer_is_a_lost_connection() -> None:
    async with banner_server(b"f\t1\t0\t0\n", close=True) as endpoint:
        with pytest.raises(ConnectionLost, match="in the middle"):
            await admin.status(endpoint)


async def test_one_peer_s_odd_name_does_not_hide_the_others() -> None:
    answer = b"lockenv\t1\t0\t2\nevil\nline\t0\t0\t1\n.\n"
    async with banner_server(answer) as endpoint:
        names = [row.name for row in await admin.status(endpoint)]
    assert "lockenv" in names
