"""The transport below a Link: one TCP connection that carries packets. Ends once, with a reason.

gear's own sockets have no TCP_NODELAY, so that on a long-lived connection Nagle's algorithm and
delayed ACKs cost 44 ms a job; and no timeouts. Hence this.
"""

import asyncio
import os
import re
import socket
from collections.abc import Callable
from typing import Self, cast

from broker.endpoint import Endpoint
from broker.wire import MalformedPacket, Packet, PacketReader
from schemas.errors import ProtocolError

ATTEMPT_DELAY_S = 0.25
"""Head start of each of a name's addresses over the next (RFC 8305 recommends 250 ms)."""

MAX_UNSENT = 64 * 1024 * 1024
"""Bytes we buffer for a broker that does not read, before the connection is given up."""

KEEPALIVE = ((socket.TCP_KEEPIDLE, 15), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3))
"""TCP keepalive: a peer that vanished is noticed 30 s later even if nobody pings it."""

OnPacket = Callable[[Packet], None]
OnEnd = Callable[[str, Exception | None], None]


class Connection(asyncio.Protocol):
    """Hands every packet to `on_packet`, and calls `on_end` with reason and cause exactly once.

    Both run in the event loop and must not block; `on_packet` may raise MalformedPacket.
    """

    def __init__(self, address: str, on_packet: OnPacket, on_end: OnEnd) -> None:
        self._address = address
        self._on_packet = on_packet
        self._on_end = on_end
        self._reader = PacketReader()
        self._ended = False

    @classmethod
    async def open(cls, endpoint: Endpoint, on_packet: OnPacket, on_end: OnEnd) -> Self:
        """Connect. Raises OSError; the caller bounds the wait."""
        loop = asyncio.get_running_loop()
        # A single address needs no race, and asyncio's (3.11) forgets to close its socket when
        # it is cancelled at the wrong moment.
        delay = None if endpoint.is_numeric else ATTEMPT_DELAY_S
        _, protocol = await loop.create_connection(
            lambda: cls(str(endpoint), on_packet, on_end),
            endpoint.host,
            endpoint.port,
            happy_eyeballs_delay=delay,
        )
        return protocol

    def fileno(self) -> int:
        """The socket's file descriptor; -1 once it is closed."""
        return self._socket.fileno()

    def send(self, data: bytes) -> None:
        """Write whole packets; ignored once the connection has ended."""
        if self._ended:
            return
        self._transport.write(data)
        if self._transport.get_write_buffer_size() > MAX_UNSENT:
            self.abort("it does not read what we send")

    def send_eof(self) -> None:
        """Say that nothing more will come; what the peer still sends is read to its end."""
        if not self._ended and self._transport.can_write_eof():
            self._transport.write_eof()

    def abort(self, why: str, cause: Exception | None = None) -> None:
        """End at once; nothing more is read or written. No effect if ended already."""
        if not self._ended:
            self._ended = True
            self._transport.abort()
            self._on_end(why, cause)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        self._transport = cast("asyncio.Transport", transport)
        # asyncio sets TCP_NODELAY itself on TCP sockets (since Python 3.6).
        self._socket: socket.socket = transport.get_extra_info("socket")
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, seconds in KEEPALIVE:
            self._socket.setsockopt(socket.IPPROTO_TCP, option, seconds)

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        try:
            for packet in self._reader.feed(data):
                self._on_packet(packet)
                if self._ended:
                    return
        except MalformedPacket as exc:
            error = ProtocolError(self._address, str(exc))
            self.abort(str(exc), error)
            return
        # Acknowledge at once: gear's servers keep Nagle's algorithm on, and would hold back
        # their next packet until the ACK. The kernel forgets this option, so it is set each time.
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio."""
        if not self._ended:
            self._ended = True
            self._on_end(describe(exc) if exc else "the broker closed it", exc)


def describe(error: BaseException) -> str:
    """An operating system's error in a few words, without the addresses that asyncio adds."""
    if isinstance(error, socket.gaierror):
        return error.strerror or str(error)
    # For a name with several addresses asyncio gives one text: "Multiple exceptions: [Errno ..".
    numbers = {int(found) for found in re.findall(r"\[Errno (\d+)\]", str(error))}
    if isinstance(error, OSError) and numbers:
        return " / ".join(os.strerror(each) for each in sorted(numbers))
    return str(error) or type(error).__name__
