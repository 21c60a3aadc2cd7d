"""Where a command finds its data file: a private directory that lasts as long as the lease."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from schemas.names import random_id

DATAFILE_SUFFIX = ".json"
"""Readers (os-apply-config among them) go by the name's end."""


class Workspace(NamedTuple):
    """`directory` (0700) and the data file (0600), which is in it unless it is to be kept."""

    directory: Path
    datafile: Path

    @property
    def environment(self) -> Mapping[str, str]:
        """What the command's environment gets."""
        return {"TE_DATADIR": str(self.directory), "TE_DATAFILE": str(self.datafile)}


@contextmanager
def workspace(name: str, text: bytes, keep: Path | None = None) -> Iterator[Workspace]:
    """A workspace whose data file is `text`, byte for byte; removed at the end.

    `name` (a lease or job id, made safe) is part of the file's name. `keep` is where the data
    file goes instead, to stay. Raises OSError.
    """
    directory = Path(os.environ.get("TMPDIR") or "/tmp") / f"testenv-{random_id()}"  # noqa: S108 - made by mkdir, which fails if it exists
    directory = directory.absolute()
    path = keep.absolute() if keep else directory / datafile_name(name)
    directory.mkdir(mode=0o700)
    try:
        if keep:
            replace_private(path, text)
        else:
            _write_private(path, text)
        yield Workspace(directory, path)
    finally:
        _remove(directory, path)


def _remove(directory: Path, datafile: Path) -> None:
    """Remove a workspace with all that the command has left there."""
    try:
        if datafile.parent == directory:
            datafile.unlink()
        directory.rmdir()
    except OSError:
        import shutil  # costs more than all the rest, and most commands leave nothing

        shutil.rmtree(directory, ignore_errors=True)


def datafile_name(name: str) -> str:
    """`te-<name>.json`, whatever is in `name`."""
    safe = (c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in name[:100])
    return f"te-{''.join(safe)}{DATAFILE_SUFFIX}"


def replace_private(path: Path, text: bytes) -> None:
    """Replace `path` by a new file of mode 0600: an old one may be open to others."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    _write_private(draft, text)
    draft.replace(path)


def _write_private(path: Path, text: bytes) -> None:
    """Make `path`, which must not exist, with mode 0600."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(text)
