"""Whether KVM really runs guests here, proved by running one.

/dev/kvm may exist and open and still be of no use (nested hypervisors that hang in real mode), so
the proof is a guest that says a byte. Without KVM, QEMU's TCG runs every guest, slowly.
"""

import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import libvirt
from lxml import etree
from lxml.builder import E

from hosts.drivers.domain_xml import ARCH, MACHINE
from hosts.drivers.libvirt_connection import LibvirtConnection, one_line
from schemas.errors import DomainError

KVM_DEVICE = Path("/dev/kvm")
PROOF_TIMEOUT_S = 3.0
"""Far more than a guest needs: under TCG, slower by far than KVM, the byte is there in 0.2 s."""

_POLL_S = 0.02
_SAID = b"K"
_CODE = bytes.fromhex(
    "fa"  #      cli
    "baf803"  #  mov dx, 0x3f8    the first serial port
    "b04b"  #    mov al, 'K'
    "ee"  #      out dx, al
    "f4"  #      hlt
    "ebfd"  #    jmp back to hlt
)
BOOT_SECTOR = _CODE.ljust(510, b"\0") + b"\x55\xaa"
"""16-bit code that says one byte on the serial port and halts for good."""
BOOT_DISK = BOOT_SECTOR.ljust(1 << 20, b"\0")
"""SeaBIOS does not boot a disk of less than a cylinder (504 KiB)."""


@dataclass(frozen=True)
class KvmProof:
    """Whether a KVM guest ran, and in words what was seen."""

    works: bool
    detail: str

    @property
    def domain_type(self) -> Literal["kvm", "qemu"]:
        """libvirt's type for domains on a host with this answer."""
        return "kvm" if self.works else "qemu"


def prove_kvm(
    connection: LibvirtConnection, scratch: Path, *, domain_type: str = "kvm"
) -> KvmProof:
    """Run a tiny guest, for PROOF_TIMEOUT_S at most, and tell whether it lived.

    Its disk goes into a directory of its own in `scratch`, which QEMU's user must be able to
    enter. The guest is gone when this returns, and libvirt removes it should this process die.
    Raises DomainError when libvirt itself cannot be reached.
    """
    libvirt_connection = connection.get()
    directory = _make_directory(scratch)
    try:
        guest = libvirt_connection.createXML(
            _guest(directory, domain_type), libvirt.VIR_DOMAIN_START_AUTODESTROY
        )
    except libvirt.libvirtError as exc:
        return KvmProof(False, f"a KVM guest does not start: {one_line(exc)}")
    else:
        try:
            return _listen(directory / "serial")
        finally:
            _destroy(guest)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _make_directory(scratch: Path) -> Path:
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        directory = Path(tempfile.mkdtemp(prefix="kvm-proof-", dir=scratch))
        directory.chmod(0o755)
        (directory / "disk").write_bytes(BOOT_DISK)
    except OSError as exc:
        raise DomainError("kvm-proof", f"cannot write its disk: {exc}") from exc
    return directory


def _guest(directory: Path, domain_type: str) -> str:
    root = E.domain(
        E.name(f"testenv-{directory.name}"),
        E.memory("32", unit="MiB"),
        E.os(E.type("hvm", arch=ARCH, machine=MACHINE), E.boot(dev="hd")),
        E.devices(
            E.disk(
                E.driver(name="qemu", type="raw"),
                E.source(file=str(directory / "disk")),
                E.target(dev="vda", bus="virtio"),
                type="file",
                device="disk",
            ),
            E.serial(E.source(path=str(directory / "serial")), E.target(port="0"), type="file"),
            E.memballoon(model="none"),
        ),
        type=domain_type,
    )
    return etree.tostring(root, encoding="unicode")


def _listen(serial: Path) -> KvmProof:
    started = time.monotonic()
    while (waited := time.monotonic() - started) < PROOF_TIMEOUT_S:
        if serial.exists() and _SAID in serial.read_bytes():
            return KvmProof(True, f"a KVM guest ran its boot sector within {waited:.1f} s")
        time.sleep(_POLL_S)
    return KvmProof(False, f"a KVM guest hung: it said nothing within {PROOF_TIMEOUT_S:g} s")


def _destroy(guest: libvirt.virDomain) -> None:
    try:
        guest.destroy()
    except libvirt.libvirtError as exc:
        if exc.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
            raise DomainError(guest.name(), f"not removed: {one_line(exc)}") from exc
