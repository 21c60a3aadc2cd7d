"""Where the client's signals go."""

import asyncio
import os
import signal
from typing import Self

from testenv.command import Command
from testenv.errors import Interrupted
from testenv.guard import RELAYED

_CANCELLING = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT})


class Signals:
    """Before the command runs they end the wait (cancel the current task), then they are its own.

    Afterwards they are ignored. What was ignored when the client started (nohup) stays ignored.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting = asyncio.current_task()
        self._handled: set[int] = set()
        self._command: Command | None = None
        self.interrupt: Interrupted | None = None
        """The signal that has ended the wait, if any."""
        self.has_cancelled = False
        """Whether the command was sent one with which people end a job."""

    def __enter__(self) -> Self:
        for number in RELAYED:
            if number != signal.SIGTSTP:
                self._handle(number)
        return self

    def __exit__(self, *_: object) -> None:
        for number in self._handled:
            self._loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)  # what is left to do is short, and is a report

    def relay_to(self, command: Command) -> None:
        """From now on all signals are `command`'s."""
        self._command = command
        self._handle(signal.SIGTSTP)

    def suspend(self) -> None:
        """Stop our own job, as the terminal has stopped the command; return when it goes on.

        In an orphaned process group the kernel stops nobody, and the command goes on at once.
        """
        if self._command:
            self._loop.remove_signal_handler(signal.SIGTSTP)
            os.killpg(os.getpgrp(), signal.SIGTSTP)
            self._handle(signal.SIGTSTP)
            self._command.resume()

    def _handle(self, number: int) -> None:
        if signal.getsignal(number) is not signal.SIG_IGN:
            self._handled.add(number)
            self._loop.add_signal_handler(number, self._received, number)

    def _received(self, number: int) -> None:
        if self._command:
            self.has_cancelled = self.has_cancelled or number in _CANCELLING
            self._command.signal(number)
        elif self.interrupt is None and self._waiting:
            self.interrupt = Interrupted(number)
            self._waiting.cancel()
