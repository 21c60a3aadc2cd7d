"""Why one waits, in words, as far as the broker tells."""

import asyncio
from typing import TYPE_CHECKING

from broker.client import JobStatus
from broker.endpoint import Endpoint
from schemas.errors import BrokerError, ConnectionLost
from schemas.names import host_of_function
from testenv.acquire import Acquisition
from testenv.talk import Talk

if TYPE_CHECKING:
    from collections.abc import Sequence

    from broker.admin import FunctionStatus

_FIRST_NEWS_S = 2.0
_NEWS_S = 30.0
_LIVE_NEWS_S = 2.0
_STATUS_S = 2.0


async def tell_news(waiting: Acquisition, function: str, talk: Talk) -> None:
    """Say every now and then what is waited for, until cancelled."""
    loop = asyncio.get_running_loop()
    start = loop.time()
    await asyncio.sleep(_FIRST_NEWS_S)
    while True:
        if news := await situation(waiting, function):
            talk.say_in_place(f"waiting for {loop.time() - start:.0f} s: {news}")
        await asyncio.sleep(_LIVE_NEWS_S if talk.is_live else _NEWS_S)


async def situation(waiting: Acquisition, function: str) -> str:
    """Why the client that asks for `function` has no environment yet."""
    job, line = waiting.job, waiting.line
    if job is None or line is None:
        return "no broker has the request"
    try:
        async with asyncio.timeout(_STATUS_S):
            status = await job.status()
    except (ConnectionLost, TimeoutError):
        return "the broker does not answer"
    queued = status.known and not status.running and status.denominator > 0
    if queued and status.numerator > 1:
        return describe_place(status)
    # Whoever is first in a queue asks for all in it why nothing comes: a broker's status takes a
    # connection, lists every function, and is not for everybody.
    fleet = await _fleet(line.link.endpoint, function)
    if not queued:
        return fleet or f"broker {line.link.endpoint} does not tell its status"
    return "; ".join(part for part in (fleet, describe_place(status)) if part)


async def _fleet(endpoint: Endpoint, function: str) -> str:
    from broker import admin  # who waits has the time; who need not, does without

    try:
        rows = await admin.status(endpoint, timeout=_STATUS_S)
    except BrokerError:
        return ""
    return describe_queue(function, rows)


def describe_place(place: JobStatus) -> str:
    """Where a queued request is, for a person who waits."""
    return f"place {place.numerator} of {place.denominator} in the queue"


def describe_queue(function: str, rows: "Sequence[FunctionStatus]") -> str:
    """What the broker's status says of `function`, for a person who waits for it."""
    row = next((row for row in rows if row.name == function), None)
    if row is None or row.workers == 0:
        hosts = sum(1 for row in rows if host_of_function(row.name) and row.workers)
        if not hosts:
            return f"no environment is registered for {function}"
        # All may be leased under other labels, or in turnover, or broken, or cordoned.
        return f"no environment is free for {function}; testenv status tells why"
    leased = "all leased" if row.running >= row.workers else f"{row.running} leased"
    environments = f"{row.workers} environment{'s' if row.workers != 1 else ''}"
    requests = f"{row.queued} request{'s' if row.queued != 1 else ''}"
    return f"{environments}, {leased}; {requests} waiting"
