"""A network between two machines, as a TCP relay that can fall silent, be slow, or be reset."""

import asyncio
import socket
import struct
from contextlib import suppress
from typing import Self

from broker.endpoint import Endpoint
from tests.functional.brokers import HOST

_CHUNK = 65536
_NO_LINGER = struct.pack("ii", 1, 0)
_SLOW_S = 0.4


class Wire:
    """Relays to `target`; use it as a context. `endpoint` is where it listens.

    Silent, it loses nothing: as TCP does, it delivers what was sent when it is heard again, the
    end of a connection included.
    """

    def __init__(self, target: Endpoint) -> None:
        self._target = target
        self._server: asyncio.Server | None = None
        self._silences = 0
        self._delay_s = 0.0
        self._passable = asyncio.Event()
        self._passable.set()
        self._ends: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accepted, HOST, 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def endpoint(self) -> Endpoint:
        assert self._server
        host, port = self._server.sockets[0].getsockname()
        return Endpoint(host, port)

    def silence(self) -> None:
        """Deliver nothing, until `heal` was called as often."""
        self._silences += 1
        self._passable.clear()

    def heal(self) -> None:
        """End one silence."""
        self._silences -= 1
        if not self._silences:
            self._passable.set()

    def slow(self, on: bool) -> None:
        """Deliver late."""
        self._delay_s = _SLOW_S if on else 0.0

    def reset(self) -> None:
        """Reset every connection, for both sides."""
        for end in tuple(self._ends):
            _reset(end)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._ends.add(writer)
        try:
            await self._passable.wait()
            with suppress(OSError):
                await self._relay(reader, writer)
            await self._passable.wait()
        finally:
            self._ends.discard(writer)
            _reset(writer)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(*self._target[:2])
        self._ends.add(far_writer)
        ways = [
            asyncio.ensure_future(self._pump(reader, far_writer)),
            asyncio.ensure_future(self._pump(far_reader, writer)),
        ]
        try:
            await asyncio.gather(*ways)
            await self._passable.wait()
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            self._ends.discard(far_writer)
            _reset(far_writer)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while chunk := await source.read(_CHUNK):
            await self._passable.wait()
            if self._delay_s:
                await asyncio.sleep(self._delay_s)
                await self._passable.wait()
            sink.write(chunk)
            await sink.drain()
        await self._passable.wait()
        if sink.can_write_eof():
            sink.write_eof()


def _reset(end: asyncio.StreamWriter) -> None:
    plug = end.get_extra_info("socket")
    if plug is not None:
        with suppress(OSError):
            plug.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    end.transport.abort()
