"""One broker connection of a client: what comes on it, in one row of messages."""

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from enum import Enum
from functools import partial
from typing import Any, NamedTuple, Self

from broker.client import JobResult, Outcome, Progress, SubmittedJob, submit
from broker.link import Link
from broker.links import OneLink
from broker.worker import Assignment, Worker
from schemas.errors import ConnectionLost

_NEXT_CALL_S = 0.02

_WITHDRAW_S = 1.0


class News(Enum):
    """What a message is about, and what its value is then."""

    CALL = "call"
    """The callback was called: an Assignment."""
    PROGRESS = "progress"
    """Of the lock leg's job: a Progress."""
    ENDED = "ended"
    """The lock leg's job is over: a JobResult."""
    LOST = "lost"
    """The connection is: a ConnectionLost. Nothing more comes."""


class Message(NamedTuple):
    """`leg`: the Line's number of the job that PROGRESS and ENDED are about."""

    line: "Line"
    news: News
    value: Any
    leg: int = 0

    @property
    def is_stale(self) -> bool:
        """Whether it is about a lock leg that another has replaced."""
        return self.news in (News.PROGRESS, News.ENDED) and self.leg != self.line.leg


Inbox = asyncio.Queue[Message]


class Line:
    """Serves `callback` on `link`, and tells `inbox` of that and of the lock leg's job.

    Use it as a context: leaving it declines late calls and closes the link. `leg` counts the lock
    legs that were submitted here; the last one is the one that counts.
    """

    def __init__(self, link: Link, callback: str, inbox: Inbox) -> None:
        self.link = link
        self.leg = 0
        self._worker = Worker(OneLink(link), [callback])
        self._inbox = inbox
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._spawn(self._serve())
        self._spawn(self._mourn())
        await asyncio.sleep(0)  # their first steps: the callback is registered before we ask
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._decline_unread()
        await self._decline_late()
        await self.link.aclose()

    async def submit(self, function: str, arguments: bytes, unique: str) -> SubmittedJob:
        """Submit the job of a lock leg. Raises ConnectionLost, RequestRefused."""
        self.leg += 1
        on_progress = partial(self._tell, News.PROGRESS, leg=self.leg)
        job = await submit(self.link, function, arguments, unique=unique, on_progress=on_progress)
        self._spawn(self._await_end(job, self.leg))
        return job

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(asyncio.create_task(coroutine))

    def _tell(self, news: News, value: JobResult | Progress | Assignment | ConnectionLost,
              leg: int = 0) -> None:  # fmt: skip
        self._inbox.put_nowait(Message(self, news, value, leg))

    async def _serve(self) -> None:
        with suppress(ConnectionLost):
            while call := await self._worker.take():
                self._tell(News.CALL, call)
                # The next call can wait until the command runs; the command should not.
                await asyncio.sleep(_NEXT_CALL_S)

    async def _mourn(self) -> None:
        self._tell(News.LOST, await self.link.lost())

    async def _await_end(self, job: SubmittedJob, leg: int) -> None:
        with suppress(ConnectionLost):  # LOST tells of that
            self._tell(News.ENDED, await job.result(), leg)

    def _decline_unread(self) -> None:
        unread = [self._inbox.get_nowait() for _ in range(self._inbox.qsize())]
        for message in unread:
            if message.line is not self:
                self._inbox.put_nowait(message)
            elif message.news is News.CALL:
                decline(message.value)

    async def _decline_late(self) -> None:
        over = asyncio.Event()
        over.set()
        with suppress(ConnectionLost, TimeoutError):
            async with asyncio.timeout(_WITHDRAW_S):
                while late := await self._worker.take(over):
                    decline(late)


def decline(call: Assignment) -> None:
    """Give back what nobody has touched. WORK_FAIL is what a lost client looks like."""
    call.exception(b"declined")


def describe_end(result: JobResult) -> str:
    """How a lock leg ended, in words that begin with what the environment's host did."""
    match result.outcome:
        case Outcome.COMPLETE:
            return "the environment's host ended the lease"
        case Outcome.FAIL:
            return "the environment's host failed or is gone"
        case Outcome.EXCEPTION:
            return f"the environment's host says: {result.data.decode(errors='replace')}"
