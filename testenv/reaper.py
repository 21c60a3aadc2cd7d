"""Find and end every descendant of this process, whatever sessions and groups it has fled to.

A child subreaper (prctl(2), Linux 3.4) adopts the orphans among its descendants. So its direct
children are all that it ever has to kill: when they die, their children become its own. A direct
child that has not been waited for is at least a zombie, so its pid can't have been reused.
"""

import ctypes
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36

UNKILLABLE_AFTER_S = 2.0
"""A process that outlives SIGKILL this long is another user's (sudo), or stuck in the kernel."""

_RESCAN_S = 0.002
"""How long killed children get to die, before their own children are looked for."""

_libc = ctypes.CDLL(None, use_errno=True)


def become_subreaper() -> None:
    """Adopt every descendant whose parent dies, instead of init."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def set_process_name(name: str) -> None:
    """What ps and pkill show for this process; 15 bytes at most."""
    _prctl(_PR_SET_NAME, name.encode())


def children() -> tuple[int, ...]:
    """The pids of this process's direct children, zombies too."""
    try:
        lists = [
            task.joinpath("children").read_text() for task in Path("/proc/self/task").iterdir()
        ]
    except FileNotFoundError:  # a kernel without CONFIG_PROC_CHILDREN
        return _children_by_scan()
    return tuple(int(pid) for text in lists for pid in text.split())


def signal_child(pid: int, number: int) -> None:
    """Signal a child that has not been waited for; one of another user is left alone."""
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def signal_group(group: int, number: int) -> None:
    """Signal a process group whose leader has not been waited for."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def reap_children() -> None:
    """Wait for the children that are dead, without blocking."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def kill_children(
    reap: Callable[[], None] = reap_children, spare: frozenset[int] = frozenset()
) -> int:
    """SIGKILL all descendants of this subreaper and wait until none is left.

    `reap` waits for dead children without blocking. `spare`: children that are somebody else's.
    Returns how many did not die within UNKILLABLE_AFTER_S, usually none; where they can't be
    counted, for want of a /proc, at least 1.
    """
    deadline = time.monotonic() + UNKILLABLE_AFTER_S
    before: frozenset[int] | None = None
    while has_children():
        found = frozenset(children())
        left = found - spare
        if not left and found and found == before:  # one look alone may have missed some
            return 0
        before = found
        if time.monotonic() > deadline:
            return max(1, len(left))
        for pid in left:
            signal_child(pid, signal.SIGKILL)
        time.sleep(_RESCAN_S)
        reap()
    return 0


def has_children() -> bool:
    """Whether any child is left, zombies included (`children` may miss some in a race)."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _children_by_scan() -> tuple[int, ...]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            # pid (name) state ppid ...: the name may contain anything (proc(5)).
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            if parent == os.getpid():
                found.append(int(stat.parent.name))
    return tuple(found)


def _prctl(option: int, value: int | bytes) -> None:
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"prctl({option}): {os.strerror(error)}")
