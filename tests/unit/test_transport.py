"""A broker's connections in this process: who is hurt when something goes wrong inside."""

import asyncio
import socket
import time
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from typing import NamedTuple

import pytest
from pydantic import ValidationError

from broker.endpoint import Endpoint
from broker.protocol import Kind
from broker.server.exchange import Exchange
from broker.server.job import Job
from broker.server.listener import Listener, listening_socket, set_options
from broker.server.metrics import Metrics
from broker.server.outbox import Outbox
from broker.server.peer import Peer
from broker.server.switchboard import Switchboard
from broker.server.text import AdminCommands
from broker.server.tls import Trust
from broker.wire import request, response
from schemas.broker import AccessSection, LimitsSection

BOUND_S = 10.0
MEGABYTE = 1024 * 1024


class Commands(AdminCommands):
    """Has a defect that one peer runs into, and a long answer."""

    long_answers = 0

    def answer(self, peer: Peer, line: bytes) -> bytes:
        if line == b"boom":
            raise RuntimeError("a defect")
        if line == b"long":
            self.long_answers += 1
            return bytes(MEGABYTE)
        return super().answer(peer, line)


class SlowExchange(Exchange):
    """Takes its time for each grab."""

    grabs = 0

    def grab(self, peer: Peer) -> Job | None:
        self.grabs += 1
        time.sleep(0.002)
        return super().grab(peer)


class Running(NamedTuple):
    address: tuple[str, int]
    board: Switchboard
    exchange: SlowExchange
    commands: Commands


@asynccontextmanager
async def listening(
    limits: LimitsSection | None = None, trust: Trust | None = None
) -> AsyncIterator[Running]:
    loop = asyncio.get_running_loop()
    exchange = SlowExchange(loop, limits or LimitsSection())
    commands = Commands(exchange, version="1", shutdown=lambda _: None)
    board = Switchboard(loop, exchange, commands, Metrics(), AccessSection(), trust)
    sock = listening_socket(Endpoint("127.0.0.1", 0), "--listen")
    address: tuple[str, int] = sock.getsockname()
    listener = Listener(sock, board)
    listener.start()
    try:
        yield Running(address, board, exchange, commands)
    finally:
        await listener.close()
        for connection in board.connections:
            connection.close()
        while len(board):
            await asyncio.sleep(0.01)


async def test_defect_ends_the_connection_that_met_it_and_no_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with listening() as broker, asyncio.timeout(BOUND_S):
        other_reader, other = await asyncio.open_connection(*broker.address)
        reader, writer = await asyncio.open_connection(*broker.address)
        writer.write(request(Kind.ECHO_REQ, b"before") + b"boom\n")
        assert await reader.read() == response(Kind.ECHO_RES, b"before")
        other.write(b"version\n")
        assert await other_reader.readline() == b"OK testenv-broker 1\n"
        for each in (writer, other):
            each.close()
            await each.wait_closed()
    assert "a defect of ours, met by unverified at 127.0.0.1" in caplog.text


async def test_peer_with_much_to_do_lets_others_have_their_turn() -> None:
    async with listening() as broker, asyncio.timeout(BOUND_S):
        _, busy = await asyncio.open_connection(*broker.address)
        reader, writer = await asyncio.open_connection(*broker.address)
        busy.write(request(Kind.GRAB_JOB) * 100)
        writer.write(request(Kind.ECHO_REQ, b"x"))
        await reader.readexactly(len(response(Kind.ECHO_RES, b"x")))
        assert broker.exchange.grabs < 50
        for each in (busy, writer):
            each.close()
            await each.wait_closed()


async def test_listings_that_nobody_reads_are_not_even_made() -> None:
    limits = LimitsSection(unsent_bytes=MEGABYTE)
    async with listening(limits) as broker, asyncio.timeout(BOUND_S):
        with closing(socket.create_connection(broker.address)) as lazy:
            lazy.sendall(b"long\n" * 100)
            while not broker.board.metrics.refusals["SLOW_READER"]:
                await asyncio.sleep(0.01)
        assert broker.commands.long_answers < 20


async def test_what_is_written_to_a_peer_in_one_event_is_limited() -> None:
    limits = LimitsSection(unsent_bytes=MEGABYTE)
    async with listening(limits) as broker, asyncio.timeout(BOUND_S):
        reader, writer = await asyncio.open_connection(*broker.address)
        writer.write(b"version\n")
        await reader.readline()
        (peer,) = broker.exchange.peers.values()
        tracemalloc.start()
        with broker.board.outbox.event():
            for _ in range(100):
                peer.write(bytes(MEGABYTE))
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert most < 10 * MEGABYTE
        assert await reader.read() == b""
        assert not broker.exchange.peers
        writer.close()


async def test_peer_that_does_not_read_what_asyncio_has_for_it_is_cut_off() -> None:
    async with listening() as broker, asyncio.timeout(BOUND_S):
        reader, writer = await asyncio.open_connection(*broker.address)
        writer.write(b"version\n")
        await reader.readline()
        (connection,) = broker.board.connections
        connection.pause_writing()
        assert await reader.read() == b""
        assert broker.board.metrics.refusals["SLOW_READER"] == 1
        writer.close()


def test_longest_keepalive_that_may_be_configured_is_linuxs_too() -> None:
    keys = ("keepalive_idle_s", "keepalive_interval_s", "keepalive_count")
    longest = dict(zip(keys, (32_767, 32_767, 127), strict=True))
    with closing(listening_socket(Endpoint("127.0.0.1", 0), "--listen")) as sock:
        set_options(sock, LimitsSection(**longest))
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT) == 127
    for key, most in longest.items():
        with pytest.raises(ValidationError):
            LimitsSection(**{key: most + 1})


class Wire:
    """Keeps what is written to it, piece by piece, and may have others write, or break."""

    def __init__(self, outbox: Outbox) -> None:
        self.pieces: list[list[str]] = []
        self.broken = False
        self.aborted = False
        self._outbox = outbox
        self._words: list[str] = []
        self.then: list[tuple[Wire, str]] = []

    def write(self, word: str) -> None:
        if not self._words:
            self._outbox.add(self)
        self._words.append(word)

    def abort(self) -> None:
        self.aborted = True

    def flush(self) -> None:
        if self.broken:
            raise MemoryError
        self.pieces.append(self._words)
        self._words = []
        for wire, word in self.then:
            wire.write(word)


def test_each_peer_gets_one_piece_per_event_also_of_what_flushing_causes() -> None:
    soon: list[object] = []
    outbox = Outbox(soon.append)
    one, other = Wire(outbox), Wire(outbox)
    with outbox.event():
        one.write("a")
        with outbox.event():
            one.write("b")
        assert one.pieces == []
        one.then.append((other, "c"))
    assert (one.pieces, other.pieces) == ([["a", "b"]], [["c"]])
    assert soon == []


def test_what_is_written_outside_an_event_goes_out_soon() -> None:
    soon: list[object] = []
    outbox = Outbox(soon.append)
    wire = Wire(outbox)
    wire.write("a")
    wire.write("b")
    assert soon == [outbox.flush]
    outbox.flush()
    assert wire.pieces == [["a", "b"]]


def test_one_that_cannot_be_written_to_keeps_nobody_from_hearing() -> None:
    soon: list[object] = []
    outbox = Outbox(soon.append)
    bad, good = Wire(outbox), Wire(outbox)
    bad.broken = True
    with outbox.event():
        bad.write("a")
        good.write("b")
    assert (bad.aborted, good.aborted) == (True, False)
    with outbox.event():
        good.write("c")
    assert good.pieces == [["b"], ["c"]]
