"""A broker's connections in this process: who is hurt when something goes wrong inside."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from broker.endpoint import Endpoint
from broker.protocol import Kind
from broker.server.exchange import Exchange
from broker.server.listener import Listener, listening_socket
from broker.server.metrics import Metrics
from broker.server.outbox import Outbox
from broker.server.peer import Peer
from broker.server.switchboard import Switchboard
from broker.server.text import AdminCommands
from broker.wire import request, response
from schemas.broker import AccessSection, LimitsSection

BOUND_S = 10.0


class Defective(AdminCommands):
    """Has a defect that one peer runs into."""

    def answer(self, peer: Peer, line: bytes) -> bytes:
        if line == b"boom":
            raise RuntimeError("a defect")
        return super().answer(peer, line)


@asynccontextmanager
async def listening() -> AsyncIterator[tuple[str, int]]:
    loop = asyncio.get_running_loop()
    exchange = Exchange(loop, LimitsSection())
    commands = Defective(exchange, version="1", shutdown=lambda _: None)
    board = Switchboard(loop, exchange, commands, Metrics(), AccessSection())
    sock = listening_socket(Endpoint("127.0.0.1", 0))
    address: tuple[str, int] = sock.getsockname()
    listener = Listener(sock, board, None)
    listener.start()
    try:
        yield address
    finally:
        await listener.close()
        for connection in board.connections:
            connection.close()
        while len(board):
            await asyncio.sleep(0.01)


async def test_defect_ends_the_connection_that_met_it_and_no_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with listening() as (host, port), asyncio.timeout(BOUND_S):
        other_reader, other = await asyncio.open_connection(host, port)
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(request(Kind.ECHO_REQ, b"before") + b"boom\n")
        assert await reader.read() == response(Kind.ECHO_RES, b"before")
        other.write(b"version\n")
        assert await other_reader.readline() == b"OK testenv-broker 1\n"
        for each in (writer, other):
            each.close()
            await each.wait_closed()
    assert "a defect of ours, met by unverified at 127.0.0.1" in caplog.text


class Wire:
    """Keeps what is written to it, piece by piece, and may have others write."""

    def __init__(self, outbox: Outbox) -> None:
        self.pieces: list[list[str]] = []
        self._outbox = outbox
        self._words: list[str] = []
        self.then: list[tuple[Wire, str]] = []

    def write(self, word: str) -> None:
        if not self._words:
            self._outbox.add(self)
        self._words.append(word)

    def flush(self) -> None:
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
