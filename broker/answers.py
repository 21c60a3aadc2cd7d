"""What a broker owes for what it was asked, and what it says."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Generic, NamedTuple, Protocol, TypeVar

from broker.wire import MalformedPacket, Packet, kind_name
from schemas.errors import BrokerError, ConnectionLost

T = TypeVar("T")


class JobStatus(NamedTuple):
    """A broker's answer to GET_STATUS. Of an unknown job all else is False or 0.

    Of a running job `numerator` and `denominator` are what its worker told last. Of a queued one
    they are its place in the queue, from 1, and the queue's length, where the broker tells that:
    testenv-broker does; geard and gearmand say 0.
    """

    known: bool
    running: bool
    numerator: int = 0
    denominator: int = 0


class GrabbedJob(NamedTuple):
    """What JOB_ASSIGN_UNIQ says; `handle` as the broker wrote it."""

    handle: bytes
    function: str
    unique: str
    arguments: bytes


class JobWatcher(Protocol):
    """Who is told about a submitted job, in the event loop; must not block."""

    def received(self, packet: Packet) -> None:
        """WORK_*. Nothing more comes after COMPLETE, FAIL and EXCEPTION."""

    def lost(self, loss: ConnectionLost) -> None:
        """The connection has ended; nothing more comes."""


class Answer(Generic[T]):
    """What the broker owes for one request. If it stays out, `overdue` is called."""

    def __init__(self, timeout: float, overdue: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        self._reply: asyncio.Future[T | BrokerError] = loop.create_future()
        self._timer = loop.call_later(timeout, overdue)

    def give(self, reply: T | BrokerError) -> None:
        """Settle it."""
        self._timer.cancel()
        self._reply.set_result(reply)

    def on_given(self, callback: Callable[[T | BrokerError], None]) -> None:
        """Call `callback` with it soon after it is settled, whichever way."""
        self._reply.add_done_callback(lambda reply: callback(reply.result()))

    async def wait(self) -> T:
        """Wait for it; cancel and wait again freely. Raises ConnectionLost or RequestRefused."""
        reply = await asyncio.shield(self._reply)
        if isinstance(reply, BrokerError):
            raise reply
        return reply


def next_owed(owed: deque[T], packet: Packet) -> T:
    """The oldest one, which `packet` settles. Raises MalformedPacket if nothing is owed."""
    if not owed:
        raise MalformedPacket(f"{kind_name(packet.kind)} that answers nothing we asked")
    return owed.popleft()
