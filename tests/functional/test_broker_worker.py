"""Workers: at most one job, nothing registered while busy, no job lost whatever races."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager, suppress

import pytest

from broker import admin
from broker.client import Outcome, SubmittedJob, submit
from broker.endpoint import Endpoint
from broker.link import Link
from broker.links import Links, OneLink
from broker.protocol import Kind
from broker.wire import Packet, response
from broker.worker import Assignment, Worker, serve
from schemas.errors import ConnectionLost, HostError
from tests.functional.brokers import (
    BROKERS,
    GEARMAND,
    GEARMAND_TUNED,
    OURS,
    BrokerKind,
    RunningBroker,
    running_broker,
)
from tests.functional.wire_peers import BOUND_S, scripted_broker

any_broker = pytest.mark.parametrize("kind", BROKERS, ids=str)
both_families = pytest.mark.parametrize("kind", [OURS, GEARMAND_TUNED, GEARMAND], ids=str)


@asynccontextmanager
async def linked(*brokers: RunningBroker) -> AsyncIterator[Links]:
    """Links to all of them, all up."""
    async with Links([each.endpoint for each in brokers], client_id="worker") as links:
        async with asyncio.timeout(BOUND_S):
            while len(links.up) < len(brokers):
                await links.changed(links.up)
        yield links


@asynccontextmanager
async def running(awaitable: Awaitable[object]) -> AsyncIterator[asyncio.Future[object]]:
    task = asyncio.ensure_future(awaitable)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def assigned(worker: Worker, withdraw: asyncio.Event | None = None) -> Assignment:
    async with asyncio.timeout(BOUND_S):
        assignment = await worker.take(withdraw)
    assert assignment
    return assignment


async def result_of(job: SubmittedJob) -> tuple[Outcome, bytes]:
    async with asyncio.timeout(BOUND_S):
        return await job.result()


async def offered(endpoint: Endpoint) -> dict[str, int]:
    """How many workers offer each function that anybody offers."""
    return {row.name: row.workers for row in await admin.status(endpoint) if row.workers}


async def until_offered(endpoint: Endpoint, expected: dict[str, int]) -> None:
    """Brokers tell nobody when a worker registers: ask until it has."""
    async with asyncio.timeout(BOUND_S):
        while await offered(endpoint) != expected:
            await asyncio.sleep(0.005)


def ended(event: asyncio.Event | None = None) -> asyncio.Event:
    event = event or asyncio.Event()
    event.set()
    return event


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


# Losing the link


@both_families
async def test_restarted_broker_is_registered_with_again(kind: BrokerKind) -> None:
    with running_broker(kind) as broker:
        async with linked(broker) as links:
            worker = Worker(links, ["f", "g"])
            async with running(worker.take()) as taking:
                await until_offered(broker.endpoint, {"f": 1, "g": 1})
                await asyncio.to_thread(broker.restart)
                await until_offered(broker.endpoint, {"f": 1, "g": 1})
                async with await Link.open(broker.endpoint, client_id="client") as here:
                    job = await submit(here, "g", b"after")
                    async with asyncio.timeout(BOUND_S):
                        assignment = await taking
                    assert isinstance(assignment, Assignment)
                    assert assignment.complete()
                    assert (await result_of(job))[0] is Outcome.COMPLETE


@both_families
async def test_nothing_is_sent_for_a_job_of_an_earlier_connection(kind: BrokerKind) -> None:
    """gearmand uses the same handles again after a restart; ours never does."""
    with running_broker(kind) as broker:
        async with linked(broker) as links:
            worker = Worker(links, ["f"])
            async with await Link.open(broker.endpoint, client_id="client") as here:
                await submit(here, "f", b"old")
                old = await assigned(worker)
            await asyncio.to_thread(broker.restart)
            async with await Link.open(broker.endpoint, client_id="client") as here:
                job = await submit(here, "f", b"new")
                new = await assigned(worker)
                assert (new.handle == old.handle) is (kind is not OURS)
                assert old.is_over
                assert not old.complete(b"of another life")
                assert not old.status(1, 2)
                assert (await job.status()).running
                assert new.complete(b"right")
                assert await result_of(job) == (Outcome.COMPLETE, b"right")


async def test_take_over_one_link_ends_with_it(broker: RunningBroker) -> None:
    async with await Link.open(broker.endpoint, client_id="client") as link:
        worker = Worker(OneLink(link), ["f"])
        async with running(worker.take()) as taking:
            await until_offered(broker.endpoint, {"f": 1})
            broker.kill()
            with pytest.raises(ConnectionLost):
                async with asyncio.timeout(BOUND_S):
                    await taking
        with pytest.raises(ConnectionLost):
            await worker.take()


@any_broker
async def test_client_is_called_back_on_the_link_it_submits_on(kind: BrokerKind) -> None:
    """The shape of a lock: both jobs run at once, one each way."""
    with running_broker(kind) as broker:
        async with (
            linked(broker) as links,
            await Link.open(broker.endpoint, client_id="client") as link,
        ):
            calls = Worker(OneLink(link), ["callback_1"])
            async with running(calls.take()) as calling:
                lock = await submit(link, "lockenv", b"callback_1")
                lease = await assigned(Worker(links, ["lockenv"]))
                callback = await submit(lease.link, lease.arguments.decode(), b"data file")
                async with asyncio.timeout(BOUND_S):
                    offer = await calling
            assert isinstance(offer, Assignment)
            async with running(calls.take()) as further:
                second = await submit(lease.link, "callback_1", b"another")
                async with asyncio.timeout(BOUND_S):
                    declined = await further
                assert isinstance(declined, Assignment)
                assert declined.fail()
                assert (await result_of(second))[0] is Outcome.FAIL
            assert (await callback.status()).running
            assert offer.complete(b"0")
            assert await result_of(callback) == (Outcome.COMPLETE, b"0")
            assert lease.complete()
            assert (await result_of(lock))[0] is Outcome.COMPLETE


# Several brokers


@pytest.mark.parametrize("kinds", [(OURS, OURS), (OURS, GEARMAND), (GEARMAND, GEARMAND)], ids=str)
async def test_worker_of_two_brokers_has_one_job_at_a_time(
    kinds: tuple[BrokerKind, BrokerKind],
) -> None:
    """gear's own Worker takes one from each, and one rots."""
    with running_broker(kinds[0]) as a, running_broker(kinds[1]) as b:
        async with (
            linked(a, b) as links,
            await Link.open(a.endpoint, client_id="client") as at_a,
            await Link.open(b.endpoint, client_id="client") as at_b,
        ):
            worker = Worker(links, ["f"])
            jobs = {link.endpoint: await submit(link, "f", b"") for link in (at_a, at_b)}
            while jobs:
                assignment = await assigned(worker)
                mine = jobs.pop(assignment.link.endpoint)
                for other, job in jobs.items():
                    await until_offered(other, {})
                    assert not (await job.status()).running
                assert assignment.complete()
                assert (await result_of(mine))[0] is Outcome.COMPLETE


async def test_queue_of_one_broker_does_not_starve_the_other(broker: RunningBroker) -> None:
    with running_broker(OURS) as other:
        async with (
            linked(broker, other) as links,
            await Link.open(broker.endpoint, client_id="client") as here,
            await Link.open(other.endpoint, client_id="client") as there,
        ):
            worker = Worker(links, ["f"])
            for link in (here, here, here, there, there, there):
                await submit(link, "f", b"")
            served = []
            for _ in range(6):
                assignment = await assigned(worker)
                served.append(assignment.link.endpoint)
                assignment.complete()
            assert served == [broker.endpoint, other.endpoint] * 3


async def test_loss_of_one_broker_does_not_stop_work_for_the_other(
    broker: RunningBroker,
) -> None:
    with running_broker(OURS) as other:
        async with (
            linked(broker, other) as links,
            await Link.open(other.endpoint, client_id="client") as here,
        ):
            worker = Worker(links, ["f"])
            async with running(worker.take()) as taking:
                await until_offered(broker.endpoint, {"f": 1})
                await until_offered(other.endpoint, {"f": 1})
                broker.kill()
                job = await submit(here, "f", b"")
                async with asyncio.timeout(BOUND_S):
                    assignment = await taking
            assert isinstance(assignment, Assignment)
            assert assignment.complete()
            await result_of(job)


# Answering requests


@any_broker
async def test_requests_are_answered_and_errors_named(kind: BrokerKind) -> None:
    async def handler(request: bytes) -> bytes:
        match request:
            case b"refuse":
                raise HostError("no such environment")
            case b"crash":
                raise ZeroDivisionError
            case b"hang":
                await asyncio.Event().wait()
        return request.upper()

    with running_broker(kind) as broker:
        async with (
            linked(broker) as links,
            await Link.open(broker.endpoint, client_id="operator") as here,
            running(serve(links, "host.te1", handler, timeout=0.2)),
        ):

            async def ask(request: bytes) -> tuple[Outcome, bytes]:
                return await result_of(await submit(here, "host.te1", request))

            assert await ask(b"status") == (Outcome.COMPLETE, b"STATUS")
            assert await ask(b"refuse") == (Outcome.EXCEPTION, b"no such environment")
            assert (await ask(b"crash"))[0] is Outcome.EXCEPTION
            assert await ask(b"hang") == (Outcome.EXCEPTION, b"no answer within 0.2 s")
            assert await ask(b"status") == (Outcome.COMPLETE, b"STATUS")


@both_families
async def test_requests_are_answered_side_by_side_up_to_the_limit(kind: BrokerKind) -> None:
    both_here = asyncio.Barrier(2)
    in_work = most = 0

    async def handler(_: bytes) -> bytes:
        nonlocal in_work, most
        in_work += 1
        most = max(most, in_work)
        await both_here.wait()
        in_work -= 1
        return b""

    with running_broker(kind) as broker:
        async with (
            linked(broker) as links,
            await Link.open(broker.endpoint, client_id="operator") as here,
            running(serve(links, "host.te1", handler, limit=2)),
        ):
            jobs = [await submit(here, "host.te1", b"") for _ in range(6)]
            for job in jobs:
                assert (await result_of(job))[0] is Outcome.COMPLETE
            assert await offered(broker.endpoint) == {"host.te1": 1}
    assert most == 2


async def test_requests_are_answered_on_all_brokers_and_after_a_restart(
    broker: RunningBroker,
) -> None:
    async def handler(request: bytes) -> bytes:
        return request.upper()

    async def ask(endpoint: Endpoint) -> bytes:
        async with await Link.open(endpoint, client_id="operator") as link:
            return (await result_of(await submit(link, "host.te1", b"status")))[1]

    with running_broker(OURS) as other:
        async with linked(broker, other) as links, running(serve(links, "host.te1", handler)):
            assert [await ask(each.endpoint) for each in (broker, other)] == [b"STATUS"] * 2
            await asyncio.to_thread(broker.restart)
            assert [await ask(each.endpoint) for each in (broker, other)] == [b"STATUS"] * 2


@both_families
async def test_service_that_ends_fails_its_requests_and_unregisters(kind: BrokerKind) -> None:
    begun = asyncio.Event()

    async def handler(_: bytes) -> bytes:
        begun.set()
        await asyncio.Event().wait()
        return b""

    with running_broker(kind) as broker:
        async with (
            linked(broker) as links,
            await Link.open(broker.endpoint, client_id="operator") as here,
        ):
            async with running(serve(links, "host.te1", handler)):
                job = await submit(here, "host.te1", b"")
                async with asyncio.timeout(BOUND_S):
                    await begun.wait()
            assert (await result_of(job))[0] is Outcome.FAIL
            await until_offered(broker.endpoint, {})
