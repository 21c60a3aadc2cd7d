"""One connection to a libvirt daemon that never blocks for ever and comes back by itself.

libvirt-python's rules behind it (https://libvirt.org/html/libvirt-libvirt-event.html): an event
loop is registered before anything is opened and runs for ever, and keepalive needs that loop.
"""

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import contextmanager

import libvirt

from schemas.errors import DomainError, HypervisorError

KEEPALIVE_INTERVAL_S = 3
KEEPALIVE_COUNT = 3
"""An answer is overdue after `interval * (count + 1)`: every call then fails, bounded by 12 s."""

OPEN_TIMEOUT_S = 10.0
_RESTART = "is libvirtd running? Try: virsh -c {uri} list"

_event_loop_lock = threading.Lock()
_event_loop: threading.Thread | None = None


class LibvirtConnection:
    """A connection to `uri` that is opened when needed and again after it died. Thread-safe."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._lock = threading.Lock()
        self._opening: Future[libvirt.virConnect] | None = None

    def get(self) -> libvirt.virConnect:
        """A live connection. Raises HypervisorError when there is none in OPEN_TIMEOUT_S."""
        opening = self._current()
        try:
            return opening.result(OPEN_TIMEOUT_S)
        except FutureTimeoutError as exc:
            why = f"libvirt does not answer within {OPEN_TIMEOUT_S:g} s"
            raise self._unreachable(why) from exc
        except libvirt.libvirtError as exc:
            raise self._unreachable(one_line(exc)) from exc

    @contextmanager
    def naming(self, name: str, doing: str) -> Iterator[libvirt.virConnect]:
        """A live connection; what libvirt refuses inside is a DomainError about domain `name`."""
        connection = self.get()
        try:
            yield connection
        except libvirt.libvirtError as exc:
            why = f"{doing} failed: {one_line(exc)}"
            remedy = "" if connection.isAlive() else _RESTART.format(uri=self.uri)
            raise DomainError(name, why, remedy=remedy) from exc

    def close(self) -> None:
        """Let go of the connection; a later `get` opens a new one."""
        with self._lock:
            opening, self._opening = self._opening, None
        if opening and opening.done() and not opening.exception():
            _close(opening.result())

    def _current(self) -> "Future[libvirt.virConnect]":
        """The open connection, or the attempt to open one: never two attempts at a time."""
        with self._lock:
            if self._opening is None or _is_over(self._opening):
                _run_event_loop()
                self._opening = Future()
                # virConnectOpen has no timeout of its own, so it waits in a thread that may hang
                # as long as a stopped daemon does.
                threading.Thread(
                    target=_open, args=(self.uri, self._opening), name="libvirt-open", daemon=True
                ).start()
            return self._opening

    def _unreachable(self, why: str) -> HypervisorError:
        return HypervisorError(self.uri, why, remedy=_RESTART.format(uri=self.uri))


def one_line(error: libvirt.libvirtError) -> str:
    """What libvirt says, which may quote several lines of QEMU's output, as one line."""
    return " ".join((error.get_error_message() or str(error)).split())


def _open(uri: str, opening: "Future[libvirt.virConnect]") -> None:
    try:
        connection = libvirt.open(uri)
        connection.setKeepAlive(KEEPALIVE_INTERVAL_S, KEEPALIVE_COUNT)
    except libvirt.libvirtError as exc:
        opening.set_exception(exc)
    else:
        opening.set_result(connection)


def _is_over(opening: "Future[libvirt.virConnect]") -> bool:
    """Whether an attempt has failed, or its connection has died since."""
    if not opening.done():
        return False
    if opening.exception():
        return True
    connection = opening.result()
    try:
        if connection.isAlive():
            return False
    except libvirt.libvirtError:
        return True
    _close(connection)
    return True


def _close(connection: libvirt.virConnect) -> None:
    try:
        connection.close()
    except libvirt.libvirtError:
        # Closed already, or the daemon has gone: either way nothing is held any more.
        return


def _run_event_loop() -> None:
    """Start this process's libvirt event loop, once."""
    global _event_loop  # noqa: PLW0603 - libvirt's event loop is one per process by its nature
    with _event_loop_lock:
        if _event_loop is None:
            # libvirt prints every error on stderr besides raising it.
            libvirt.registerErrorHandler(lambda _context, _error: None, None)
            libvirt.virEventRegisterDefaultImpl()
            _event_loop = threading.Thread(target=_serve_events, name="libvirt-events", daemon=True)
            _event_loop.start()


def _serve_events() -> None:
    while True:
        libvirt.virEventRunDefaultImpl()
