"""Peers of the broker package: gear's own Client and Worker, and brokers that misbehave."""

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from typing import Any

import gear

from broker.endpoint import Endpoint
from broker.protocol import Kind
from broker.wire import Packet, PacketReader, response

BOUND_S = 10.0
"""No wait of a test is longer; what is awaited takes milliseconds."""

GEARMAND_FORGETS_S = 0.1
"""gearmand closes a connection in one thread and forgets its jobs in another, about a millisecond
later: until then a worker may still be given one (1 % of grabs made at once). It tells nobody when
it has."""


def until(truth: Callable[[], object]) -> None:
    """Wait for something that another thread or process does."""
    deadline = time.monotonic() + BOUND_S
    while not truth():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.002)


@contextmanager
def gear_client(endpoint: Endpoint) -> Iterator[gear.Client]:
    """gear's own client, connected. Its calls block: use asyncio.to_thread."""
    client = gear.Client("gear-client")
    client.addServer(endpoint.host, endpoint.port)
    client.waitForServer(timeout=BOUND_S)
    try:
        yield client
    finally:
        client.shutdown()


@contextmanager
def gear_worker(
    endpoint: Endpoint, function: str, act: Callable[[gear.WorkerJob], None]
) -> Iterator[gear.Worker]:
    """gear's own worker, which does `act` for every job of `function` in a thread of its own."""
    worker = gear.Worker("gear-worker")
    worker.addServer(endpoint.host, endpoint.port)
    worker.waitForServer(timeout=BOUND_S)
    worker.registerFunction(function)

    def work() -> None:
        while True:
            try:
                job = worker.getJob()
            except gear.InterruptedError:
                return
            act(job)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield worker
    finally:
        worker.stopWaitingForJobs()
        thread.join(BOUND_S)
        worker.shutdown()


def unknown_job(get_status: Packet) -> bytes:
    """The answer to GET_STATUS of a job that does not exist: what a ping wants."""
    return response(Kind.STATUS_RES, get_status.data, b"0", b"0", b"0", b"0")


Script = Callable[[Packet], bytes | None]
Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]


@asynccontextmanager
async def scripted_broker(script: Script) -> AsyncIterator[Endpoint]:
    """A broker that answers each packet with what `script` returns; None: pings only."""

    def answer(packet: Packet) -> bytes:
        reply = script(packet)
        if reply is None:
            reply = unknown_job(packet) if packet.kind == Kind.GET_STATUS else b""
        return reply

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        packets = PacketReader()
        while data := await reader.read(65536):
            writer.write(b"".join(answer(packet) for packet in packets.feed(data)))

    async with _listening(talk) as endpoint:
        yield endpoint


@asynccontextmanager
async def chopping_proxy(target: Endpoint) -> AsyncIterator[Endpoint]:
    """Passes everything on to `target` and back, each byte in a packet of its own."""

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            for byte in data:
                writer.write(bytes([byte]))
                await asyncio.sleep(0)
        writer.write_eof()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection(target.host, target.port)
        try:
            await asyncio.gather(relay(reader, there_writer), relay(there_reader, writer))
        finally:
            there_writer.transport.abort()

    async with _listening(talk) as endpoint:
        yield endpoint


@asynccontextmanager
async def banner_server(banner: bytes, *, close: bool = False) -> AsyncIterator[Endpoint]:
    """Some other service: says `banner` at once, and nothing else; then perhaps hangs up."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(banner)
        if close:
            writer.write_eof()
        await reader.read()

    async with _listening(talk) as endpoint:
        yield endpoint


@asynccontextmanager
async def _listening(talk: Talk) -> AsyncIterator[Endpoint]:
    talks: set[asyncio.Task[None]] = set()

    def start(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talks.add(asyncio.create_task(run(reader, writer)))

    async def run(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(OSError):
                await talk(reader, writer)
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(start, "127.0.0.1", 0)
    try:
        yield Endpoint(*server.sockets[0].getsockname())
    finally:
        server.close()
        for task in talks:
            task.cancel()
        await asyncio.gather(*talks, return_exceptions=True)


@contextmanager
def black_hole() -> Iterator[Endpoint]:
    """A listener that never accepts: connections are made, and nothing is ever answered."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield Endpoint(*listener.getsockname())


@contextmanager
def full_backlog() -> Iterator[Endpoint]:
    """A listener whose queue is full: connection attempts are not even answered."""
    with socket.socket() as listener, ExitStack() as waiting:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        with suppress(TimeoutError):
            while True:
                client = waiting.enter_context(socket.socket())
                client.settimeout(0.2)
                client.connect(address)
        yield Endpoint(*address)
