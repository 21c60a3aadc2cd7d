"""A thousand clients that come at once: how long until each has been answered."""

import select
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack

from broker.endpoint import Endpoint
from broker.protocol import Kind
from broker.wire import request
from tests.benchmarks.figures import Bar, Benchmark, Figure, Key
from tests.benchmarks.rivals import OURS, RIVALS, running_rival
from tests.functional.brokers import BrokerKind

CLIENTS = 1_000
BOUND_S = 10.0
WHAT = f"{CLIENTS:,} clients connect, register and submit"


class _Storm:
    """Sockets that connect at the same time, each with its first words ready."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._epoll = stack.enter_context(select.epoll())
        self._callers: dict[int, tuple[socket.socket, bytes]] = {}
        self.answered = 0

    def call(self, endpoint: Endpoint, words: bytes) -> None:
        """Begin to connect."""
        caller = self._stack.enter_context(socket.socket())
        caller.setblocking(False)
        caller.connect_ex((endpoint.host, endpoint.port))
        self._callers[caller.fileno()] = caller, words
        self._epoll.register(caller, select.EPOLLOUT)

    def rage(self, timeout: float) -> None:
        """Until all are answered, or for `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while self.answered < len(self._callers) and time.monotonic() < deadline:
            for number, events in self._epoll.poll(0.1):
                caller, words = self._callers[number]
                if events & select.EPOLLOUT:
                    caller.send(words)
                    self._epoll.modify(number, select.EPOLLIN)
                else:
                    self.answered += bool(caller.recv(4096))
                    self._epoll.unregister(number)


def _storm(kind: BrokerKind) -> tuple[float, int]:
    """Seconds until all are answered, and how many never were."""
    with running_rival(kind) as broker, ExitStack() as stack:
        storm = _Storm(stack)
        start = time.perf_counter()
        for number in range(CLIENTS):
            hello = request(Kind.CAN_DO, b"callback_%d" % number)
            storm.call(broker.endpoint, hello + request(Kind.SUBMIT_JOB, b"lockenv", b"", b"{}"))
        storm.rage(BOUND_S)
        return time.perf_counter() - start, CLIENTS - storm.answered


def _measure(runs: int) -> Iterator[Figure]:
    for kind in RIVALS:
        yield _of(kind, runs)


def _of(kind: BrokerKind, runs: int) -> Figure:
    samples = []
    for _ in range(runs):
        took, unanswered = _storm(kind)
        if unanswered:
            note = f"{unanswered} unanswered after {BOUND_S:g} s"
            return Figure(WHAT, str(kind), "s", note=note)
        samples.append(took)
    return Figure.of(WHAT, str(kind), "s", samples)


STORM = Benchmark(
    "storm",
    "Time from the first connect(2) to the last JOB_CREATED; each client sends CAN_DO of its"
    " callback and SUBMIT_JOB of lockenv as soon as it is connected. A new broker for each run.",
    OURS.name,
    _measure,
    (Bar(Key(WHAT, OURS.name), 1.0),),
)
