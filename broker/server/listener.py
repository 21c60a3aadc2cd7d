"""Accepting connections: none waits for another's handshake, and a shortage of descriptors passes.

asyncio's own server (3.11) logs, and plans a retry, 1,024 times for each accept() that finds no
descriptor; and it tells nobody why a handshake failed.
"""

import asyncio
import contextlib
import logging
import socket
import ssl
from collections import Counter

from broker.connection import describe
from broker.endpoint import Endpoint
from broker.protocol import Kind
from broker.server.switchboard import Switchboard
from broker.server.tls import alert_of, handshake_failure
from broker.server.transport import LINGER_S, ServerConnection
from broker.wire import response
from schemas.broker import LimitsSection
from schemas.errors import BrokerStartError

log = logging.getLogger(__name__)

BACKLOG = 1024

ACCEPTS_PER_TURN = 64
"""Before the connections that are there have a turn."""

SPARE = 64
"""Connections over the limit that are told so before they are closed; beyond them there is no
time for words."""

RETRY_S = 1.0
"""After accept() failed for want of descriptors or memory."""

READ_BYTES = 64 * 1024

_HANDSHAKE = b"\x16"
_PLAIN_ON_TLS = response(Kind.ERROR, b"PLAIN_ON_TLS_PORT", b"This port speaks TLS only")


def listening_socket(listen: Endpoint, option: str) -> socket.socket:
    """A socket that listens at `listen`, port 0 being any free one.

    Raises BrokerStartError, naming the `option` that `listen` is of.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            listen.host, listen.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind, protocol)
    except OSError as exc:
        raise BrokerStartError(str(listen), describe(exc), option=option) from exc
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError as exc:
        sock.close()
        raise BrokerStartError(str(listen), describe(exc), option=option) from exc
    return sock


def set_options(sock: socket.socket, limits: LimitsSection) -> None:
    """On a listening socket: on Linux what it accepts inherits all of them."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    idle_s, interval_s = limits.keepalive_idle_s, limits.keepalive_interval_s
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle_s)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, interval_s)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, limits.keepalive_count)
    # TCP does not probe while something it sent is not acknowledged, but retries for 15 minutes.
    vanished_s = idle_s + interval_s * limits.keepalive_count
    vanished_ms = min(vanished_s * 1000, 2**31 - 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, vanished_ms)


class Listener:
    """Turns what `sock` accepts into connections of `board`, with TLS if that has `trust`."""

    def __init__(self, sock: socket.socket, board: Switchboard) -> None:
        self._socket = sock
        self._board = board
        self._loop = board.loop
        self._opening: dict[asyncio.Task[None], str] = {}
        """Connections that are not there yet, with their addresses; the oldest first."""
        self._retry: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to accept."""
        self._retry = None
        self._loop.add_reader(self._socket, self._accept)

    async def close(self) -> None:
        """Accept no more, and give up the handshakes that are under way."""
        if self._retry:
            self._retry.cancel()
        self._loop.remove_reader(self._socket)
        self._socket.close()
        tasks = list(self._opening)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _accept(self) -> None:
        for _ in range(ACCEPTS_PER_TURN):
            try:
                sock, (address, *_) = self._socket.accept()
            except BlockingIOError:
                return
            except ConnectionAbortedError:
                continue
            except OSError as exc:
                log.warning("no connections accepted for %g s: %s", RETRY_S, describe(exc))
                self._loop.remove_reader(self._socket)
                self._retry = self._loop.call_later(RETRY_S, self.start)
                return
            sock.setblocking(False)
            self._greet(sock, address)

    def _greet(self, sock: socket.socket, address: str) -> None:
        tls = self._board.trust is not None
        taken = self._board.sockets + (0 if tls else len(self._opening))
        if taken >= self._board.limits.connections + SPARE:
            why = "far too many connections"
        elif tls and not self._has_room(address):
            why = "too many TLS handshakes at once"
        else:
            self._begin(sock, address)
            return
        self._board.complaints.warn(address, "closed a connection from %s: %s", address, why)
        sock.close()

    def _has_room(self, address: str) -> bool:
        """Whether one more handshake may begin. If there are too many, whoever has most gives up
        its oldest: strangers from a few addresses can't keep out those from others."""
        if len(self._opening) < self._board.limits.handshakes:
            return True
        counts = Counter(self._opening.values())
        (greedy, most), *_ = counts.most_common(1)
        if most <= counts[address] + 1:
            return False
        oldest = next(task for task, one in self._opening.items() if one == greedy)
        del self._opening[oldest]
        oldest.cancel()
        self._failed(greedy, "others have their turn")
        return True

    def _begin(self, sock: socket.socket, address: str) -> None:
        tls = self._board.trust is not None
        open_it = self._shake_hands(sock, address) if tls else self._open(sock, address)
        task = self._loop.create_task(open_it)
        self._opening[task] = address
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._opening.pop(task, None)
        if not task.cancelled() and (error := task.exception()):
            level = logging.DEBUG if isinstance(error, OSError) else logging.ERROR
            log.log(level, "a connection that was not even opened", exc_info=error)

    async def _open(self, sock: socket.socket, address: str) -> None:
        trust = self._board.trust
        await self._loop.connect_accepted_socket(
            lambda: ServerConnection(self._board, address),
            sock,
            ssl=trust and trust.context,
            ssl_handshake_timeout=self._board.limits.handshake_s if trust else None,
            ssl_shutdown_timeout=LINGER_S if trust else None,
        )

    async def _shake_hands(self, sock: socket.socket, address: str) -> None:
        try:
            async with asyncio.timeout(self._board.limits.handshake_s):
                if await self._speaks_tls(sock, address):
                    with sock.dup() as spare:
                        await self._open_or_alert(sock, spare, address)
        except TimeoutError:
            self._failed(address, "it takes too long")
        except OSError as exc:
            self._failed(address, handshake_failure(exc))
            sock.close()

    async def _open_or_alert(self, sock: socket.socket, spare: socket.socket, address: str) -> None:
        """asyncio closes `sock` at once when a handshake fails; `spare` is left to say why."""
        try:
            await self._open(sock, address)
        except ssl.SSLError as exc:
            self._failed(address, handshake_failure(exc))
            await self._say_last(spare, alert_of(exc))

    async def _speaks_tls(self, sock: socket.socket, address: str) -> bool:
        """Wait for the peer's first byte. A socket that is not TLS's is answered and closed."""
        speaks = False
        try:
            await self._readable(sock)
            first = sock.recv(1, socket.MSG_PEEK)
            speaks = first == _HANDSHAKE
            if first and not speaks:
                self._board.metrics.refusals["PLAIN_ON_TLS_PORT"] += 1
                self._board.complaints.warn(
                    address, "%s speaks plain text to a TLS port: its connection is closed", address
                )
                await self._say_last(sock, _PLAIN_ON_TLS)
            return speaks
        finally:
            if not speaks:
                sock.close()

    async def _say_last(self, sock: socket.socket, words: bytes) -> None:
        """Send, and read to the end: a close with something unread is a reset, which may overtake
        what was sent."""
        with contextlib.suppress(OSError):  # the peer is gone, or takes too long
            async with asyncio.timeout(LINGER_S):
                sock.send(words)
                sock.shutdown(socket.SHUT_WR)
                await self._readable(sock)
                while sock.recv(READ_BYTES):
                    await self._readable(sock)

    async def _readable(self, sock: socket.socket) -> None:
        """Return when there is something to read, or the end."""
        event = asyncio.Event()
        self._loop.add_reader(sock, event.set)
        try:
            await event.wait()
        finally:
            self._loop.remove_reader(sock)

    def _failed(self, address: str, why: str) -> None:
        self._board.metrics.refusals["TLS_HANDSHAKE"] += 1
        self._board.complaints.warn(address, "no TLS handshake with %s: %s", address, why)
