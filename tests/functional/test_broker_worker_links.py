"""Workers whose links are lost, that have several brokers, and that answer requests."""

import asyncio

import pytest

from broker.client import Outcome, submit
from broker.endpoint import Endpoint
from broker.link import Link
from broker.links import OneLink
from broker.worker import Assignment, Worker, serve
from schemas.errors import ConnectionLost, HostError
from tests.functional.brokers import (
    GEARMAND,
    OURS,
    BrokerKind,
    RunningBroker,
    running_broker,
)
from tests.functional.wire_peers import BOUND_S
from tests.functional.worker_rig import (
    any_broker,
    assigned,
    both_families,
    linked,
    offered,
    result_of,
    running,
    until_offered,
)

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


@pytest.mark.parametrize(
    "kinds",
    [(OURS, OURS), (OURS, GEARMAND), (GEARMAND, GEARMAND)],
    ids=lambda kinds: "-and-".join(map(str, kinds)),
)
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
