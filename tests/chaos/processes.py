"""Processes that are killed, stopped, and started again; and what becomes of orphans."""

import asyncio
import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from testenv import reaper

_END_S = 10.0
_SCAN_S = 0.5


class Brood:
    """All children of this process: those that were started here, and orphans it has adopted.

    asyncio waits for the former; the latter, what killed clients and guards leave behind, are
    waited for here.
    """

    def __init__(self) -> None:
        reaper.become_subreaper()
        self._started: set[int] = set()

    async def start(
        self, *argv: str, log: int, env: Mapping[str, str] | None = None
    ) -> asyncio.subprocess.Process:
        """A process that dies with this one, and writes to `log`, a descriptor."""
        process = await asyncio.create_subprocess_exec(
            *("setpriv", "--pdeathsig", "KILL", "--", *argv),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=env,
        )
        self._started.add(process.pid)
        return process

    def ended(self, process: asyncio.subprocess.Process) -> None:
        """It was waited for: its pid may be another's."""
        self._started.discard(process.pid)

    def orphans(self) -> set[int]:
        """Adopted children that were not waited for, dead or alive."""
        return set(reaper.children()) - self._started

    async def reap(self) -> None:
        """Wait for dead orphans, until cancelled."""
        before: set[int] = set()
        while True:
            now = self.orphans()
            # Twice, for a child that was forked a moment ago is not in `_started` yet.
            for pid in now & before:
                _bury(pid)
            before = now
            await asyncio.sleep(_SCAN_S)


def _bury(pid: int) -> None:
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


class Daemon:
    """A broker or an agent. What all its processes write goes to `log`."""

    def __init__(self, brood: Brood, name: str, argv: Sequence[str], log: Path) -> None:
        self.name = name
        self.log = log
        self._brood = brood
        self._argv = argv
        self._process: asyncio.subprocess.Process | None = None

    @property
    def crashed(self) -> bool:
        """Whether it has ended by itself."""
        return self._process is not None and self._process.returncode is not None

    async def start(self) -> None:
        """Start it, again or for the first time."""
        with self.log.open("ab") as log:
            self._process = await self._brood.start(*self._argv, log=log.fileno())

    async def kill(self) -> None:
        """SIGKILL, and wait."""
        await self.end(signal.SIGKILL)

    async def end(self, number: int) -> bool:
        """Send a signal that ends it, and wait; whether it has ended in time."""
        process, self._process = self._process, None
        if process is None:
            return True
        self._signal(process, number)
        try:
            async with asyncio.timeout(_END_S):
                await process.wait()
        except TimeoutError:
            self._signal(process, signal.SIGKILL)
            await process.wait()
            return False
        finally:
            self._brood.ended(process)
        return True

    def stop(self) -> None:
        """SIGSTOP."""
        if self._process:
            self._signal(self._process, signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        if self._process:
            self._signal(self._process, signal.SIGCONT)

    def _signal(self, process: asyncio.subprocess.Process, number: int) -> None:
        with suppress(ProcessLookupError):
            process.send_signal(number)
