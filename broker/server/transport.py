"""The socket side of one connection: bytes in, packets out, and an orderly end.

Whatever goes wrong here ends this one connection: nobody else notices.
"""

import asyncio
import logging
import socket
from time import monotonic
from typing import TYPE_CHECKING, cast

from broker.connection import PEERS_END
from broker.protocol import Kind
from broker.server.access import Identity, UnknownSubject, unverified
from broker.server.framing import RequestReader
from broker.server.metrics import KINDS
from broker.server.peer import Peer
from broker.server.refusal import Breach, Refusal
from broker.server.switchboard import Switchboard
from broker.server.tls import identify
from broker.wire import Packet, kind_name, response

if TYPE_CHECKING:
    from collections.abc import Iterator

log = logging.getLogger(__name__)

TURN_S = 0.001
"""How long one peer's packets are handled before others have a turn."""

LINGER_S = 5.0
"""How long a connection that we end may take to read the last of what we sent."""


class ServerConnection(asyncio.Protocol):
    """One accepted connection. There may be ten thousand: no timers, no buffers while idle."""

    __slots__ = (
        "_address",
        "_authority",
        "_board",
        "_ended",
        "_out",
        "_peer",
        "_reader",
        "_refused",
        "_socket",
        "_transport",
        "_unflushed",
        "_unread",
    )

    def __init__(self, board: Switchboard, address: str) -> None:
        """`address`: the peer's, without its port. A TLS handshake begins after this."""
        self._board = board
        self._address = address
        self._authority = board.trust and board.trust.authority
        self._reader = RequestReader(board.limits.packet_bytes)
        self._unread: Iterator[Packet | bytes] | None = None
        """What has been read but not handled yet; meanwhile no more is read."""
        self._out: list[bytes] = []
        self._unflushed = 0
        """Bytes of `_out`."""
        self._peer: Peer | None = None
        """Set as long as it is one of the exchange's."""
        self._ended = False
        """Whether we have said our last word; what the peer still sends is thrown away."""
        self._refused = False

    def __str__(self) -> str:
        subject = self._peer.identity.subject if self._peer else "a peer"
        return f"{subject} at {self._address}"

    @property
    def identity(self) -> Identity | None:
        """Who it is; None once it has ended."""
        return self._peer.identity if self._peer else None

    def current_identity(self) -> Identity:
        """Who it would be if it came now. Raises UnknownSubject."""
        certificate, trust = self._transport.get_extra_info("peercert"), self._board.trust
        if certificate is None or trust is None:
            return unverified(self._address, self._board.access)
        identity = identify(certificate, self._address, self._board.access)
        # The handshake looked at both too, but may have begun before they changed.
        if identity.serial in trust.revoked:
            raise UnknownSubject("the certificate has been revoked")
        if self._authority != trust.authority:
            raise UnknownSubject("the authority of the certificate has been replaced")
        return identity

    # asyncio's calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is there, and its TLS handshake is done."""
        board = self._board
        board.sockets += 1
        self._transport = cast("asyncio.Transport", transport)
        self._socket: socket.socket = transport.get_extra_info("socket")
        self._acknowledge()
        self._transport.set_write_buffer_limits(high=board.limits.unsent_bytes)
        board.metrics.connections_total += 1
        try:
            identity = self.current_identity()
            board.admit(self, identity)
        except UnknownSubject as exc:
            self._turn_away(Breach("UNKNOWN_CERTIFICATE", str(exc)))
        except Breach as breach:
            self._turn_away(breach)
        else:
            self._peer = Peer(next(board.numbers), identity, self.write)
            board.exchange.join(self._peer)

    def data_received(self, data: bytes) -> None:
        """Handle what has come."""
        if self._ended:
            return
        self._unread = self._reader.feed(data)
        self._take_turn()
        self._acknowledge()

    def eof_received(self) -> None:
        """The peer says no more: answer what it has said, and close."""
        # asyncio's TLS tells the end although reading is paused.
        while self._unread is not None:
            self._handle_some(self._unread)
        with self._board.outbox.event():
            self._leave(given_up=False)
        self._ended = True
        # asyncio closes the transport now, after what is still unsent.
        if self._transport.get_write_buffer_size():
            self._board.loop.call_later(LINGER_S, self._transport.abort)

    def pause_writing(self) -> None:
        """More than `unsent_bytes` wait for the peer to read; TLS's own words too."""
        self._cut_off()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        log.debug("%s is gone: %s", self, exc or "closed")
        self._ended = True
        self._unread = None
        self._out.clear()
        self._board.sockets -= 1
        self._board.dismiss(self)
        with self._board.outbox.event():
            self._leave(given_up=not (exc is None or isinstance(exc, PEERS_END)))

    # Reading

    def _acknowledge(self) -> None:
        """At once: gear's client keeps Nagle's algorithm on, and would hold back its next packet
        until the ACK. The kernel forgets this option, so it is set each time."""
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    def _take_turn(self) -> None:
        """Handle some of what has been read; the rest when others have had their turn."""
        if self._unread is None or self._ended:
            return
        self._handle_some(self._unread)
        if self._unread is None:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()
            self._board.loop.call_soon(self._take_turn)

    def _handle_some(self, unread: "Iterator[Packet | bytes]") -> None:
        end = monotonic() + TURN_S
        with self._board.outbox.event():
            try:
                for item in unread:
                    self._handle(item)
                    # A listing is a turn: it may be long, and goes out before the next is made.
                    if isinstance(item, bytes) or monotonic() >= end:
                        break
                else:
                    self._unread = None
            except Breach as breach:
                self.expel(breach)
            except Exception:
                log.exception("a defect of ours, met by %s: its connection is closed", self)
                self.close()
        if self._ended:
            self._unread = None

    def _handle(self, item: Packet | bytes) -> None:
        peer, board = self._peer, self._board
        if peer is None:
            return
        if isinstance(item, bytes):
            log.debug("%s says %r", self, item)
            self.write(board.commands.answer(peer, item))
            return
        board.metrics.received[item.kind if item.kind < KINDS else 0] += 1
        if log.isEnabledFor(logging.DEBUG):
            log.debug("%s sends %s %r", self, kind_name(item.kind), item.data)
        try:
            board.requests.handle(peer, item)
        except Breach:
            raise
        except Refusal as refusal:
            self._refuse(refusal)

    def _refuse(self, refusal: Refusal) -> None:
        self._board.metrics.refusals[refusal.code] += 1
        # One line for each connection: whoever asks in a loop must not fill the disk.
        log.log(logging.DEBUG if self._refused else logging.WARNING,
                "refused %s: %s", self, refusal)  # fmt: skip
        self._refused = True
        self.write(_spelled(refusal))

    # Writing

    def write(self, data: bytes) -> None:
        """Whole packets or lines. Does nothing once the connection has ended."""
        if self._ended:
            return
        if data[:1] == b"\0":
            self._board.metrics.sent[data[7]] += 1
        if self._unflushed > self._board.limits.unsent_bytes:
            self._cut_off()
            return
        if not self._out:
            self._board.outbox.add(self)
        self._out.append(data)
        self._unflushed += len(data)

    def flush(self) -> None:
        """See outbox.Flushable."""
        if not self._out:
            return
        data = b"".join(self._out)
        self._out.clear()
        self._unflushed = 0
        self._transport.write(data)

    def _cut_off(self) -> None:
        """The peer does not read. What calls this may be in the middle of something, such as
        writing to all of a job's submitters: nobody leaves the exchange before that is done."""
        if self._ended:
            return
        self._ended = True
        self._out.clear()
        self._board.metrics.refusals["SLOW_READER"] += 1
        most = self._board.limits.unsent_bytes
        log.warning("%s does not read: more than %d bytes unsent, cut off", self, most)
        self._board.loop.call_soon(self.abort)

    # Ending

    def _turn_away(self, breach: Breach) -> None:
        """Say why it never was in."""
        self._board.complaints.warn(self._address, "turned %s away: %s", self, breach)
        self._end(breach)

    def expel(self, breach: Breach) -> None:
        """Say why, and end it."""
        if not self._ended:
            log.warning("ended the connection of %s: %s", self, breach)
            self._end(breach)

    def _end(self, breach: Breach) -> None:
        self._board.metrics.refusals[breach.code] += 1
        with self._board.outbox.event():
            self.write(_spelled(breach))
            self._close()

    def close(self) -> None:
        """End it after what is still to be written."""
        if not self._ended:
            with self._board.outbox.event():
                self._close()

    def _close(self) -> None:
        """Shut down our side and read to the end: a close with something unread is a reset, which
        takes what we sent last with it."""
        self._leave(given_up=True)
        self.flush()
        self._ended = True
        self._board.loop.call_later(LINGER_S, self._transport.abort)
        if not self._transport.can_write_eof():
            self._transport.close()
            return
        try:
            self._transport.write_eof()
        except OSError:
            self._transport.abort()  # it has reset the connection
        self._transport.resume_reading()

    def abort(self) -> None:
        """End it at once; what is still to be written is lost."""
        self._ended = True
        self._out.clear()
        self._transport.abort()
        with self._board.outbox.event():
            self._leave(given_up=True)

    def _leave(self, *, given_up: bool) -> None:
        """`given_up`: we end it, or our kernel does, and the peer may live."""
        if self._peer:
            peer, self._peer = self._peer, None
            self._board.exchange.leave(peer, given_up=given_up)


def _spelled(refusal: Refusal) -> bytes:
    if refusal.code == "TLS_ON_PLAIN_PORT":
        # It will not understand either; a person who looks at the bytes understands this.
        return f"ERR {refusal.code} {refusal.text.replace(' ', '+')}\n".encode()
    return response(Kind.ERROR, refusal.code.encode(), refusal.text.encode())
