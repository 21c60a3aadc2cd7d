"""A pseudo-terminal with a program on it, for tests that need a person's side of one."""

import asyncio
import fcntl
import os
import pty
import re
import struct
import termios
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

BOUND_S = 15.0
"""No wait of a test is longer; what is awaited takes milliseconds."""

CTRL_C = "\x03"
CTRL_Z = "\x1a"


class Screen:
    """Types, and reads what is shown. `shows` goes on where the last match ended."""

    def __init__(self, fd: int, process: asyncio.subprocess.Process) -> None:
        self._fd = fd
        self.process = process
        self.text = ""
        self._seen = 0
        self._changed = asyncio.Event()
        asyncio.get_running_loop().add_reader(fd, self._read)

    def _read(self) -> None:
        try:
            chunk = os.read(self._fd, 65536)
        except OSError:  # EIO: the last program has closed its end
            chunk = b""
        if not chunk:
            asyncio.get_running_loop().remove_reader(self._fd)
        self.text += chunk.decode(errors="replace")
        self._changed.set()

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    async def shows(self, pattern: str) -> re.Match[str]:
        """Wait until what came after the last match has a match."""
        try:
            async with asyncio.timeout(BOUND_S):
                while not (match := re.compile(pattern).search(self.text, self._seen)):
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError as exc:
            raise AssertionError(f"no {pattern!r} in {self.text[self._seen :]!r}") from exc
        self._seen = match.end()
        return match

    def resize(self, rows: int, columns: int) -> None:
        """As a window manager does: the foreground process group gets SIGWINCH."""
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    async def runs_in_foreground(self, group: int, program: str = "sh") -> None:
        """Wait until process group `group` has the terminal, and its leader runs `program`.

        (A dash that is just forking may lose a SIGINT.)
        """
        async with asyncio.timeout(BOUND_S):
            while os.tcgetpgrp(self._fd) != group or not is_running(group, program):
                await asyncio.sleep(0.005)

    @property
    def is_cooked(self) -> bool:
        """Whether lines are edited and echoed, as a shell's user expects."""
        modes = termios.tcgetattr(self._fd)[3]
        return bool(modes & termios.ICANON) and bool(modes & termios.ECHO)

    async def exits(self) -> int:
        async with asyncio.timeout(BOUND_S):
            return await self.process.wait()


def is_stopped(pid: int) -> bool:
    """Whether a process is stopped (ps(1) shows T)."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def parent_of(pid: int) -> int:
    """The pid of a process's parent."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def is_running(pid: int, program: str) -> bool:
    """Whether the process runs `program`, and is not stopped."""
    return Path(f"/proc/{pid}/comm").read_text() == f"{program}\n" and not is_stopped(pid)


@asynccontextmanager
async def screen(*command: str, env: dict[str, str] | None = None) -> AsyncIterator[Screen]:
    """`command` as the leader of a session whose controlling terminal is a new one."""
    ours, theirs = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        "setsid",
        "--ctty",
        *command,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "dumb", "PS1": "prompt> ", **(env or {})},
    )
    os.close(theirs)
    shown = Screen(ours, process)
    try:
        yield shown
    finally:
        asyncio.get_running_loop().remove_reader(ours)
        os.close(ours)  # hangs up: the kernel sends SIGHUP to the session
        with suppress(ProcessLookupError):
            process.kill()
        await shown.exits()
