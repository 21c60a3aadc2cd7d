"""Gathers what is written while one event is handled, so that each peer gets it in one piece."""

import logging
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

log = logging.getLogger(__name__)


class Flushable(Protocol):
    """A connection with something to write."""

    def flush(self) -> None:
        """Hand it to the kernel. May make other connections dirty."""

    def abort(self) -> None:
        """End the connection at once."""


class Outbox:
    """`call_soon` is the event loop's: for what is written outside an event, as timers do."""

    def __init__(self, call_soon: Callable[[Callable[[], None]], object]) -> None:
        self._call_soon = call_soon
        self._dirty: deque[Flushable] = deque()
        self._in_event = False

    def add(self, connection: Flushable) -> None:
        """`connection` has something to write now, and had nothing before."""
        if not (self._in_event or self._dirty):
            self._call_soon(self.flush)
        self._dirty.append(connection)

    @contextmanager
    def event(self) -> Iterator[None]:
        """Everything is flushed when the (outermost) context is left."""
        if self._in_event:
            yield
            return
        self._in_event = True
        try:
            yield
        finally:
            try:
                self.flush()
            finally:
                self._in_event = False

    def flush(self) -> None:
        """Write all. Whom nothing can be written to is cut off; the others get theirs."""
        while self._dirty:
            connection = self._dirty.popleft()
            try:
                connection.flush()
            except Exception:
                log.exception("could not write to %s: it is cut off", connection)
                connection.abort()
