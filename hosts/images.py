"""Base images by name: checked copies of an admin's files, of which one each is current.

    images/<name>/<SHA-256>.<format>    a copy, never changed
    images/<name>/current               a symbolic link to the one that new disks are made on

A copy gets its name, and then the link, only once it has passed: an `add` that fails changes
nothing. Disks are made on the copy itself, so that an older one stays good for what is on it.
"""

import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from hosts.drivers.base import DiskInfo
from schemas.errors import DiskError, ImageError
from schemas.names import IMAGE_LINK, IMAGE_PATTERN

_INCOMING = ".incoming"
_DIGEST = re.compile(r"[0-9a-f]{64}")
_GIB = 1 << 30

MIN_DIGEST = 4
"""Characters of a digest that a person must give."""

Trial = Callable[[Path, DiskInfo], None]
"""Tries an image out; raises TestenvError if it is no good."""


class ImageTool(Protocol):
    """What is needed of the disk driver. Raises DiskError."""

    def copy(self, source: Path, target: Path) -> None:
        """`target` holds the same, byte for byte, sharing or sparing what the file system can."""

    def check_whole(self, image: Path) -> DiskInfo:
        """`image` is sound qcow2 or raw, and stands alone: nothing it is backed by."""

    def inspect(self, path: Path) -> DiskInfo | None:
        """The disk at `path`; None if there is none."""


@dataclass(frozen=True)
class Image:
    """One copy. `size`: bytes that it takes on the disk; `virtual_size`: as a guest sees it.

    `used_by`: the files that are backed by it.
    """

    name: str
    digest: str
    format: str
    path: Path
    size: int
    virtual_size: int
    added: datetime
    current: bool
    used_by: tuple[str, ...] = ()


class ImageStore:
    """The images in `directory`; the files in `disks` may be backed by them."""

    def __init__(
        self, directory: Path, disks: Path, tool: ImageTool, *, min_free_gib: float = 0
    ) -> None:
        self._directory = directory
        self._disks = disks
        self._tool = tool
        self._min_free_gib = min_free_gib

    def add(self, name: str, source: Path, trial: Trial | None = None) -> Image:
        """Make a copy of `source` the current image `name`, if it is good.

        Raises ImageError, DiskError, and what `trial` raises; nothing is changed then.
        """
        if not re.fullmatch(IMAGE_PATTERN, name):
            raise ImageError(name, "is no name", remedy="lower case letters, digits, _ - only")
        folder = self._directory / name
        incoming = folder / f"{_INCOMING}-{os.getpid()}"
        with self._alone():
            self._reckon(source)
            folder.mkdir(exist_ok=True)
            try:
                self._tool.copy(source, incoming)
                info = self._tool.check_whole(incoming)
                digest = _digest(incoming)
                if trial:
                    trial(incoming, info)
                path = folder / f"{digest}.{info.format}"
                incoming.chmod(0o644)
                incoming.replace(path)
                _point(folder, path)
            except OSError as exc:
                raise ImageError(str(source), f"cannot be copied: {exc.strerror}") from exc
            finally:
                incoming.unlink(missing_ok=True)
                _remove_if_empty(folder)
            return self._image(name, path, self._users())

    def images(self) -> tuple[Image, ...]:
        """All copies, the oldest of each name first. Raises DiskError."""
        users = self._users()
        found = [
            self._image(folder.name, path, users)
            for folder in sorted(self._directory.glob("*/"))
            for path in folder.iterdir()
            if not path.is_symlink() and _DIGEST.fullmatch(path.stem)
        ]
        return tuple(sorted(found, key=lambda image: (image.name, image.added)))

    def use(self, name: str, digest: str) -> Image:
        """Make the copy whose digest begins so the current one. Raises ImageError."""
        with self._alone():
            image = self._find(name, digest)
            _point(image.path.parent, image.path)
            return self._find(name, image.digest)

    def remove(self, name: str, digest: str) -> Image:
        """Remove a copy that is neither current nor used. Raises ImageError."""
        with self._alone():
            image = self._find(name, digest)
            if image.current:
                remedy = "testenv-host image use another first"
                raise ImageError(_named(image), "is the current one", remedy=remedy)
            if image.used_by:
                raise ImageError(
                    _named(image),
                    f"{', '.join(image.used_by)} made on it",
                    remedy="they are made on the current one at the next turnover",
                )
            image.path.unlink()
            return image

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One change at a time; what one that was killed has left is swept."""
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            lock = (self._directory / ".lock").open("a")
        except OSError as exc:
            raise ImageError(str(self._directory), f"cannot be written: {exc.strerror}") from exc
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as exc:
                why = "another command is at work there"
                raise ImageError(str(self._directory), why, remedy="wait for its end") from exc
            for stale in self._directory.glob(f"*/{_INCOMING}*"):
                stale.unlink()
            yield

    def _reckon(self, source: Path) -> None:
        try:
            state = source.stat()
        except OSError as exc:
            raise ImageError(str(source), exc.strerror or str(exc)) from exc
        if not source.is_file():
            raise ImageError(str(source), "is no regular file")
        needed = min(state.st_size, state.st_blocks * 512)
        free = shutil.disk_usage(self._directory).free - int(self._min_free_gib * _GIB)
        if needed > free:
            spare = f"{max(0, free) / _GIB:.1f} GiB above the {self._min_free_gib:g}"
            raise ImageError(
                str(source),
                f"takes {needed / _GIB:.1f} GiB; {self._directory} has {spare} that stay free",
                remedy="remove old images: testenv-host image list",
            )

    def _find(self, name: str, digest: str) -> Image:
        if len(digest) < MIN_DIGEST:
            remedy = f"give at least {MIN_DIGEST} characters"
            raise ImageError(f"{name} {digest}", "says too little", remedy=remedy)
        found = [
            image
            for image in self.images()
            if image.name == name and image.digest.startswith(digest)
        ]
        if len(found) != 1:
            why = "fits several" if found else "is not there"
            raise ImageError(f"{name} {digest}", why, remedy="see testenv-host image list")
        return found[0]

    def _image(self, name: str, path: Path, users: dict[Path, list[str]]) -> Image:
        info = self._tool.inspect(path)
        if info is None:
            raise DiskError(str(path), "there is no such file")
        state = path.stat()
        return Image(
            name=name,
            digest=path.stem,
            format=path.suffix.removeprefix("."),
            path=path,
            size=state.st_blocks * 512,
            virtual_size=info.size,
            added=datetime.fromtimestamp(state.st_mtime, UTC),
            current=_is_current(path),
            used_by=tuple(sorted(users.get(path, ()))),
        )

    def _users(self) -> dict[Path, list[str]]:
        users: dict[Path, list[str]] = {}
        for disk in self._disks.glob("*.qcow2"):
            info = self._tool.inspect(disk)
            if info and info.backing:
                users.setdefault(info.backing, []).append(disk.name)
        return users


def _point(folder: Path, path: Path) -> None:
    """The link is the one or the other at any moment."""
    draft = folder / f"{_INCOMING}-{IMAGE_LINK}"
    draft.unlink(missing_ok=True)
    draft.symlink_to(path.name)
    draft.replace(folder / IMAGE_LINK)


def _is_current(path: Path) -> bool:
    link = path.with_name(IMAGE_LINK)
    return link.is_symlink() and link.readlink() == Path(path.name)


def _remove_if_empty(folder: Path) -> None:
    if not any(folder.iterdir()):
        folder.rmdir()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _named(image: Image) -> str:
    return f"{image.name} {image.digest[:12]}"
