"""The brokers' text protocol: who works, what is queued. One short connection per question."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TypeVar

from broker import tls
from broker.connection import describe, refusal_in_words, silence_means, tls_arguments
from broker.endpoint import Endpoint
from broker.protocol import Kind
from broker.wire import MalformedPacket, PacketReader, fields, from_wire
from schemas.errors import (
    BrokerUnreachable,
    ConfigError,
    ConnectionLost,
    ProtocolError,
    RequestRefused,
)

log = logging.getLogger(__name__)

T = TypeVar("T")

TIMEOUT_S = 3.0

MAX_LINE = 1024 * 1024
"""Bytes; `workers` has all functions of a connection in one line."""


@dataclass(frozen=True)
class FunctionStatus:
    """One line of `status`: `total` jobs of a function, queued and running; `workers` offer it."""

    name: str
    total: int
    running: int
    workers: int

    @property
    def queued(self) -> int:
        """Jobs that wait for a worker."""
        return max(0, self.total - self.running)


@dataclass(frozen=True)
class WorkerStatus:
    """One line of `workers`: a connection that offers `functions` (geard lists clients too)."""

    fd: int
    address: str
    client_id: str
    functions: tuple[str, ...]


async def status(endpoint: Endpoint, timeout: float = TIMEOUT_S) -> list[FunctionStatus]:
    """All functions that the broker knows of; brokers go on listing those without workers.

    Raises BrokerUnreachable (no answer in `timeout` seconds), ConnectionLost, ProtocolError.
    """
    return await _table(endpoint, "status", _function_status, timeout)


async def workers(endpoint: Endpoint, timeout: float = TIMEOUT_S) -> list[WorkerStatus]:
    """All connections with what they offer. Raises as `status` does."""
    return await _table(endpoint, "workers", _worker_status, timeout)


async def cancel(endpoint: Endpoint, handle: str, timeout: float = TIMEOUT_S) -> bool:
    """Take a queued job out of the queue; False if the broker has no such job.

    geard tells the submitter nothing, and refuses (False) for running jobs. gearmand sends it
    WORK_FAIL, also for a running job, which its worker nevertheless goes on with.
    Raises as `status` does, and RequestRefused.
    """
    async with _session(endpoint, timeout) as session:
        answer = await session.ask(f"cancel job {handle}")
        if answer.split(" ")[:2] == ["ERR", "UNKNOWN_JOB"]:
            return False
        _raise_refusal(endpoint, answer)
        return True


async def version(endpoint: Endpoint, timeout: float = TIMEOUT_S) -> str | None:
    """What the broker says its version is; None for gear's geard, which ignores the question.

    Raises as `status` does.
    """
    async with _session(endpoint, timeout) as session:
        # Both in one go: geard's answer to the second shows that there is none to the first.
        answer = await session.ask("version\nstatus")
        return answer.removeprefix("OK ") if answer.startswith("OK ") else None


async def _table(
    endpoint: Endpoint, command: str, parse: Callable[[str], T], timeout: float
) -> list[T]:
    rows: list[T] = []
    unreadable = ""
    try:
        async with _session(endpoint, timeout) as session:
            line = await session.ask(command)
            while line != ".":
                _raise_refusal(endpoint, line)
                try:
                    rows.append(parse(line))
                except ValueError:
                    # One peer's odd name (brokers take any bytes) must not hide all the others.
                    unreadable = line[:60]
                line = await session.read_line()
    except (BrokerUnreachable, ConnectionLost) as exc:
        if unreadable and not rows:
            what = f"{unreadable!r} in its answer to {command}"
            raise ProtocolError(str(endpoint), what) from exc
        raise
    if unreadable and not rows:
        raise ProtocolError(str(endpoint), f"{unreadable!r} in its answer to {command}")
    if unreadable:
        log.warning("broker %s: %s has a line that is no row: %r", endpoint, command, unreadable)
    return rows


def _function_status(line: str) -> FunctionStatus:
    name, total, running, workers_ = line.rsplit("\t", 3)
    return FunctionStatus(name, int(total), int(running), int(workers_))


def _worker_status(line: str) -> WorkerStatus:
    who, functions = line.split(" :", 1)
    fd, address, client_id = who.split(" ", 2)
    return WorkerStatus(int(fd), address, client_id, tuple(functions.split()))


def _raise_refusal(endpoint: Endpoint, line: str) -> None:
    if line.startswith("ERR "):
        _, code, *text = line.split(" ", 2)
        raise RequestRefused(str(endpoint), code, " ".join(text).replace("+", " "))


class _Session:
    """A text connection; made by `_session`."""

    def __init__(
        self, endpoint: Endpoint, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._endpoint = endpoint
        self._address = str(endpoint)
        self._heard = False
        self._reader = reader
        self._writer = writer

    async def ask(self, command: str) -> str:
        """Send `command` and return the first line of the answer."""
        self._writer.write(f"{command}\n".encode(errors="surrogateescape"))
        return await self.read_line()

    async def read_line(self) -> str:
        try:
            line = await self._reader.readline()
        except ValueError as exc:
            raise ProtocolError(self._address, f"a line of over {MAX_LINE} bytes") from exc
        if not line.endswith(b"\n"):
            raise ConnectionLost(self._address, self._why_cut_off(line))
        self._heard = True
        return line.decode(errors="surrogateescape").rstrip("\r\n")

    def _why_cut_off(self, piece: bytes) -> str:
        if not (piece or self._heard):
            return f"it ended without an answer: {silence_means(self._endpoint)}"
        if piece.startswith(tls.ALERT):
            return tls.SPEAKS_TLS
        # Who speaks to a broker before it knows our protocol gets a packet for an answer.
        with suppress(MalformedPacket):
            for packet in PacketReader().feed(piece):
                if packet.kind == Kind.ERROR:
                    return refusal_in_words(*map(from_wire, fields(packet, 2)))
        return "it ended in the middle of an answer"


@asynccontextmanager
async def _session(endpoint: Endpoint, timeout: float) -> AsyncIterator[_Session]:
    """A connection for all that is done in the context, within `timeout` seconds in all."""
    address = str(endpoint)
    try:
        async with asyncio.timeout(timeout):
            reader, writer = await asyncio.open_connection(
                endpoint.host, endpoint.port, limit=MAX_LINE, **tls_arguments(endpoint)
            )
            try:
                yield _Session(endpoint, reader, writer)
            finally:
                writer.transport.abort()
    except TimeoutError as exc:
        why = f"no answer within {timeout:g} s"
        raise BrokerUnreachable([(address, why)]) from exc
    except OSError as exc:
        why = describe(exc)
        if endpoint.tls and isinstance(exc, ConnectionResetError | BrokenPipeError) and exc.errno:
            why = f"{why}: {silence_means(endpoint)}"
        raise BrokerUnreachable([(address, why)]) from exc
    except ConfigError as exc:
        raise BrokerUnreachable([(address, str(exc))]) from exc
