"""What ends a command whose client and guard are both killed in the same instant.

A shell that waits on a pipe which only those two hold open. It does for a command's process
group what a parent-death signal would do for the command alone; that can be set after a fork
only, and forking a Python takes 3 ms from every hand-over, where vfork (subprocess's choice for
a child that needs no preparing) takes 0.5.
"""

import os
import select
import signal
from contextlib import suppress

_SHELL = "/bin/sh"
_SCRIPT = 'read group && { read done || kill -9 "-$group"; }'
"""The builtin kill of dash, bash and busybox takes a group so. procps' does not, silently."""

_END_S = 2.0
"""More than a shell needs to kill a group and exit."""


class Lifeline:
    """The client makes it, forks the guard, and starts it; the guard tells it of the command."""

    def __init__(self) -> None:
        self._theirs, self._ours = os.pipe()
        self._pid = 0

    def start(self) -> None:
        """Start the shell; without one there is a safeguard less. `dismiss` it at last."""
        with suppress(OSError):
            self._pid = os.posix_spawn(
                _SHELL,
                ("sh", "-c", _SCRIPT),
                {},
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, self._theirs, 0),
                    (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                    (os.POSIX_SPAWN_DUP2, 1, 2),
                ],
                setpgroup=0,  # what is meant for the client's group must not reach it
            )
        os.close(self._theirs)

    def hold(self, group: int) -> None:
        """From now on, who kills us both kills `group`."""
        self._tell(f"{group}\n")

    def release(self) -> None:
        """The group's leader has ended, and its number may soon be another's."""
        self._tell("done\n")

    def dismiss(self) -> None:
        """Once the guard is gone: wait for its end, and so for the command's if it was not told."""
        os.close(self._ours)
        if not self._pid:
            return
        watch = select.poll()
        with os.fdopen(os.pidfd_open(self._pid)) as fd:
            watch.register(fd, select.POLLIN)
            if not watch.poll(_END_S * 1000):
                os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)

    def _tell(self, line: str) -> None:
        os.write(self._ours, line.encode())
