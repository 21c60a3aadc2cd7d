"""Consoles of earlier leases: what a domain said on its serial port while somebody held it."""

import logging
import shutil
from pathlib import Path

from schemas.errors import DiskError
from schemas.plan import Domain, Environment

log = logging.getLogger(__name__)

KEPT = "kept"
"""Directory below the consoles': `kept/<environment number>/<lease id>/<domain>.log`."""


class Consoles:
    """The console logs of a host's environments, below `directory`; those of the last `keep`
    leases of each environment are kept.

    virtlogd, which writes them, bounds each: it moves a long one aside as `<domain>.log.0`, that
    one as `.1` and so on, and removes the oldest.
    """

    def __init__(self, directory: Path, keep: int) -> None:
        self._directory = directory
        self._keep = keep

    def keep(self, env: Environment, lease: str) -> None:
        """Put what `env`'s domains, which are off, have said aside as `lease`'s; drop the oldest.

        What is kept of `lease` already stays: another try of its turnover may have booted the
        seed since. Never fails a fence: what cannot be kept is logged.
        """
        shelf = self._directory / KEPT / str(env.number)
        try:
            (shelf / lease).mkdir(mode=0o700, parents=True, exist_ok=True)
            for domain in env.domains:
                if not any((shelf / lease).glob(f"{domain.name}.log*")):
                    for path in log_files(domain.console):
                        path.rename(shelf / lease / path.name)
            for old in _newest_first(shelf)[self._keep :]:
                shutil.rmtree(old)
        except OSError as exc:
            log.warning("%s: consoles of lease %s are not kept: %s", env.id, lease, exc)

    def clear(self, domain: Domain) -> None:
        """`domain`, which is off, begins with an empty log. Raises DiskError."""
        try:
            for path in log_files(domain.console):
                path.unlink(missing_ok=True)
        except OSError as exc:
            raise DiskError(str(domain.console), f"cannot be removed: {exc.strerror}") from exc

    def remove(self) -> None:
        """Nothing is kept of anybody."""
        shutil.rmtree(self._directory / KEPT, ignore_errors=True)


def log_files(console: Path) -> list[Path]:
    """The log at `console` and what was moved aside of it, the oldest first."""
    aside = console.parent.glob(f"{console.name}.[0-9]*")
    numbered = sorted(aside, key=lambda path: int(path.suffix[1:]), reverse=True)
    return [*numbered, *([console] if console.exists() else [])]


def kept_leases(directory: Path, number: int) -> tuple[str, ...]:
    """The leases of environment `number` whose consoles are kept, the newest first."""
    return tuple(path.name for path in _newest_first(directory / KEPT / str(number)))


def _newest_first(shelf: Path) -> list[Path]:
    # A directory's time is that of the last file moved into it: of its lease's end.
    if not shelf.is_dir():
        return []
    return sorted(shelf.iterdir(), key=lambda path: path.stat().st_mtime_ns, reverse=True)
