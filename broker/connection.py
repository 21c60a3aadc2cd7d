"""The transport below a Link: one TCP connection that carries packets. Ends once, with a reason.

gear's own sockets have no TCP_NODELAY, so that on a long-lived connection Nagle's algorithm and
delayed ACKs cost 44 ms a job; and no timeouts. Hence this.
"""

import asyncio
import errno
import os
import re
import socket
from collections.abc import Callable
from typing import Any, Self, cast

from broker import tls
from broker.endpoint import Endpoint
from broker.wire import MalformedPacket, Packet, PacketReader
from schemas.errors import ProtocolError

ATTEMPT_DELAY_S = 0.25
"""Head start of each of a name's addresses over the next (RFC 8305 recommends 250 ms)."""

MAX_UNSENT = 64 * 1024 * 1024
"""Bytes we buffer for a broker that does not read, before the connection is given up."""

KEEPALIVE = ((socket.TCP_KEEPIDLE, 15), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3))
"""TCP keepalive: a peer that vanished is noticed 30 s later even if nobody pings it."""

PEERS_END = (ConnectionResetError, BrokenPipeError)
"""What a FIN that met our words, or a RST, looks like; silence ends as TimeoutError."""

OnPacket = Callable[[Packet], None]
OnEnd = Callable[[str, Exception | None], None]


class Connection(asyncio.Protocol):
    """Hands every packet to `on_packet`, and calls `on_end` with reason and cause exactly once.

    Both run in the event loop and must not block; `on_packet` may raise MalformedPacket.
    """

    def __init__(self, endpoint: Endpoint, on_packet: OnPacket, on_end: OnEnd) -> None:
        self._endpoint = endpoint
        self._on_packet = on_packet
        self._on_end = on_end
        self._reader = PacketReader()
        self._ended = False
        self._heard = False
        """Whether the broker has said anything."""
        self.was_closed_by_peer = False

    @classmethod
    async def open(cls, endpoint: Endpoint, on_packet: OnPacket, on_end: OnEnd) -> Self:
        """Connect. Raises OSError, and ConfigError for TLS files; the caller bounds the wait."""
        loop = asyncio.get_running_loop()
        # A single address needs no race, and asyncio's (3.11) forgets to close its socket when
        # it is cancelled at the wrong moment.
        delay = None if endpoint.is_numeric else ATTEMPT_DELAY_S
        _, protocol = await loop.create_connection(
            lambda: cls(endpoint, on_packet, on_end),
            endpoint.host,
            endpoint.port,
            happy_eyeballs_delay=delay,
            **tls_arguments(endpoint),
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
        if self._ended:
            return
        if self._transport.can_write_eof():
            self._transport.write_eof()
        else:
            # TLS, as asyncio has it: sends what is buffered and a goodbye, and waits for theirs.
            self._transport.close()

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
        first, self._heard = not self._heard, True
        try:
            for packet in self._reader.feed(data):
                self._on_packet(packet)
                if self._ended:
                    return
        except MalformedPacket as exc:
            if first and not self._endpoint.tls and data.startswith(tls.ALERT):
                self.abort(tls.SPEAKS_TLS, exc)
            else:
                self.abort(str(exc), ProtocolError(str(self._endpoint), str(exc)))
            return
        # Acknowledge at once: gear's servers keep Nagle's algorithm on, and would hold back
        # their next packet until the ACK. The kernel forgets this option, so it is set each time.
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio."""
        if not self._ended:
            self._ended = True
            self.was_closed_by_peer = exc is None or isinstance(exc, PEERS_END)
            why = describe(exc) if exc else "the broker closed it"
            if not self._heard and not (exc and tls.explain(exc)):
                why += f", without a word: {silence_means(self._endpoint)}"
            self._on_end(why, exc)


def tls_arguments(endpoint: Endpoint) -> dict[str, Any]:
    """For asyncio's functions that connect. Raises ConfigError."""
    if not endpoint.tls:
        return {}
    return {
        "ssl": tls.client_context(endpoint.tls),
        "ssl_handshake_timeout": tls.HANDSHAKE_S,
        "ssl_shutdown_timeout": tls.HANDSHAKE_S,
    }


def refusal_in_words(code: str, text: str) -> str:
    """Why a broker ends a connection, by its ERROR."""
    if code == "PLAIN_ON_TLS_PORT":
        return tls.SPEAKS_TLS
    return f"the broker refuses: {text or code}"


def silence_means(endpoint: Endpoint) -> str:
    """What to look at when a broker hangs up at once."""
    if endpoint.tls:
        # With TLS 1.3 a certificate is refused after the client's side of the handshake.
        return "does it accept our certificate?"
    return f"if it speaks TLS, give {tls.OPTIONS}"


def describe(error: BaseException) -> str:
    """An operating system's error in a few words, without the addresses that asyncio adds."""
    if isinstance(error, socket.gaierror):
        return error.strerror or str(error)
    if failure := tls.explain(error):
        return failure
    if isinstance(error, OSError) and (numbers := _errnos(error)):
        return " / ".join(os.strerror(each) for each in sorted(numbers))
    return str(error) or type(error).__name__


def is_refusal(error: BaseException | None) -> bool:
    """Whether nobody listened on any address that was tried."""
    return isinstance(error, OSError) and _errnos(error) == {errno.ECONNREFUSED}


def _errnos(error: OSError) -> set[int]:
    # For a name with several addresses asyncio gives one text: "Multiple exceptions: [Errno ..".
    return {int(found) for found in re.findall(r"\[Errno (\d+)\]", str(error))}
