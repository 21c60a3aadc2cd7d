"""One lease from grant to end, as toci's version 1 of the protocol has it (DESIGN section 4).

The agent holds the client's `lockenv` job and submits the callback job, whose argument is the data
file. The lease ends when the client completes that job. Whatever goes wrong, the end is decided
within a bound, and never while the client's command may still be running.
"""

import asyncio
import contextlib
import logging
from dataclasses import dataclass
from enum import StrEnum
from uuid import uuid4

from broker.client import JobResult, Outcome, SubmittedJob, submit
from broker.endpoint import Endpoint
from broker.links import LinkSource
from broker.worker import Assignment
from schemas.errors import ConnectionLost, RequestRefused
from schemas.lock import MARGIN_S, LockRequest, loss_notice
from schemas.status import Lease

log = logging.getLogger(__name__)


class End(StrEnum):
    """How a lease ended."""

    COMPLETED = "completed"
    DECLINED = "the client did not want it"
    FAILED = "the client gave it back, died, or was cut off"
    CLIENT_GONE = "the client is gone"
    UNTAKEN = "no client took it"
    """As far as the broker knows: one that took it and died at once looks the same (gearmand)."""
    TIMED_OUT = "timed out"
    LINK_LOST = "the broker connection was lost"


_ENDS = {
    Outcome.COMPLETE: End.COMPLETED,
    Outcome.EXCEPTION: End.DECLINED,
    Outcome.FAIL: End.FAILED,
}
_UNCERTAIN = frozenset({End.FAILED, End.CLIENT_GONE, End.UNTAKEN})
"""Ends at which a command may still be running, as far as the broker knows."""


@dataclass(frozen=True)
class LeaseTiming:
    """Seconds. `untaken_s`: a callback not running by then has no client behind it.
    `poll_s`: how often the broker is asked whether the callback still runs.
    `margin_s`: how much later than the client the agent acts."""

    untaken_s: float = 5.0
    poll_s: float = 5.0
    margin_s: float = MARGIN_S


async def serve_lease(
    assignment: Assignment,
    request: LockRequest,
    lease: Lease,
    data: bytes,
    links: LinkSource,
    timing: LeaseTiming,
) -> End:
    """Offer the environment to the client behind `assignment`; return when its lease is over.

    `links`: where `assignment` came from, to reach its broker again after a lost connection.
    Returns at the latest a margin (`timing.margin_s`, or what the client promises to need if that
    is more) after `lease.timeout_s`. A client that outlives its lease gets its `lockenv` job
    completed, which tells it to stop.
    """
    loop = asyncio.get_running_loop()
    margin_s = max(timing.margin_s, request.stops_within_s or 0)
    deadline = loop.time() + lease.timeout_s + margin_s
    try:
        job = await submit(assignment.link, request.callback, data, unique=lease.id)
        log.info("%s: lease %s to %s (%s)",
                 lease.environment, lease.id, lease.holder, lease.submitter)  # fmt: skip
        end = await _until_end(job, deadline, timing)
    except RequestRefused as refused:
        log.warning("%s: no client could be called: %s", lease.environment, refused)
        end = End.DECLINED
    except ConnectionLost as lost:
        log.warning("%s: %s; lease %s is kept until its command is certainly over",
                    lease.environment, lost, lease.id)  # fmt: skip
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                await _outlast_client(lease, request, links, assignment.link.endpoint, timing)
        return End.LINK_LOST
    except asyncio.CancelledError:
        # The agent goes down: tells the client now, also over gearmand, which would not.
        assignment.complete()
        raise
    assignment.complete()
    if end in (End.UNTAKEN, End.CLIENT_GONE):
        # The callback may still be queued, and a client that appears late would take it for an
        # offer. No packet withdraws a job; closing its submitter's connection does, on both
        # brokers.
        await assignment.link.aclose()
    if end in _UNCERTAIN and request.stops_within_s is not None:
        # Our client, or its guard, says so when its command is dead. This one was cut off, and
        # stops when it notices.
        wait_s = min(request.stops_within_s + timing.margin_s, deadline - loop.time())
        log.warning("%s: lease %s: %s; kept for %.0f s, until its command is certainly over",
                    lease.environment, lease.id, end, wait_s)  # fmt: skip
        await asyncio.sleep(max(0.0, wait_s))
    return end


async def _until_end(job: SubmittedJob, deadline: float, timing: LeaseTiming) -> End:
    loop = asyncio.get_running_loop()
    untaken_at = loop.time() + timing.untaken_s
    taken = False
    result = asyncio.ensure_future(job.result())
    try:
        while True:
            next_poll = loop.time() + (timing.poll_s if taken else timing.untaken_s / 5)
            pause = max(0.0, min(next_poll, deadline) - loop.time())
            await asyncio.wait([result], timeout=pause)
            if result.done():
                return _ENDS[result.result().outcome]
            if loop.time() >= deadline:
                return End.TIMED_OUT
            running = (await job.status(timeout=timing.untaken_s)).running
            if taken and not running:
                # C gearmand requeues a dead client's callback and tells nobody.
                return await _last_word(result)
            taken = taken or running
            if not taken and loop.time() >= untaken_at:
                return End.UNTAKEN
    finally:
        result.cancel()


async def _last_word(result: "asyncio.Future[JobResult]") -> End:
    """A result that arrived together with the answer "not running" counts."""
    await asyncio.wait([result], timeout=0)
    return _ENDS[result.result().outcome] if result.done() else End.CLIENT_GONE


async def _outlast_client(
    lease: Lease, request: LockRequest, links: LinkSource, broker: Endpoint, timing: LeaseTiming
) -> None:
    """Wait until the client's command is certainly over.

    A v1 client promises nothing, is told nothing, and may go on until its timeout. Our own client
    stops once it knows that the lease is lost: because its own connection to the broker broke too,
    or because it is told over a new one. So the promise counts from the moment when either is
    certain, which is not before we have reached the same broker again.
    """
    if request.stops_within_s is None:
        await asyncio.Event().wait()
        return
    await _tell_lost(lease, request, links, broker, timing)
    await asyncio.sleep(request.stops_within_s + timing.margin_s)


async def _tell_lost(
    lease: Lease, request: LockRequest, links: LinkSource, broker: Endpoint, timing: LeaseTiming
) -> None:
    """Reach `broker` again, and give a client that is connected to it a loss notice."""
    up = links.up
    while True:
        link = next((one for one in up if one.endpoint == broker and not one.is_lost), None)
        if link is None:
            up = await links.changed(up)
            continue
        with contextlib.suppress(ConnectionLost):
            # Not the offer's unique id: gearmand would take the notice for the job that still runs.
            job = await submit(link, request.callback, loss_notice(lease.id), unique=uuid4().hex)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timing.untaken_s):
                    await job.result()
                return
            # Nobody serves the callback: the client's connection broke as ours did. Closing
            # withdraws the notice.
            await link.aclose()
            return
        up = links.up
