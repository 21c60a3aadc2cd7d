"""Gathers what is written while one event is handled, so that each peer gets it in one piece."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol


class Flushable(Protocol):
    """A connection with something to write."""

    def flush(self) -> None:
        """Hand it to the kernel. May make other connections dirty."""


class Outbox:
    """`call_soon` is the event loop's: for what is written outside an event, as timers do."""

    def __init__(self, call_soon: Callable[[Callable[[], None]], object]) -> None:
        self._call_soon = call_soon
        self._dirty: list[Flushable] = []
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
            self.flush()
            self._in_event = False

    def flush(self) -> None:
        """Write all."""
        while self._dirty:
            dirty, self._dirty = self._dirty, []
            for connection in dirty:
                connection.flush()
