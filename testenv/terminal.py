"""Job control: lend the terminal to the command's process group, and take it back.

Called by the guard, which ignores SIGTTOU and may therefore set the foreground group from the
background (tcsetpgrp(3)).
"""

import os
import termios
from contextlib import suppress
from typing import Any, Self


class Terminal:
    """The controlling terminal, as the job of process group `job` (the client's) sees it."""

    def __init__(self, fd: int, job: int) -> None:
        self._fd = fd
        self._job = job
        self._modes: list[Any] | None = None
        self._lent = False

    @classmethod
    def of_job(cls, job: int) -> Self | None:
        """The controlling terminal of this process, or None if it has none."""
        try:
            return cls(os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC), job)
        except OSError:
            return None

    @property
    def is_stdin(self) -> bool:
        """Whether a command would read from it: then it gets the terminal at its start."""
        return os.isatty(0) and self.is_ours

    @property
    def is_ours(self) -> bool:
        """Whether the client's job is in the foreground."""
        with suppress(OSError):  # the terminal was hung up
            return os.tcgetpgrp(self._fd) == self._job
        return False

    def lend(self) -> None:
        """Remember that the command has the terminal from now on, and in which modes it got it."""
        with suppress(termios.error):
            self._modes = termios.tcgetattr(self._fd)
        self._lent = True

    def give_to(self, group: int) -> None:
        """Bring `group` to the foreground; to be called after `lend`, maybe in a child."""
        with suppress(OSError):
            os.tcsetpgrp(self._fd, group)

    def take_back_from(self, group: int) -> None:
        """Bring the client's job to the foreground again, if `group` has it."""
        with suppress(OSError):
            if os.tcgetpgrp(self._fd) == group:
                os.tcsetpgrp(self._fd, self._job)
        self._lent = False

    def take_back(self, *, restore: bool) -> None:
        """The same after the command's end, whichever of its groups has the terminal.

        `restore` undoes what a killed command had no time to undo, such as raw mode.
        """
        if not self._lent:
            return
        with suppress(OSError, termios.error):
            os.tcsetpgrp(self._fd, self._job)
            if restore and self._modes is not None:
                termios.tcsetattr(self._fd, termios.TCSADRAIN, self._modes)
        self._lent = False
