"""Gearman peers on bare sockets, thousands in one process: the same load for every broker."""

import itertools
import select
import socket
import time
from collections.abc import Callable
from typing import Self

from broker.endpoint import Endpoint
from broker.protocol import Kind
from broker.wire import Packet, PacketReader, request

BOUND_S = 30.0
"""No answer is awaited longer, but where a benchmark says so."""

_BATCH = 16
"""Sockets read between two looks at which are ready. Few: a job's answer should not have to wait
until we have read what woke a thousand others."""

OnPacket = Callable[[Packet], None]

_JOBS = itertools.count()


class Peer:
    """One connection, known to be alive. What it sends are small packets, which never block."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.socket = socket.create_connection((endpoint.host, endpoint.port), timeout=BOUND_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.on_packet: OnPacket = lambda _: None
        self._reader = PacketReader()
        # Answered before the next one connects: geard loses connections that come in a rush.
        self.ask(request(Kind.GET_STATUS, b"ping"))

    def send(self, *packets: bytes) -> None:
        """In one write."""
        self.socket.sendall(b"".join(packets))

    def read(self) -> None:
        """Hand what has come to `on_packet`. Raises ConnectionError when the broker hung up."""
        data = self.socket.recv(65536)
        if not data:
            raise ConnectionResetError("the broker hung up")
        for packet in self._reader.feed(data):
            self.on_packet(packet)

    def ask(self, *packets: bytes) -> None:
        """Send, and wait for a first answer."""
        self.send(*packets)
        self.read()


class Crowd:
    """Peers that are heard together. Use as a context: all are closed at its end."""

    def __init__(self) -> None:
        self.peers: dict[int, Peer] = {}
        self._epoll = select.epoll()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._epoll.close()
        for peer in self.peers.values():
            peer.socket.close()

    def add(self, peer: Peer) -> None:
        """Hear it from now on."""
        self.peers[peer.socket.fileno()] = peer
        self._epoll.register(peer.socket, select.EPOLLIN)

    def run_until(self, done: Callable[[], bool], timeout: float = BOUND_S) -> bool:
        """Read until `done`; False if that took longer than `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while not done():
            if time.monotonic() > deadline:
                return False
            self._read_some(0.05)
        return True

    def run_until_quiet(self, quiet: float = 0.05) -> None:
        """Read until nothing has come for `quiet` seconds, but not longer than BOUND_S."""
        deadline = time.monotonic() + BOUND_S
        while self._read_some(quiet) and time.monotonic() < deadline:
            pass

    def _read_some(self, timeout: float) -> bool:
        ready = self._epoll.poll(timeout, _BATCH)
        for number, _ in ready:
            self.peers[number].read()
        return bool(ready)


class RawWorker:
    """Serves `function` as a worker library does: grab, or else sleep until called.

    Every job is completed at once, after `on_job`. Asleep once it is made.
    """

    def __init__(self, endpoint: Endpoint, function: bytes, on_job: Callable[[], None]) -> None:
        self.peer = Peer(endpoint)
        self._on_job = on_job
        self.peer.ask(request(Kind.CAN_DO, function), request(Kind.GRAB_JOB_UNIQ))
        self.peer.send(request(Kind.PRE_SLEEP))
        self.peer.on_packet = self._received

    def _received(self, packet: Packet) -> None:
        match packet.kind:
            case Kind.NOOP:
                self.peer.send(request(Kind.GRAB_JOB_UNIQ))
            case Kind.NO_JOB:
                self.peer.send(request(Kind.PRE_SLEEP))
            case Kind.JOB_ASSIGN_UNIQ:
                self._on_job()
                handle, _, _ = packet.data.partition(b"\0")
                self.peer.send(
                    request(Kind.WORK_COMPLETE, handle, b""), request(Kind.GRAB_JOB_UNIQ)
                )


class RawClient:
    """Submits one job at a time; `on_end` is called at its WORK_COMPLETE."""

    def __init__(self, endpoint: Endpoint, function: bytes, on_end: Callable[[], None]) -> None:
        self.peer = Peer(endpoint)
        self._function = function
        self._on_end = on_end
        self.peer.on_packet = self._received

    def submit(self) -> None:
        """Not to be called while a job is out."""
        # A unique id each, as client libraries have it: none is taken for another.
        unique = b"%d" % next(_JOBS)
        self.peer.send(request(Kind.SUBMIT_JOB, self._function, unique, b""))

    def _received(self, packet: Packet) -> None:
        if packet.kind == Kind.WORK_COMPLETE:
            self._on_end()
