"""Whether new leases are admitted: what operators, health and shutdown turn."""

import asyncio
from enum import StrEnum


class Bar(StrEnum):
    """Who keeps an environment from being offered; each for a reason of its own."""

    CORDON = "cordoned"
    """An operator."""
    SICK = "withdrawn"
    """The host is not well."""
    CHECK = "being checked"
    """It is due to be compared with its plan."""
    REBUILD = "rebuild"
    """An operator has it made anew."""
    HOLD = "hold"
    """It is to be kept for a person."""


class Shutdown:
    """The agent's end, for all its environments.

    `stopped` is set once and for all, when the agent shuts down; `leaving` after that, when
    nothing is left that it must wait for: leases that outlive it are let go.
    """

    def __init__(self) -> None:
        self.stopped = asyncio.Event()
        self.leaving = asyncio.Event()
        self._admissions: list[Admission] = []

    def admission(self) -> "Admission":
        """One environment's, which ends with this."""
        self._admissions.append(admission := Admission(self))
        return admission

    def stop(self) -> None:
        """Admit no new lease ever again."""
        self.stopped.set()
        for admission in self._admissions:
            admission.settle()

    def leave(self) -> None:
        """Let go of the leases that outlive the agent; after `stop`."""
        self.leaving.set()


class Admission:
    """One environment's. Made by Shutdown.

    `closed` is set while no lease may begin, and is what a waiting worker withdraws on.
    """

    def __init__(self, shutdown: Shutdown) -> None:
        self.shutdown = shutdown
        self.closed = asyncio.Event()
        self._open = asyncio.Event()
        self._bars: dict[Bar, str] = {}
        self.settle()

    def reason(self, bar: Bar) -> str | None:
        """Why `bar` is there, which may be empty; None if it is not."""
        return self._bars.get(bar)

    def close(self, bar: Bar, reason: str) -> None:
        """Admit no new lease until it is opened; one that runs goes on."""
        self._bars[bar] = reason
        self.settle()

    def open(self, bar: Bar) -> None:
        """Take that bar away; others stay."""
        self._bars.pop(bar, None)
        self.settle()

    async def admitted(self) -> bool:
        """Wait while it is closed, however long; False once the agent stops, or the environment
        is to be rebuilt, or held."""
        await self._open.wait()
        return not self._is_over

    def settle(self) -> None:
        """Make the events what they should be."""
        _set(self.closed, bool(self._bars) or self._is_over)
        _set(self._open, not self._bars or self._is_over)

    @property
    def _is_over(self) -> bool:
        """Whether there is nothing to wait for."""
        stopped = self.shutdown.stopped.is_set()
        return stopped or Bar.REBUILD in self._bars or Bar.HOLD in self._bars


def _set(event: asyncio.Event, on: bool) -> None:
    if on:
        event.set()
    else:
        event.clear()
