"""What the tests of workers share: links that are up, bounded waits, what a broker lists."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager

import pytest

from broker import admin
from broker.client import Outcome, SubmittedJob
from broker.endpoint import Endpoint
from broker.links import Links
from broker.worker import Assignment, Worker
from tests.functional.brokers import (
    BROKERS,
    GEARMAND,
    GEARMAND_TUNED,
    OURS,
    RunningBroker,
)
from tests.functional.wire_peers import BOUND_S

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
