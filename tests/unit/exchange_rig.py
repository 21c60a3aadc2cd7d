"""Peers and a clock for the broker's exchange, without sockets or waiting."""

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

from broker.protocol import Kind
from broker.server.access import Identity, unverified, verified
from broker.server.exchange import Exchange, Observer
from broker.server.peer import Peer
from broker.server.requests import Requests
from broker.wire import Packet, PacketReader
from schemas.broker import AccessSection, LimitsSection

WAKE_S = 0.25


@dataclass(order=True)
class HandTimer:
    """A call that waits for the clock to be moved."""

    when: float
    number: int
    call: Callable[[], object] = field(compare=False)
    cancelled: bool = field(default=False, compare=False)

    def cancel(self) -> None:
        self.cancelled = True


class HandClock:
    """Time that passes only when told so."""

    def __init__(self) -> None:
        self._now = 1000.0
        self._numbers = count()
        self._timers: list[HandTimer] = []

    def time(self) -> float:
        return self._now

    def call_later(self, delay: float, callback: Callable[..., object], *args: object) -> HandTimer:
        timer = HandTimer(self._now + delay, next(self._numbers), lambda: callback(*args))
        heapq.heappush(self._timers, timer)
        return timer

    def pass_time(self, seconds: float) -> None:
        end = self._now + seconds
        while self._timers and self._timers[0].when <= end:
            timer = heapq.heappop(self._timers)
            self._now = max(self._now, timer.when)
            if not timer.cancelled:
                timer.call()
        self._now = end


class Desk(Peer):
    """A peer that keeps what it was sent, and makes requests."""

    __slots__ = ("_packets", "_requests", "inbox")

    def __init__(self, number: int, identity: Identity, requests: Requests) -> None:
        super().__init__(number, identity, self.receive)
        self._packets = PacketReader()
        self._requests = requests
        self.inbox: list[Packet] = []

    def receive(self, data: bytes) -> None:
        self.inbox += self._packets.feed(data)

    def ask(self, kind: Kind, *fields: bytes) -> None:
        """Make a request. Raises Refusal."""
        self._requests.handle(self, Packet(kind, b"\0".join(fields)))

    def read(self) -> list[Packet]:
        """What has come since the last time."""
        inbox, self.inbox = self.inbox, []
        return inbox

    def kinds(self) -> list[int]:
        return [packet.kind for packet in self.read()]

    def offer(self, *functions: bytes) -> None:
        for function in functions:
            self.ask(Kind.CAN_DO, function)

    def submit(self, function: bytes = b"f", unique: bytes = b"", arguments: bytes = b"") -> bytes:
        """Submit a job; its handle."""
        self.ask(Kind.SUBMIT_JOB, function, unique, arguments)
        return next(p.data for p in self.read() if p.kind == Kind.JOB_CREATED)

    def grab(self) -> bytes | None:
        """Ask for a job; its handle."""
        self.ask(Kind.GRAB_JOB_UNIQ)
        answer = self.read()[-1]
        return None if answer.kind == Kind.NO_JOB else answer.data.split(b"\0")[0]


class Rig:
    """An exchange with a clock that is moved by hand."""

    def __init__(
        self,
        limits: LimitsSection | None = None,
        access: AccessSection | None = None,
        observer: Observer | None = None,
    ) -> None:
        self.clock = HandClock()
        self.access = access or AccessSection()
        self.exchange = Exchange(
            self.clock, limits or LimitsSection(), wake_timeout_s=WAKE_S, observer=observer
        )
        self._requests = Requests(self.exchange)
        self._numbers = count(1)

    def peer(self, address: str = "203.0.113.1") -> Desk:
        """A connection without TLS."""
        return self._join(unverified(address, self.access))

    def certified(self, role: str, name: str) -> Desk:
        """A connection with a certificate."""
        subject = {"OU": role, "CN": name}
        return self._join(verified(subject, 7, "203.0.113.1", self.access))

    def sleeper(self, *functions: bytes, address: str = "203.0.113.1") -> Desk:
        """A worker that waits to be woken."""
        worker = self.peer(address)
        worker.offer(*functions)
        worker.ask(Kind.PRE_SLEEP)
        return worker

    def _join(self, identity: Identity) -> Desk:
        desk = Desk(next(self._numbers), identity, self._requests)
        self.exchange.join(desk)
        return desk


def status(peer: Desk, handle: bytes) -> list[bytes]:
    """Known, running, numerator, denominator."""
    peer.ask(Kind.GET_STATUS, handle)
    return peer.read()[-1].data.split(b"\0")[1:]


def running_job(rig: Rig, function: bytes = b"f") -> tuple[Desk, Desk, bytes]:
    """Its submitter, its worker, its handle."""
    client, worker = rig.peer(), rig.peer()
    handle = client.submit(function)
    worker.offer(function)
    assert worker.grab() == handle
    return client, worker, handle
