"""A lease of a version 1 client, toci's (DESIGN section 4): no acks, no beats, no way back.

The agent holds the client's `lockenv` job and submits the callback job, whose argument is the data
file. The lease ends when the client completes that job, when the broker says that the client is
gone, or at its timeout.
"""

import asyncio
import logging
from uuid import uuid4

from broker.client import JobResult, Outcome, SubmittedJob, submit
from broker.worker import Assignment
from hosts.lease import End, Ending
from schemas.errors import ConnectionLost, RequestRefused
from schemas.lock import LockRequest
from schemas.status import Lease
from schemas.terms import Terms

log = logging.getLogger(__name__)

_ENDS = {
    Outcome.COMPLETE: End.COMPLETED,
    Outcome.EXCEPTION: End.DECLINED,
    Outcome.FAIL: End.CUT,
}


async def serve_lease(
    assignment: Assignment,
    request: LockRequest,
    lease: Lease,
    data: bytes,
    terms: Terms,
) -> Ending:
    """Offer the environment to the client behind `assignment`; return when its lease is over.

    At the latest that is `terms.margin_s` after `lease.timeout_s`, and so it is when the broker
    is lost: the client may go on until its timeout, and nothing tells it or us. A client that
    outlives its lease gets its `lockenv` job completed, which tells it to stop. Whoever offered is
    never sure that nobody took it: the environment counts as touched.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + lease.timeout_s + terms.margin_s
    try:
        # Not the lease's id: gearmand would take a second try for the job that still runs.
        job = await submit(assignment.link, request.callback, data, unique=uuid4().hex)
        log.info("%s: lease %s to %s (%s), version 1",
                 lease.environment, lease.id, lease.holder, lease.submitter)  # fmt: skip
        end = await _until_end(job, deadline, terms)
    except RequestRefused as refused:
        log.warning("%s: no client could be called: %s", lease.environment, refused)
        end = End.DECLINED
    except ConnectionLost as lost:
        log.warning("%s: %s; lease %s is kept until its timeout",
                    lease.environment, lost, lease.id)  # fmt: skip
        await asyncio.sleep(max(0.0, deadline - loop.time()))
        return Ending(End.SILENT, touched=True)
    assignment.complete()
    if end is End.UNTAKEN:
        # The callback may still be queued, and a client that appears late would take it for an
        # offer. No packet withdraws a job; closing its submitter's connection does, on both
        # brokers.
        await assignment.link.aclose()
    return Ending(end, touched=True)


async def _until_end(job: SubmittedJob, deadline: float, terms: Terms) -> End:
    loop = asyncio.get_running_loop()
    untaken_at = loop.time() + terms.untaken_s
    taken = False
    result = asyncio.ensure_future(job.result())
    try:
        while True:
            next_poll = loop.time() + (terms.beat_s if taken else terms.untaken_s / 5)
            pause = max(0.0, min(next_poll, deadline) - loop.time())
            await asyncio.wait([result], timeout=pause)
            if result.done():
                return _ENDS[result.result().outcome]
            if loop.time() >= deadline:
                return End.OUT_OF_TIME
            running = (await job.status(timeout=terms.untaken_s)).running
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
    return _ENDS[result.result().outcome] if result.done() else End.CUT
