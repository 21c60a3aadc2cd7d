"""A guest that runs for a moment, to see what it says on its serial console."""

import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import libvirt
from lxml import etree
from lxml.builder import E

from hosts.drivers.domain_xml import ARCH, MACHINE
from hosts.drivers.libvirt_connection import SILENCE_S, LibvirtConnection, one_line
from schemas.errors import DiskError, DomainError

_POLL_S = 0.02


@dataclass(frozen=True)
class Trial:
    """`prepare` makes the guest's disk, of `disk_format`, at the path that it is given. Who runs it
    listens for `lasting_s` at most."""

    name: str
    domain_type: str
    memory_mib: int
    disk_format: str
    prepare: Callable[[Path], None]
    lasting_s: float


class Console:
    """What the guest has said."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> bytes:
        """All of it, so far."""
        try:
            return self._path.read_bytes()
        except FileNotFoundError:
            return b""

    def heard(self, marker: bytes, within_s: float) -> float | None:
        """Seconds until it had said `marker`, which is waited for; None if it did not in time."""
        started = time.monotonic()
        while (waited := time.monotonic() - started) < within_s:
            if marker in self.read():
                return waited
            time.sleep(_POLL_S)
        return None


@contextmanager
def running_guest(connection: LibvirtConnection, scratch: Path, trial: Trial) -> Iterator[Console]:
    """The guest of `trial`, which runs as long as the context lasts.

    Its disk is in a directory of its own in `scratch`, which QEMU's user must be able to enter.
    libvirt removes the guest should this process die. Raises DiskError; DomainError where the guest
    does not start, or libvirt cannot be reached.
    """
    # Should the connection close for its silence, the guest goes.
    libvirt_connection = connection.open(silence_s=SILENCE_S + math.ceil(trial.lasting_s))
    directory = _make_directory(scratch, trial)
    try:
        guest = _start(libvirt_connection, directory, trial)
        try:
            yield Console(directory / "serial")
        finally:
            _destroy(guest)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _make_directory(scratch: Path, trial: Trial) -> Path:
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        directory = Path(tempfile.mkdtemp(prefix=f"{trial.name}-", dir=scratch))
        directory.chmod(0o755)
    except OSError as exc:
        raise _unwritable(trial, scratch, exc) from exc
    try:
        trial.prepare(directory / "disk")
    except OSError as exc:
        shutil.rmtree(directory, ignore_errors=True)
        raise _unwritable(trial, scratch, exc) from exc
    except DiskError:
        shutil.rmtree(directory, ignore_errors=True)
        raise
    return directory


def _unwritable(trial: Trial, scratch: Path, exc: OSError) -> DiskError:
    return DiskError(str(scratch), f"the disk of {trial.name} cannot be written: {exc.strerror}")


def _start(
    libvirt_connection: libvirt.virConnect, directory: Path, trial: Trial
) -> libvirt.virDomain:
    try:
        return libvirt_connection.createXML(
            _xml(directory, trial), libvirt.VIR_DOMAIN_START_AUTODESTROY
        )
    except libvirt.libvirtError as exc:
        raise DomainError(trial.name, f"does not start: {one_line(exc)}") from exc


def _xml(directory: Path, trial: Trial) -> str:
    root = E.domain(
        E.name(f"testenv-{directory.name}"),
        E.memory(str(trial.memory_mib), unit="MiB"),
        E.os(E.type("hvm", arch=ARCH, machine=MACHINE), E.boot(dev="hd")),
        E.devices(
            E.disk(
                E.driver(name="qemu", type=trial.disk_format),
                E.source(file=str(directory / "disk")),
                E.target(dev="vda", bus="virtio"),
                type="file",
                device="disk",
            ),
            E.serial(E.source(path=str(directory / "serial")), E.target(port="0"), type="file"),
            E.memballoon(model="none"),
        ),
        type=trial.domain_type,
    )
    return etree.tostring(root, encoding="unicode")


def _destroy(guest: libvirt.virDomain) -> None:
    try:
        guest.destroy()
    except libvirt.libvirtError as exc:
        if exc.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
            raise DomainError(guest.name(), f"not removed: {one_line(exc)}") from exc
