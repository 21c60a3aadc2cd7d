"""Jobs from submission to result, over every broker, with gear's own peers on the other side."""

import asyncio
import statistics
import time
from contextlib import suppress

import gear
import pytest

from broker.client import Outcome, Progress, ProgressKind, submit
from broker.link import Link
from broker.links import Links, OneLink
from broker.protocol import MAX_UNIQUE
from broker.worker import Assignment, Worker, serve
from tests.functional.brokers import (
    BROKERS,
    GEARD,
    GEARMAND,
    GEARMAND_TUNED,
    OURS,
    BrokerKind,
    running_broker,
)
from tests.functional.wire_peers import BOUND_S, GEARMAND_FORGETS_S, gear_client, gear_worker

any_broker = pytest.mark.parametrize("kind", BROKERS, ids=str)

BINARY = bytes(range(256))


async def assigned(worker: Worker) -> Assignment:
    async with asyncio.timeout(BOUND_S):
        assignment = await worker.take()
    assert assignment
    return assignment


@any_broker
async def test_our_job_is_done_by_gears_worker(kind: BrokerKind) -> None:
    def act(job: gear.WorkerJob) -> None:
        job.sendWorkStatus(1, 2)
        job.sendWorkData(b"half")
        job.sendWorkWarning(b"careful")
        job.sendWorkComplete(job.arguments[::-1])

    seen: list[Progress] = []
    with running_broker(kind) as broker, gear_worker(broker.endpoint, "f", act):
        async with await Link.open(broker.endpoint, client_id="test") as link:
            job = await submit(link, "f", BINARY, on_progress=seen.append)
            async with asyncio.timeout(BOUND_S):
                result = await job.result()
    assert (result.outcome, result.data) == (Outcome.COMPLETE, BINARY[::-1])
    assert seen == [
        Progress(ProgressKind.STATUS, numerator=1, denominator=2),
        Progress(ProgressKind.DATA, b"half"),
        Progress(ProgressKind.WARNING, b"careful"),
    ]


@any_broker
async def test_gears_job_is_done_by_our_worker(kind: BrokerKind) -> None:
    with running_broker(kind) as broker, gear_client(broker.endpoint) as client:
        async with await Link.open(broker.endpoint, client_id="test") as link:
            job = gear.Job(b"f", BINARY, unique=b"u-1")
            await asyncio.to_thread(client.submitJob, job)
            assignment = await assigned(Worker(OneLink(link), ["f"]))
            assert (assignment.arguments, assignment.unique) == (BINARY, "u-1")
            assert assignment.handle.encode() == job.handle
            assert assignment.data(b"ahead ")
            assert assignment.complete(BINARY[::-1])
            async with asyncio.timeout(BOUND_S):
                while not job.complete:
                    await asyncio.sleep(0.005)  # gear has nothing to await
    assert not job.failure
    assert b"".join(job.data) == b"ahead " + BINARY[::-1]


@any_broker
async def test_failure_and_exception_reach_the_submitter(kind: BrokerKind) -> None:
    with running_broker(kind) as broker:
        async with (
            await Link.open(broker.endpoint, client_id="client") as here,
            await Link.open(broker.endpoint, client_id="worker") as there,
        ):
            worker = Worker(OneLink(there), ["f"])
            failing, excepting = await submit(here, "f", b"1"), await submit(here, "f", b"2")
            assert (await assigned(worker)).fail()
            assert (await assigned(worker)).exception(b"because")
            async with asyncio.timeout(BOUND_S):
                assert (await failing.result()) == (Outcome.FAIL, b"")
                assert (await excepting.result()) == (Outcome.EXCEPTION, b"because")


@any_broker
async def test_concurrent_submissions_keep_their_handles(kind: BrokerKind) -> None:
    """gear's own Client mixes them up."""

    def act(job: gear.WorkerJob) -> None:
        job.sendWorkComplete(job.arguments)

    with running_broker(kind) as broker, gear_worker(broker.endpoint, "echo", act):
        async with await Link.open(broker.endpoint, client_id="test") as link:
            texts = [f"text {i}".encode() for i in range(40)]  # gear takes 44 ms for each
            async with asyncio.timeout(BOUND_S):
                jobs = await asyncio.gather(*(submit(link, "echo", text) for text in texts))
                results = await asyncio.gather(*(job.result() for job in jobs))
    assert len({job.handle for job in jobs}) == len(texts)
    assert [result.data for result in results] == texts


@any_broker
async def test_jobs_over_a_lasting_connection_do_not_stall(kind: BrokerKind) -> None:
    """Nagle's algorithm in geard and delayed ACKs here would make it 44 ms for each."""

    async def echo(request: bytes) -> bytes:
        return request

    async def job(link: Link) -> float:
        started = time.perf_counter()
        async with asyncio.timeout(BOUND_S):
            await (await submit(link, "echo", b"")).result()
        return time.perf_counter() - started

    with running_broker(kind) as broker:
        async with (
            Links([broker.endpoint], client_id="worker") as links,
            await Link.open(broker.endpoint, client_id="client") as link,
        ):
            serving = asyncio.create_task(serve(links, "echo", echo))
            seconds = [await job(link) for _ in range(60)]
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)
    # The kernel acknowledges the first few at once in any case.
    assert statistics.median(seconds[30:]) < 0.02


@any_broker
async def test_nearly_a_megabyte_goes_both_ways(kind: BrokerKind) -> None:
    big = BINARY * 4000  # our broker's limit is a MiB, names included
    with running_broker(kind) as broker:
        async with (
            await Link.open(broker.endpoint, client_id="client") as here,
            await Link.open(broker.endpoint, client_id="worker") as there,
        ):
            job = await submit(here, "f", big)
            assignment = await assigned(Worker(OneLink(there), ["f"]))
            assert assignment.arguments == big
            assignment.complete(big[::-1])
            async with asyncio.timeout(BOUND_S):
                assert (await job.result()).data == big[::-1]


@any_broker
async def test_status_follows_a_job_through_its_life(kind: BrokerKind) -> None:
    with running_broker(kind) as broker:
        async with (
            await Link.open(broker.endpoint, client_id="client") as here,
            await Link.open(broker.endpoint, client_id="worker") as there,
        ):
            job = await submit(here, "f", b"")
            place = (1, 1) if kind is OURS else (0, 0)
            assert await job.status() == (True, False, *place)
            assignment = await assigned(Worker(OneLink(there), ["f"]))
            assert await job.status() == (True, True, 0, 0)
            assignment.status(3, 7)
            await there.ask_status(b"any").wait()  # the broker has read what came before
            assert await job.status() == (True, True, 3, 7)
            assignment.complete()
            async with asyncio.timeout(BOUND_S):
                await job.result()
            assert await job.status() == (False, False, 0, 0)


@pytest.mark.parametrize("kind", [OURS, GEARD, GEARMAND_TUNED], ids=str)
async def test_death_of_the_worker_fails_the_job(kind: BrokerKind) -> None:
    with running_broker(kind) as broker:
        async with await Link.open(broker.endpoint, client_id="client") as here:
            there = await Link.open(broker.endpoint, client_id="worker")
            job = await submit(here, "f", b"")
            await assigned(Worker(OneLink(there), ["f"]))
            there.abort("killed by the test")
            async with asyncio.timeout(BOUND_S):
                assert (await job.result()).outcome is Outcome.FAIL


@any_broker
async def test_closing_the_submitters_link_withdraws_its_queued_job(kind: BrokerKind) -> None:
    with running_broker(kind) as broker:
        async with await Link.open(broker.endpoint, client_id="worker") as there:
            dead, alive = [await Link.open(broker.endpoint, client_id="c") for _ in range(2)]
            await submit(dead, "f", b"dead")
            job = await submit(alive, "f", b"alive")
            await dead.aclose()
            await asyncio.sleep(GEARMAND_FORGETS_S)
            worker = Worker(OneLink(there), ["f"])
            assignment = await assigned(worker)
            assert assignment.arguments == b"alive"
            assignment.complete()
            async with asyncio.timeout(BOUND_S):
                await job.result()
            with suppress(TimeoutError):
                async with asyncio.timeout(0.2):
                    assert not await worker.take()
            await alive.aclose()


async def test_gearmand_makes_one_job_of_equal_unique_ids() -> None:
    with running_broker(GEARMAND) as broker:
        async with (
            await Link.open(broker.endpoint, client_id="client") as here,
            await Link.open(broker.endpoint, client_id="worker") as there,
        ):
            first, second = [await submit(here, "f", b"", unique="same") for _ in range(2)]
            assert first.handle == second.handle
            (await assigned(Worker(OneLink(there), ["f"]))).complete(b"once")
            async with asyncio.timeout(BOUND_S):
                assert (await first.result()).data == b"once"
                assert (await second.result()).data == b"once"
            assert not here.is_lost


@any_broker
async def test_error_in_a_progress_callback_costs_neither_job_nor_link(kind: BrokerKind) -> None:
    def fail(_: Progress) -> None:
        raise ZeroDivisionError

    reported: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    with running_broker(kind) as broker:
        async with (
            await Link.open(broker.endpoint, client_id="client") as here,
            await Link.open(broker.endpoint, client_id="worker") as there,
        ):
            job = await submit(here, "f", b"", on_progress=fail)
            assignment = await assigned(Worker(OneLink(there), ["f"]))
            assignment.status(1, 2)
            assignment.complete()
            async with asyncio.timeout(BOUND_S):
                assert (await job.result()).outcome is Outcome.COMPLETE
            assert not here.is_lost
    assert len(reported) == 1


async def test_names_that_brokers_would_refuse_are_refused_here() -> None:
    with running_broker(OURS) as broker:
        async with await Link.open(broker.endpoint, client_id="test") as link:
            with pytest.raises(ValueError, match="65 bytes"):
                await submit(link, "f", b"", unique="u" * (MAX_UNIQUE + 1))
            with pytest.raises(ValueError, match="NUL"):
                await submit(link, "f\0g", b"")
            assert (await submit(link, "f", b"", unique="u" * MAX_UNIQUE)).handle
