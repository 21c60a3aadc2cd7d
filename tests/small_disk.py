"""A disk that is soon full."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_BOUND_S = 15.0


@contextmanager
def small_disk(folder: Path, kib: int) -> Iterator[Path]:
    """A file system of `kib` KiB below `folder`, as long as the context lasts.

    Where this user may not mount one, the test is skipped; in CI it fails.
    """
    disk = folder / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(disk)]
    done = subprocess.run(mount, check=False, timeout=_BOUND_S, capture_output=True, text=True)
    if done.returncode:
        if "CI" in os.environ:
            pytest.fail(f"CI must be able to mount a small disk: {done.stderr}")
        pytest.skip(f"a small disk can't be mounted: {done.stderr}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True, timeout=_BOUND_S)


def fill(folder: Path) -> Path:
    """Use up the space in `folder`; what to remove to have it back."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (65536, 4096):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue  # it is full, for pieces of this size
    return filler
