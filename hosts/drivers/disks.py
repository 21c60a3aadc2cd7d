"""Disks of domains, through `qemu-img` (7.2 and later)."""

import json
from pathlib import Path
from typing import Any

from hosts.drivers.command import CommandFailed, Credentials, may, run
from schemas.errors import DiskError
from schemas.plan import Disk

FORMATS = ("qcow2", "raw")
QEMU_IMG_TIMEOUT_S = 600.0
"""Copying a whole image is the only step that takes long."""

_GIB = 1 << 30


class QemuImg:
    """Disks in files that `qemu`, the user that QEMU runs as, can reach. Thread-safe.

    Files stay root's: libvirt gives a disk to QEMU's user while its domain runs.
    """

    def __init__(self, qemu: Credentials) -> None:
        self._qemu = qemu

    def check_image(self, image: Path) -> None:
        """`image`, with all that it is backed by, is qcow2 or raw and readable for QEMU's user."""
        self.check_readable(image)
        for layer in _info(image, user=self._qemu):
            if layer["format"] not in FORMATS:
                why = f"{layer['filename']} is {layer['format']}, not {' or '.join(FORMATS)}"
                raise DiskError(str(image), why, remedy="convert it with qemu-img convert")
            if not layer["virtual-size"]:
                raise DiskError(str(image), f"{layer['filename']} is empty")

    def check_readable(self, path: Path) -> None:
        """`path` is a file that QEMU's user can read, through all directories above it."""
        if not path.is_file():
            raise DiskError(str(path), "there is no such file")
        if not may(self._qemu, "r", path):
            raise self._unreachable(path, "read")

    def check_directory(self, directory: Path) -> None:
        """QEMU's user can enter `directory`."""
        if not may(self._qemu, "x", directory):
            raise self._unreachable(directory, "enter")

    def make_fresh(self, disk: Disk) -> None:
        """`disk` is as new; an overlay is at least as large as its base.

        The old file is there until the new one takes its place at once.
        """
        fresh = _fresh_path(disk.path)
        try:
            disk.path.parent.mkdir(parents=True, exist_ok=True)
            fresh.unlink(missing_ok=True)
            _create(disk, fresh)
            fresh.replace(disk.path)
        except OSError as exc:
            raise DiskError(str(disk.path), f"cannot be made: {exc.strerror}") from exc
        finally:
            fresh.unlink(missing_ok=True)

    def remove(self, path: Path) -> None:
        """There is no file at `path`."""
        try:
            path.unlink(missing_ok=True)
            _fresh_path(path).unlink(missing_ok=True)
        except OSError as exc:
            raise DiskError(str(path), f"cannot be removed: {exc.strerror}") from exc

    def _unreachable(self, path: Path, verb: str) -> DiskError:
        return DiskError(
            str(path),
            f"QEMU's user (uid {self._qemu.uid}) cannot {verb} it",
            remedy=f"look at the modes along the path: namei -l {path}",
        )


def _create(disk: Disk, path: Path) -> None:
    size = disk.size_gib * _GIB
    match disk:
        case Disk(base=None, format="raw"):
            with path.open("wb") as file:
                file.truncate(size)
        case Disk(base=None, format=image_format):
            _qemu_img(disk.path, "create", "-q", "-f", image_format, path, str(size))
        case Disk(base=Path() as base, format=image_format):
            top = _info(base)[0]
            size = max(size, top["virtual-size"])
            if image_format == "raw":
                _qemu_img(disk.path, "convert", "-q", "-f", top["format"], "-O", "raw", base, path)
                with path.open("ab") as file:
                    file.truncate(size)
            else:
                backing = ("-b", base, "-F", top["format"])
                _qemu_img(disk.path, "create", "-q", "-f", "qcow2", *backing, path, str(size))


def _fresh_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.fresh")


def _info(image: Path, user: Credentials | None = None) -> list[dict[str, Any]]:
    """What qemu-img knows of `image` and of each layer below it, top first.

    --force-share: a look does no harm to an image that a domain has open.
    """
    words = ("info", "--force-share", "--backing-chain", "--output=json", image)
    layers: list[dict[str, Any]] = json.loads(_qemu_img(image, *words, user=user))
    return layers


def _qemu_img(path: Path, *arguments: str | Path, user: Credentials | None = None) -> str:
    try:
        return run(["qemu-img", *arguments], timeout_s=QEMU_IMG_TIMEOUT_S, user=user)
    except CommandFailed as exc:
        raise DiskError(str(path), str(exc)) from exc
