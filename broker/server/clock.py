"""Time as the exchange is given it; an asyncio event loop is such a clock."""

from collections.abc import Callable
from typing import Protocol


class Timer(Protocol):
    """A call that is due."""

    def cancel(self) -> None:
        """Never mind."""


class Clock(Protocol):
    """Monotonic."""

    def time(self) -> float:
        """Seconds from some moment."""

    def call_later(self, delay: float, callback: Callable[..., object], *args: object) -> Timer:
        """Call `callback(*args)` after `delay` seconds."""
