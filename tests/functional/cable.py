"""A network that is cut: a TCP relay whose connections a test can end."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Thread

from broker.endpoint import Endpoint
from tests.functional.brokers import HOST

BOUND_S = 10.0


class Cable:
    """A TCP relay to `target` whose connections can be cut. Made by `cable_to`."""

    def __init__(self, target: Endpoint) -> None:
        self._target = target
        self._listener = socket.create_server((HOST, 0))
        self._ends: list[socket.socket] = []
        self._is_silent = False
        self._swallowed: list[socket.socket] = []
        self._server = Thread(target=self._serve, daemon=True)
        self._server.start()

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(HOST, self._listener.getsockname()[1])

    def cut(self) -> None:
        """End every connection that there is, for both sides; new ones are relayed."""
        for end in self._ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._ends.clear()

    def swallow(self) -> None:
        """Cut, and accept from then on without a word."""
        self._is_silent = True
        self.cut()

    def close(self) -> None:
        """Cut, and relay no more."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._server.join(timeout=BOUND_S)
        self._listener.close()
        self.cut()
        for end in self._swallowed:
            end.close()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                if self._is_silent:
                    self._swallowed.append(near)
                    continue
                Thread(target=self._relay, args=(near,), daemon=True).start()

    def _relay(self, near: socket.socket) -> None:
        with near, socket.create_connection((self._target.host, self._target.port)) as far:
            self._ends += (near, far)
            back = Thread(target=_pump, args=(far, near), daemon=True)
            back.start()
            _pump(near, far)
            back.join(timeout=BOUND_S)


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while chunk := source.recv(65536):
            sink.sendall(chunk)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


@contextmanager
def cable_to(target: Endpoint) -> Iterator[Cable]:
    """A cable that is closed with the context."""
    cable = Cable(target)
    try:
        yield cable
    finally:
        cable.close()
