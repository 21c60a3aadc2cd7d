"""Running this host's tools: no shell, bounded, and what they complain of as one line."""

import os
import pwd
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ACCESS_TIMEOUT_S = 15.0


class CommandFailed(Exception):
    """A tool is missing, took too long, or said no; the message says which."""


@dataclass(frozen=True)
class Credentials:
    """The user and group that something runs as."""

    uid: int
    gid: int

    @property
    def groups(self) -> list[int]:
        """All groups of the user, as a login would have them; the own one if nobody knows it."""
        try:
            name = pwd.getpwuid(self.uid).pw_name
        except KeyError:
            return [self.gid]
        return os.getgrouplist(name, self.gid)


def run(
    argv: Sequence[str | Path],
    *,
    timeout_s: float,
    text: str = "",
    user: Credentials | None = None,
) -> str:
    """What `argv` prints on stdout. Raises CommandFailed.

    `text` is its stdin. It runs as `user` where this process may choose (as root), else as we do.
    """
    # Only root can become somebody else.
    other = user if os.geteuid() == 0 else None
    program = str(argv[0])
    try:
        done = subprocess.run(
            [str(word) for word in argv],
            input=text,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            env=os.environ | {"LC_ALL": "C.UTF-8"},
            user=other.uid if other else None,
            group=other.gid if other else None,
            extra_groups=other.groups if other else None,
        )
    except OSError as exc:
        raise CommandFailed(f"cannot run {program}: {exc.strerror}") from exc
    except subprocess.TimeoutExpired as exc:
        raise CommandFailed(f"{program} was not done within {timeout_s:g} s") from exc
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"exit status {done.returncode}"
        raise CommandFailed(said if program in said else f"{program}: {said}")
    return done.stdout


def may(user: Credentials, access: str, path: Path) -> bool:
    """Whether `user` may `access` (r, w or x) `path`, through every directory above it."""
    try:
        run(["test", f"-{access}", path], timeout_s=ACCESS_TIMEOUT_S, user=user)
    except CommandFailed:
        return False
    return True
