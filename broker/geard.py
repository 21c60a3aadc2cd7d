"""Our Gearman broker: gear's Server, with the cheap cures for what a lock service runs into."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import gear

from broker.connection import describe
from broker.endpoint import Endpoint
from schemas.errors import BrokerStartError

BACKLOG = 1024
"""gear listens with a backlog of 1: of many clients at once most were never answered."""

KEEPALIVE_IDLE_S = 30
KEEPALIVE_INTERVAL_S = 10
KEEPALIVE_COUNT = 3
"""A peer whose machine vanished is dropped after a minute: a waiting client must not be served."""


class _Server(gear.Server):  # type: ignore[misc]  # gear has no type hints
    """Adds the answer to the one request of ours that gear logs as an error."""

    # gear sets it after it has begun to serve, and drops connections that are quicker.
    statsd = None

    def handleOptionReq(self, packet: gear.Packet) -> None:  # noqa: N802 - gear's name
        # gear passes exceptions on in any case, which is all that the option asks for.
        reply = gear.Packet(gear.constants.RES, gear.constants.OPTION_RES, packet.data)
        packet.connection.sendPacket(reply)


@contextmanager
def running_server(listen: Endpoint) -> Iterator[Endpoint]:
    """A broker that serves, in threads of its own, while the context lasts.

    Yields where it really listens: port 0 picks one. Raises BrokerStartError.
    """
    _try_to_listen(listen)
    server = _Server(
        port=listen.port,
        host=listen.host,
        keepalive=True,
        tcp_keepidle=KEEPALIVE_IDLE_S,
        tcp_keepintvl=KEEPALIVE_INTERVAL_S,
        tcp_keepcnt=KEEPALIVE_COUNT,
    )
    try:
        # Linux: accepted sockets inherit TCP_NODELAY, and listen() may be called again.
        server.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        server.socket.listen(BACKLOG)
        yield Endpoint(*server.socket.getsockname()[:2])
    finally:
        server.shutdown()


def _try_to_listen(listen: Endpoint) -> None:
    """Find out why we can't, if we can't: gear only says that it could not."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            listen.host, listen.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(address)
            trial.listen()
    except OSError as exc:
        raise BrokerStartError(str(listen), describe(exc)) from exc
