"""The command, as coroutines: start it under its guard, signal it, and see it dead."""

import asyncio
import errno
import os
from collections.abc import Callable, Mapping
from typing import TypeVar

from schemas.errors import CommandError, CommandNotExecutable, CommandNotFound, LeaseLost
from testenv.errors import GuardLost
from testenv.guard import PACKET_BYTES, Event, Guard, Happening, LastWill

T = TypeVar("T")

_START_S = 10.0

GUARD_SLACK_S = 3.0
"""Longer than a guard takes to be done with its work, once SIGKILL is due."""


class Command:
    """One command under `guard`; to be made inside the event loop.

    `kill_after_s` is what the guard was forked with. `on_suspended` is called when the command
    was stopped from the terminal.
    """

    def __init__(
        self, name: str, guard: Guard, kill_after_s: float, on_suspended: Callable[[], None]
    ) -> None:
        self._name = name
        self._guard = guard
        self._kill_after_s = kill_after_s
        self._on_suspended = on_suspended
        self._loop = asyncio.get_running_loop()
        self._started: asyncio.Future[Event | None] = self._loop.create_future()
        self.exited: asyncio.Future[int | None] = self._loop.create_future()
        """waitpid(2)'s status, or None when the guard was lost."""
        self._gone: asyncio.Future[int | None] = self._loop.create_future()
        self._strangers: frozenset[int] | None = None
        """Children that the command has not left to us."""
        self._started_at = 0.0
        self.may_have_run = False
        """Whether an environment may have been touched."""
        self.was_due = False
        """Whether its guard has ended it, because we have not."""
        self.ran_s: float | None = None
        """From its start to its end, once that is known."""
        guard.socket.setblocking(False)
        self._loop.add_reader(guard.socket, self._hear)

    def prepare(self) -> None:
        """Get ready to do the guard's duty if it is killed: 2 ms, unless done before."""
        from testenv.reaper import become_subreaper, children

        if self._strangers is None:
            # Of the shell that became this process with `exec`; and our guard, and lifeline.
            self._strangers = frozenset(children())
            become_subreaper()

    async def start(self, environment: Mapping[str, str], workspace: str, will: LastWill) -> None:
        """Run it with `environment` added; the guard removes `workspace` if we are killed.

        Raises CommandNotFound, CommandNotExecutable, GuardLost.
        """
        self._started_at = self._loop.time()
        self._guard.run(environment, workspace, will)
        self.may_have_run = True
        self.prepare()  # while the guard starts the command
        started = await self._answer(self._started, _START_S)
        if started is None:
            raise GuardLost
        if started.what is Happening.NOT_STARTED:
            self.may_have_run = False
            if started.value == errno.ETIME:
                raise LeaseLost("it was over before the command could be started")
            raise _exec_error(self._name, started.value)

    def signal(self, number: int) -> None:
        """Pass a signal on to the command's process group."""
        self._guard.signal(number)

    def resume(self) -> None:
        """Continue it after a stop, in the foreground if we are there."""
        self._guard.resume()

    async def end(self, kill_after_s: float | None = None) -> int:
        """See everything of the command dead: SIGTERM, and SIGKILL `kill_after_s` later.

        None stands for what the guard was forked with. Returns how many processes nothing could
        end (another user's). Raises GuardLost.
        """
        if not self.exited.done():
            self._guard.stop(kill_after_s)
        grace_s = self._kill_after_s if kill_after_s is None else kill_after_s
        unkillable = await self._answer(self._gone, grace_s + GUARD_SLACK_S)
        if unkillable is None:
            raise GuardLost
        return unkillable

    async def _answer(self, answer: asyncio.Future[T], timeout: float) -> T:
        """What the guard says. One that says nothing for `timeout` seconds is killed."""
        try:
            async with asyncio.timeout(timeout):
                return await asyncio.shield(answer)
        except TimeoutError:
            self._guard.kill()
            return await asyncio.shield(answer)  # settled as soon as it is dead

    def _hear(self) -> None:
        try:
            packet = self._guard.socket.recv(PACKET_BYTES)
        except BlockingIOError:
            return
        except ConnectionError:
            packet = b""
        if packet:
            self._handle(Event.parse(packet))
        else:
            self._loop.remove_reader(self._guard.socket)
            if not self._gone.done():
                self._guard_died()

    def _handle(self, event: Event) -> None:
        match event.what:
            case Happening.STARTED | Happening.NOT_STARTED:
                self._started.set_result(event)
            case Happening.SUSPENDED:
                self._on_suspended()
            case Happening.DUE:
                self.was_due = True
            case Happening.EXITED | Happening.ENDED:
                self.ran_s = self._loop.time() - self._started_at
                self.exited.set_result(event.value)
                if event.what is Happening.ENDED:
                    self._gone.set_result(0)
            case Happening.GONE:
                if not self.exited.done():
                    self.exited.set_result(None)
                self._gone.set_result(event.value)

    def _guard_died(self) -> None:
        """Do the guard's duty: the kernel has made its orphans ours, and killed the command.

        Blocks the loop for the moment that this takes; there is nothing else to wait for.
        """
        from testenv.reaper import kill_children

        self._guard.wait()
        kill_children(spare=self._strangers or frozenset())
        for future in (self._started, self.exited, self._gone):
            if not future.done():
                future.set_result(None)


def _exec_error(name: str, number: int) -> CommandError:
    """The error for exec's errno, as POSIX shells tell 126 from 127."""
    if number in (errno.ENOENT, errno.ENOTDIR):
        return CommandNotFound(name)
    why = os.strerror(number)
    if number == errno.ENOEXEC:
        why += " (a script without #! line?)"
    return CommandNotExecutable(name, why)
