"""libvirt, each call bounded in time, and each on a connection of its own.

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

SILENCE_S = 16
"""A call that libvirt has not answered by then fails. Powering off a QEMU that does not listen
takes 15 s (libvirt 9.0)."""

OPEN_TIMEOUT_S = 10.0
_OPENINGS = 4
"""At a time: each may hang as long as a stopped daemon does."""
_RESTART = "is libvirtd running? Try: virsh -c {uri} list"

_event_loop_lock = threading.Lock()
_event_loop: threading.Thread | None = None


class LibvirtConnection:
    """Connections to `uri`: one for each use, opened for it and closed after it. Thread-safe.

    Two threads on one connection can crash the process, and so can a keepalive message that is
    sent during a call (CVE-2024-4418, in libvirt before 10.4: Debian 12 has 9.0). So nobody shares
    one, and no such message is sent: a connection is closed when it has been silent for too long.
    Opening one takes 5 ms.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._turns = threading.Semaphore(_OPENINGS)

    def open(self, *, silence_s: int = SILENCE_S) -> libvirt.virConnect:
        """A connection for one thread, which is closed with the last reference to it, or when
        libvirt has said nothing on it for `silence_s`. Raises HypervisorError when there is none
        in OPEN_TIMEOUT_S."""
        _run_event_loop()
        late = self._unreachable(f"libvirt does not answer within {OPEN_TIMEOUT_S:g} s")
        if not self._turns.acquire(timeout=OPEN_TIMEOUT_S):
            raise late
        opening: Future[libvirt.virConnect] = Future()
        # virConnectOpen has no timeout of its own, so it waits in a thread that may hang.
        threading.Thread(
            target=self._open, args=(opening, silence_s), name="libvirt-open", daemon=True
        ).start()
        try:
            return opening.result(OPEN_TIMEOUT_S)
        except FutureTimeoutError as exc:
            raise late from exc
        except libvirt.libvirtError as exc:
            raise self._unreachable(one_line(exc)) from exc

    @contextmanager
    def naming(self, name: str, doing: str) -> Iterator[libvirt.virConnect]:
        """A connection; what libvirt refuses inside is a DomainError about domain `name`."""
        connection = self.open()
        try:
            yield connection
        except libvirt.libvirtError as exc:
            why = f"{doing} failed: {one_line(exc)}"
            remedy = "" if connection.isAlive() else _RESTART.format(uri=self.uri)
            raise DomainError(name, why, remedy=remedy) from exc

    def _open(self, opening: "Future[libvirt.virConnect]", silence_s: int) -> None:
        try:
            connection = libvirt.open(self.uri)
            connection.setKeepAlive(silence_s, 0)
        except libvirt.libvirtError as exc:
            opening.set_exception(exc)
        else:
            opening.set_result(connection)
        finally:
            self._turns.release()

    def _unreachable(self, why: str) -> HypervisorError:
        return HypervisorError(self.uri, why, remedy=_RESTART.format(uri=self.uri))


def one_line(error: libvirt.libvirtError) -> str:
    """What libvirt says, which may quote several lines of QEMU's output, as one line."""
    return " ".join((error.get_error_message() or str(error)).split())


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
