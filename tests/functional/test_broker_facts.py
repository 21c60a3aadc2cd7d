"""What brokers do that the lock is built around. A new version that differs must fail here."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from broker.answers import GrabbedJob
from broker.client import Outcome, submit
from broker.link import Link
from broker.protocol import Kind
from tests.functional.brokers import (
    BROKERS,
    GEARD,
    GEARMAND,
    GEARMAND_TUNED,
    OURS,
    BrokerKind,
    running_broker,
)
from tests.functional.wire_peers import BOUND_S, GEARMAND_FORGETS_S

any_broker = pytest.mark.parametrize("kind", BROKERS, ids=str)
others = pytest.mark.parametrize("kind", [GEARD, GEARMAND, GEARMAND_TUNED], ids=str)


@asynccontextmanager
async def three_links(kind: BrokerKind) -> AsyncIterator[tuple[Link, Link, Link]]:
    """A submitter's, a worker's and an onlooker's connection to one broker."""
    with running_broker(kind) as broker:
        async with (
            await Link.open(broker.endpoint, client_id="submitter") as submitter,
            await Link.open(broker.endpoint, client_id="worker") as worker,
            await Link.open(broker.endpoint, client_id="onlooker") as onlooker,
            asyncio.timeout(BOUND_S),
        ):
            yield submitter, worker, onlooker


def offer(link: Link, *functions: str) -> None:
    link.register(offer, functions, lambda: None)


async def grab(link: Link) -> GrabbedJob:
    job = await link.grab().wait()
    assert job
    return job


async def heard(link: Link) -> None:
    """Until the broker has read all that `link` has sent."""
    await link.ask_status(b"any").wait()


@others
async def test_anybody_may_ask_for_the_status_of_a_job(kind: BrokerKind) -> None:
    async with three_links(kind) as (submitter, worker, onlooker):
        job = await submit(submitter, "f", b"")
        handle = job.handle.encode()
        assert await onlooker.ask_status(handle).wait() == (True, False, 0, 0)
        offer(worker, "f")
        await grab(worker)
        assert await onlooker.ask_status(handle).wait() == (True, True, 0, 0)
        worker.send_work(Kind.WORK_STATUS, handle, b"3", b"7")
        await heard(worker)
        assert await onlooker.ask_status(handle).wait() == (True, True, 3, 7)


async def test_gearmand_requeues_a_dead_workers_job_and_tells_nobody() -> None:
    async with three_links(GEARMAND) as (submitter, worker, onlooker):
        job = await submit(submitter, "f", b"")
        offer(worker, "f")
        await grab(worker)
        worker.abort("killed by the test")
        while (await job.status()).running:
            await asyncio.sleep(0)
        assert (await job.status()).known
        assert not job.is_over
        offer(onlooker, "f")
        assert (await grab(onlooker)).handle == job.handle.encode()


async def test_gearmand_requeues_a_job_whose_function_its_worker_takes_back() -> None:
    async with three_links(GEARMAND) as (submitter, worker, onlooker):
        job = await submit(submitter, "f", b"")
        offer(worker, "f")
        held = await grab(worker)
        offer(worker)
        await heard(worker)
        assert not (await job.status()).running
        worker.send_work(Kind.WORK_COMPLETE, held.handle, b"too late")
        await heard(worker)
        assert not job.is_over
        offer(onlooker, "f")
        assert (await grab(onlooker)).handle == held.handle


async def test_gearmand_with_one_try_fails_a_job_whose_function_its_worker_takes_back() -> None:
    async with three_links(GEARMAND_TUNED) as (submitter, worker, _):
        job = await submit(submitter, "f", b"")
        offer(worker, "f")
        await grab(worker)
        offer(worker)
        assert (await job.result()).outcome is Outcome.FAIL


@pytest.mark.parametrize("kind", [GEARD, OURS], ids=str)
async def test_geard_and_ours_leave_a_job_with_a_worker_that_takes_its_function_back(
    kind: BrokerKind,
) -> None:
    async with three_links(kind) as (submitter, worker, _):
        job = await submit(submitter, "f", b"")
        offer(worker, "f")
        held = await grab(worker)
        offer(worker)
        await heard(worker)
        assert (await job.status()).running
        worker.send_work(Kind.WORK_COMPLETE, held.handle, b"done")
        assert (await job.result()).data == b"done"


@any_broker
async def test_queued_job_of_a_dead_client_is_given_to_nobody(kind: BrokerKind) -> None:
    async with three_links(kind) as (submitter, worker, onlooker):
        job = await submit(submitter, "f", b"")
        await submitter.aclose()
        await asyncio.sleep(GEARMAND_FORGETS_S)
        offer(worker, "f")
        assert await worker.grab().wait() is None
        assert not (await onlooker.ask_status(job.handle.encode()).wait()).known


@pytest.mark.parametrize("kind", [GEARMAND, GEARMAND_TUNED, OURS], ids=str)
async def test_gearmand_and_ours_go_on_running_the_job_of_a_dead_client(kind: BrokerKind) -> None:
    async with three_links(kind) as (submitter, worker, onlooker):
        job = await submit(submitter, "f", b"")
        offer(worker, "f")
        held = await grab(worker)
        await submitter.aclose()
        await heard(worker)
        assert (await onlooker.ask_status(job.handle.encode()).wait()).running
        worker.send_work(Kind.WORK_COMPLETE, held.handle, b"for nobody")
        await heard(worker)
        assert not (await onlooker.ask_status(job.handle.encode()).wait()).known
        assert not worker.is_lost


async def test_geard_forgets_the_running_job_of_a_dead_client() -> None:
    async with three_links(GEARD) as (submitter, worker, onlooker):
        job = await submit(submitter, "f", b"")
        offer(worker, "f")
        await grab(worker)
        await submitter.aclose()
        assert not (await onlooker.ask_status(job.handle.encode()).wait()).known


@pytest.mark.parametrize("kind", [GEARMAND, GEARMAND_TUNED, OURS], ids=str)
async def test_gearmand_and_ours_ignore_the_end_of_a_job_from_anyone_but_its_worker(
    kind: BrokerKind,
) -> None:
    async with three_links(kind) as (submitter, worker, onlooker):
        job = await submit(submitter, "f", b"")
        offer(worker, "f")
        held = await grab(worker)
        onlooker.send_work(Kind.WORK_COMPLETE, held.handle, b"forged")
        await heard(onlooker)
        assert (await job.status()).running
        assert not onlooker.is_lost
        worker.send_work(Kind.WORK_COMPLETE, held.handle, b"genuine")
        assert (await job.result()).data == b"genuine"


async def test_geard_lets_anybody_end_any_job() -> None:
    """Hence a job belongs to the connection that it came on, and agents trust lease ids only."""
    async with three_links(GEARD) as (submitter, worker, onlooker):
        job = await submit(submitter, "f", b"")
        offer(worker, "f")
        await grab(worker)
        onlooker.send_work(Kind.WORK_COMPLETE, job.handle.encode(), b"forged")
        assert (await job.result()).data == b"forged"


async def test_ours_tells_the_submitter_its_place_in_the_queue() -> None:
    async with three_links(OURS) as (submitter, worker, _):
        first, second = await submit(submitter, "f", b""), await submit(submitter, "f", b"")
        assert await second.status() == (True, False, 2, 2)
        offer(worker, "f")
        await grab(worker)
        assert await first.status() == (True, True, 0, 0)
        assert await second.status() == (True, False, 1, 1)


async def test_ours_fails_the_job_of_a_dead_worker() -> None:
    async with three_links(OURS) as (submitter, worker, _):
        job = await submit(submitter, "f", b"")
        offer(worker, "f")
        await grab(worker)
        worker.abort("killed by the test")
        assert (await job.result()).outcome is Outcome.FAIL


async def test_handles_of_ours_never_come_again() -> None:
    with running_broker(OURS) as broker:
        handles = set()
        for _ in range(2):
            async with await Link.open(broker.endpoint, client_id="submitter") as link:
                handles |= {(await submit(link, "f", b"")).handle for _ in range(100)}
            broker.restart()
    assert len(handles) == 200
