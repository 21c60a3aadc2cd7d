"""Workers: at most one job, nothing registered while busy, no job lost whatever races."""

import asyncio
import random
from contextlib import suppress

import pytest

from broker.client import Outcome, submit
from broker.link import Link
from broker.links import OneLink
from broker.protocol import Kind
from broker.wire import Packet, response
from broker.worker import Assignment, Worker
from tests.functional.brokers import (
    BrokerKind,
    running_broker,
)
from tests.functional.wire_peers import BOUND_S, scripted_broker
from tests.functional.worker_rig import (
    any_broker,
    assigned,
    both_families,
    ended,
    linked,
    offered,
    result_of,
    running,
    until_offered,
)

# Registering


@any_broker
async def test_worker_is_registered_only_while_it_takes(kind: BrokerKind) -> None:
    with running_broker(kind) as broker:
        async with linked(broker) as links:
            withdraw = asyncio.Event()
            worker = Worker(links, ["f", "f:a", "f:a+b"])
            assert await offered(broker.endpoint) == {}
            async with running(worker.take(withdraw)) as taking:
                await until_offered(broker.endpoint, {"f": 1, "f:a": 1, "f:a+b": 1})
                withdraw.set()
                async with asyncio.timeout(BOUND_S):
                    assert await taking is None
            await until_offered(broker.endpoint, {})
            assert links.up, "the broker dropped us for what we sent"


@any_broker
async def test_busy_worker_offers_nothing_but_the_job_that_it_has(kind: BrokerKind) -> None:
    """gearmand would requeue the job on CANT_DO of its function."""
    with running_broker(kind) as broker:
        async with (
            linked(broker) as links,
            await Link.open(broker.endpoint, client_id="client") as here,
        ):
            worker = Worker(links, ["f", "f:a"])
            job = await submit(here, "f:a", b"1")
            waiting = await submit(here, "f", b"2")
            assignment = await assigned(worker)
            await until_offered(broker.endpoint, {assignment.function: 1})
            held, other = (job, waiting) if assignment.function == "f:a" else (waiting, job)
            assert (await held.status()).running
            assert not (await other.status()).running


@both_families
async def test_job_stays_with_the_busy_worker_until_it_ends_it(kind: BrokerKind) -> None:
    with running_broker(kind) as broker:
        async with (
            linked(broker) as links,
            await Link.open(broker.endpoint, client_id="client") as here,
        ):
            job = await submit(here, "f", b"")
            assignment = await assigned(Worker(links, ["f"]))
            await until_offered(broker.endpoint, {"f": 1})
            assert (await job.status()).running
            assert assignment.complete(b"held to the end")
            assert await result_of(job) == (Outcome.COMPLETE, b"held to the end")
            await until_offered(broker.endpoint, {})


@both_families
async def test_worker_takes_one_job_after_the_other(kind: BrokerKind) -> None:
    with running_broker(kind) as broker:
        async with (
            linked(broker) as links,
            await Link.open(broker.endpoint, client_id="client") as here,
        ):
            worker = Worker(links, ["f"])
            jobs = [await submit(here, "f", b"%d" % number) for number in range(20)]
            for number, job in enumerate(jobs):
                assignment = await assigned(worker)
                assert assignment.arguments == b"%d" % number
                assert assignment.complete()
                await result_of(job)


@both_families
async def test_second_worker_on_the_same_links_is_refused(kind: BrokerKind) -> None:
    """They would get each other's jobs."""
    with running_broker(kind) as broker:
        async with linked(broker) as links, running(Worker(links, ["f"]).take()):
            await until_offered(broker.endpoint, {"f": 1})
            with pytest.raises(RuntimeError, match="another Worker"):
                await Worker(links, ["g"]).take()
            await until_offered(broker.endpoint, {"f": 1})


@both_families
async def test_links_can_serve_another_worker_afterwards(kind: BrokerKind) -> None:
    with running_broker(kind) as broker:
        async with (
            linked(broker) as links,
            await Link.open(broker.endpoint, client_id="client") as here,
        ):
            for function in ("f", "g"):
                job = await submit(here, function, b"")
                (await assigned(Worker(links, [function]))).complete()
                await result_of(job)


# Waking up


@any_broker
async def test_sleeping_worker_is_woken_by_a_job(kind: BrokerKind) -> None:
    with running_broker(kind) as broker:
        async with (
            linked(broker) as links,
            await Link.open(broker.endpoint, client_id="client") as here,
        ):
            worker = Worker(links, ["f"], poll=(60, 60))
            for _ in range(20):
                async with running(worker.take()) as taking:
                    await until_offered(broker.endpoint, {"f": 1})
                    job = await submit(here, "f", b"")
                    async with asyncio.timeout(BOUND_S):
                        assignment = await taking
                    assert isinstance(assignment, Assignment)
                    assert assignment.complete()
                    await result_of(job)


async def test_sleeping_worker_asks_again_by_itself() -> None:
    """A broker that wakes the one worker that then dies loses the wake-up of the others."""
    grabs = 0

    def script(packet: Packet) -> bytes | None:
        nonlocal grabs
        if packet.kind != Kind.GRAB_JOB_UNIQ:
            return None
        grabs += 1
        if grabs < 4:
            return response(Kind.NO_JOB)
        return response(Kind.JOB_ASSIGN_UNIQ, b"H:a:1", b"f", b"u", b"late")

    async with (
        scripted_broker(script) as endpoint,
        await Link.open(endpoint, client_id="worker") as link,
    ):
        assignment = await assigned(Worker(OneLink(link), ["f"], poll=(0.01, 0.02)))
    assert assignment.arguments == b"late"


# Withdrawing and cancelling


@both_families
@pytest.mark.parametrize("how", ["withdraw", "cancel"])
async def test_job_that_races_with_the_end_of_taking_is_not_lost(
    kind: BrokerKind, how: str
) -> None:
    chance = random.Random(4730)  # noqa: S311 - spreads the race, guards no secret
    raced = 0
    with running_broker(kind) as broker:
        async with (
            linked(broker) as links,
            await Link.open(broker.endpoint, client_id="client") as here,
        ):
            worker = Worker(links, ["f"])
            for number in range(100):
                withdraw = asyncio.Event()
                taking = asyncio.ensure_future(worker.take(withdraw))
                await asyncio.sleep(0)
                submitting = asyncio.ensure_future(submit(here, "f", b"%d" % number))
                await asyncio.sleep(10 ** chance.uniform(-4.5, -2.3))
                if how == "cancel":
                    taking.cancel()
                withdraw.set()
                assignment = None
                with suppress(asyncio.CancelledError):
                    async with asyncio.timeout(BOUND_S):
                        assignment = await taking
                raced += assignment is not None
                job = await submitting
                assignment = assignment or await assigned(worker)
                assert assignment.arguments == b"%d" % number
                assert assignment.complete(b"done")
                assert await result_of(job) == (Outcome.COMPLETE, b"done")
    assert 0 < raced < 100, "the race was never run"


async def test_withdrawing_waits_for_the_grab_under_way() -> None:
    withdraw = asyncio.Event()

    def script(packet: Packet) -> bytes | None:
        if packet.kind != Kind.GRAB_JOB_UNIQ:
            return None
        withdraw.set()
        return response(Kind.JOB_ASSIGN_UNIQ, b"H:a:1", b"f", b"u", b"raced")

    async with (
        scripted_broker(script) as endpoint,
        await Link.open(endpoint, client_id="worker") as link,
    ):
        assignment = await assigned(Worker(OneLink(link), ["f"]), withdraw)
        assert assignment.arguments == b"raced"


async def test_nothing_is_unregistered_behind_a_grab_under_way() -> None:
    """gearmand would take the job away again that the grab brings."""
    sent: list[tuple[int, bytes]] = []
    grabbed = asyncio.Event()

    def script(packet: Packet) -> bytes | None:
        sent.append((packet.kind, packet.data))
        if packet.kind == Kind.GRAB_JOB_UNIQ:
            grabbed.set()
            return b""
        if packet.kind == Kind.GET_STATUS and packet.data == b"flush":
            return response(Kind.JOB_ASSIGN_UNIQ, b"H:a:1", b"f", b"u", b"late") + response(
                Kind.STATUS_RES, b"flush", b"0", b"0", b"0", b"0"
            )
        return None

    async with (
        scripted_broker(script) as endpoint,
        await Link.open(endpoint, client_id="worker") as link,
    ):
        worker = Worker(OneLink(link), ["f", "g"])
        async with running(worker.take()):
            await grabbed.wait()
        await link.ask_status(b"any").wait()
        assert Kind.CANT_DO not in dict(sent)
        await link.ask_status(b"flush").wait()
        assert (await assigned(worker)).arguments == b"late"
        await link.ask_status(b"any").wait()
        assert [data for kind, data in sent if kind == Kind.CANT_DO] == [b"g"]


@both_families
async def test_withdrawn_beforehand_takes_nothing(kind: BrokerKind) -> None:
    with running_broker(kind) as broker:
        async with (
            linked(broker) as links,
            await Link.open(broker.endpoint, client_id="client") as here,
        ):
            job = await submit(here, "f", b"")
            assert await Worker(links, ["f"]).take(ended()) is None
            assert not (await job.status()).running
