"""Disks of domains, through `qemu-img` (7.2 and later) and coreutils' `cp`."""

import json
from pathlib import Path
from typing import Any

from hosts.drivers.base import DiskInfo
from hosts.drivers.command import CommandFailed, Credentials, may, run
from schemas.errors import DiskError
from schemas.names import IMAGE_LINK
from schemas.plan import Disk

FORMATS = ("qcow2", "raw")
QEMU_IMG_TIMEOUT_S = 600.0
"""Copying a whole image is the only step that takes long."""
LOOK_TIMEOUT_S = 15.0

_GIB = 1 << 30
_SECTOR = 512
_CREATE = ("qemu-img", "create", "-q", "-f")


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
        fresh = fresh_path(disk.path)
        try:
            disk.path.parent.mkdir(parents=True, exist_ok=True)
            fresh.unlink(missing_ok=True)
            _create(disk, fresh)
            fresh.replace(disk.path)
        except OSError as exc:
            raise DiskError(str(disk.path), f"cannot be made: {exc.strerror}") from exc
        finally:
            fresh.unlink(missing_ok=True)

    def check_whole(self, image: Path) -> DiskInfo:
        """`image`, which nobody has looked at before, is sound, and needs no other file."""
        [top] = _info(image, chain=False)
        specific = top.get("format-specific", {}).get("data", {})
        if top["format"] not in FORMATS:
            why = f"it is {top['format']}, not {' or '.join(FORMATS)}"
            raise DiskError(str(image), why, remedy="convert it with qemu-img convert")
        if top.get("backing-filename") or specific.get("data-file"):
            remedy = "make one file of it: qemu-img convert"
            raise DiskError(str(image), "it needs another file", remedy=remedy)
        size, end = image.stat().st_size, 0
        if top["format"] == "qcow2":
            report = _run(image, "qemu-img", "check", "-f", "qcow2", "--output=json", image)
            # A cluster beyond the file's end reads as zeros, and is no error to qemu-img (7.2).
            end = json.loads(report)["image-end-offset"]
        if not top["virtual-size"] or end > size or (size % _SECTOR and not end):
            raise DiskError(str(image), "it is no whole disk: it was cut short, or is none")
        return DiskInfo(format=top["format"], size=top["virtual-size"])

    def copy(self, source: Path, target: Path) -> None:
        """`target` holds the same, byte for byte, and shares or spares what it can."""
        _copy(target, source, "raw", target)

    def inspect(self, path: Path) -> DiskInfo | None:
        """The disk at `path`, of which its own file is read, and no other."""
        if not path.exists():
            return None
        [top] = _info(path, chain=False)
        backing = top.get("full-backing-filename") or top.get("backing-filename")
        return DiskInfo(
            format=top["format"],
            size=top["virtual-size"],
            backing=Path(backing) if backing else None,
            backing_format=top.get("backing-filename-format", ""),
        )

    def remove(self, path: Path) -> None:
        """There is no file at `path`."""
        try:
            path.unlink(missing_ok=True)
            fresh_path(path).unlink(missing_ok=True)
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
            _run(disk.path, *_CREATE, image_format, path, str(size))
        case Disk(base=Path() as base, format=image_format):
            base = _copy_of(base)
            top = _info(base)[0]
            size = max(size, top["virtual-size"])
            if image_format == "raw":
                _copy(disk.path, base, top["format"], path)
                with path.open("ab") as file:
                    file.truncate(size)
            else:
                make_overlay(base, top["format"], path, size)


def make_overlay(base: Path, base_format: str, path: Path, size: int | None = None) -> None:
    """A qcow2 disk at `path` that holds what `base` does; as large, without a `size` in bytes."""
    backing = ("-b", base, "-F", base_format)
    _run(path, *_CREATE, "qcow2", *backing, path, *((str(size),) if size else ()))


def _copy_of(base: Path) -> Path:
    """A named image's link may point elsewhere tomorrow; a disk stays on what it was made on."""
    is_link = base.name == IMAGE_LINK and base.is_symlink()
    return base.parent / base.readlink() if is_link else base


def fresh_path(path: Path) -> Path:
    """Where the file is made that is to be the disk at `path`."""
    return path.with_name(f".{path.name}.fresh")


def _copy(disk: Path, base: Path, base_format: str, path: Path) -> None:
    """`path`, which is to be `disk`, is a raw copy of `base` that shares or spares what it can."""
    if base_format == "raw":
        _run(disk, "cp", "--reflink=auto", "--sparse=always", base, path)
    else:
        _run(disk, "qemu-img", "convert", "-q", "-f", base_format, "-O", "raw", base, path)


def _info(
    image: Path, user: Credentials | None = None, *, chain: bool = True
) -> list[dict[str, Any]]:
    """What qemu-img knows of `image` and, with `chain`, of each layer below it, top first.

    --force-share: a look does no harm to an image that a domain has open.
    """
    words = ["qemu-img", "info", "--force-share", "--output=json"]
    words += ["--backing-chain"] if chain else []
    known = json.loads(_run(image, *words, image, user=user, timeout_s=LOOK_TIMEOUT_S))
    layers: list[dict[str, Any]] = known if chain else [known]
    return layers


def _run(
    path: Path,
    *argv: str | Path,
    user: Credentials | None = None,
    timeout_s: float = QEMU_IMG_TIMEOUT_S,
) -> str:
    try:
        return run(argv, timeout_s=timeout_s, user=user)
    except CommandFailed as exc:
        raise DiskError(str(path), str(exc)) from exc
