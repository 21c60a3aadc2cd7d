"""Whether KVM really runs guests here, proved by running one.

/dev/kvm may exist and open and still be of no use (nested hypervisors that hang in real mode), so
the proof is a guest that says a byte. Without KVM, QEMU's TCG runs every guest, slowly.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hosts.drivers.libvirt_connection import LibvirtConnection
from hosts.drivers.trial import Trial, running_guest
from schemas.errors import DomainError

KVM_DEVICE = Path("/dev/kvm")
PROOF_TIMEOUT_S = 3.0
"""Far more than a guest needs: under TCG, slower by far than KVM, the byte is there in 0.2 s."""

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
    enter. Raises DiskError, and DomainError when libvirt itself cannot be reached.
    """
    trial = Trial("kvm-proof", domain_type, 32, "raw", _write, PROOF_TIMEOUT_S)
    connection.open()  # a host without libvirt is no host without KVM
    try:
        with running_guest(connection, scratch, trial) as console:
            waited = console.heard(_SAID, PROOF_TIMEOUT_S)
    except DomainError as error:
        return KvmProof(False, f"a KVM guest fails: {error.why}")
    if waited is None:
        return KvmProof(False, f"a KVM guest hung: it said nothing within {PROOF_TIMEOUT_S:g} s")
    return KvmProof(True, f"a KVM guest ran its boot sector within {waited:.1f} s")


def _write(path: Path) -> None:
    path.write_bytes(BOOT_DISK)
