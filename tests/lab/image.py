"""The guest of the lab: one kernel, one tiny initramfs, two roles.

Built from the distribution's own packages, downloaded and unpacked but never installed: the
cloud kernel and a static busybox. What a guest does stands in ``guest/init``.
"""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import lzma
import os
import re
import shutil
import subprocess
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tests.lab.errors import LabError

if TYPE_CHECKING:
    from collections.abc import Iterator

GUEST_FILES = Path(__file__).parent / "guest"
# Debian's name, then Ubuntu's, of the package that always points to the newest small kernel.
KERNEL_PACKAGES = ("linux-image-cloud-amd64", "linux-image-virtual")
# In insmod's order. A kernel may have any of them built in.
MODULES = (
    *("virtio_ring", "virtio", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci"),
    *("failover", "net_failover", "virtio_net", "virtio_blk", "evdev", "button"),
)
BUILD_TIMEOUT_S = 300.0


@dataclass(frozen=True)
class GuestImage:
    """Paths for a direct kernel boot, all in one directory.

    The seed's initrd holds the kernel and the node's initrd too, because nodes fetch both from
    their seed.
    """

    directory: Path

    @property
    def kernel(self) -> Path:
        return self.directory / "vmlinuz"

    @property
    def seed_initrd(self) -> Path:
        return self.directory / "seed.initrd"

    @property
    def node_initrd(self) -> Path:
        return self.directory / "node.initrd"

    def cmdline(self, role: Literal["seed", "node"]) -> str:
        return f"console=ttyS0 quiet testenv.role={role}"


def cache_directory() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "testenv-lab"


def ensure_image(cache: Path | None = None) -> GuestImage:
    """Return the cached guest image, building it first if there is none of this version.

    The version is a digest of this recipe and the guest's files. Only a build needs the network
    (apt). Raises LabError when the packages can't be had.
    """
    cache = cache or cache_directory()
    cache.mkdir(parents=True, exist_ok=True)
    image = GuestImage(cache / f"guest-{_version()}")
    with _locked(cache / "lock"):
        if not image.directory.exists():
            with tempfile.TemporaryDirectory(dir=cache, prefix="build-") as scratch:
                built = _build(Path(scratch))
                built.chmod(0o755)
                built.rename(image.directory)
    return image


def _version() -> str:
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for path in sorted(p for p in GUEST_FILES.rglob("*") if p.is_file()):
        digest.update(f"\n{path.relative_to(GUEST_FILES)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    deadline = time.monotonic() + BUILD_TIMEOUT_S
    with path.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise LabError(f"{path}: another build has held the lock too long") from None
                time.sleep(0.1)
        yield


def _build(scratch: Path) -> Path:
    packages, root, image = scratch / "packages", scratch / "root", scratch / "image"
    for directory in (packages, root, image):
        directory.mkdir()
    _download(["busybox-static", *_kernel_packages()], packages)
    unpacked = scratch / "unpacked"
    for package in packages.glob("*.deb"):
        _output(["dpkg-deb", "-x", str(package), str(unpacked)])
    built = GuestImage(image)
    (kernel,) = unpacked.glob("boot/vmlinuz-*")
    # Not its mode: Ubuntu's kernel is for root's eyes only.
    shutil.copyfile(kernel, built.kernel)

    shutil.copytree(GUEST_FILES, root, dirs_exist_ok=True)
    for name in ("bin", "dev", "proc", "sys", "modules"):
        (root / name).mkdir()
    busybox = root / "bin/busybox"
    shutil.copy(next(p for p in unpacked.rglob("bin/busybox") if not p.is_symlink()), busybox)
    names = [name for name in MODULES if _copy_module(name, unpacked, root / "modules")]
    (root / "modules/order").write_text("".join(f"{name}.ko\n" for name in names))
    built.node_initrd.write_bytes(gzip.compress(_cpio(busybox, root), mtime=0))

    payload = scratch / "payload"
    (payload / "www").mkdir(parents=True)
    for path in (built.kernel, built.node_initrd):
        shutil.copy(path, payload / "www")
    # The kernel unpacks archive after archive. A plain one needs an aligned start: it goes first.
    built.seed_initrd.write_bytes(_cpio(busybox, payload) + built.node_initrd.read_bytes())
    return image


def _kernel_packages() -> list[str]:
    """The real packages behind the meta package: the image and, on Ubuntu, its modules."""
    for meta in KERNEL_PACKAGES:
        found: list[str] = []
        wanted = [meta]
        while wanted:
            show = ["apt-cache", "show", "--no-all-versions", wanted.pop()]
            fields = subprocess.run(
                show, capture_output=True, text=True, check=False, timeout=60
            ).stdout
            depends = "".join(re.findall(r"^Depends: (.*)$", fields, re.MULTILINE))
            new = set(re.findall(r"\blinux-(?:image|modules)-\d[\w.+-]*", depends)) - {*found}
            found += sorted(new)
            wanted += sorted(new)
        if found:
            return found
    raise LabError(
        f"apt knows no package {' or '.join(KERNEL_PACKAGES)}: run `apt-get update`"
        " (the lab's guest is made from it on Debian or Ubuntu, amd64)"
    )


def _download(packages: list[str], directory: Path) -> None:
    # As root, apt would warn that its own user can't write to the directory.
    command = ["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", *packages]
    _output(command, cwd=directory, remedy=": run `apt-get update`, or look at the network")


def _copy_module(name: str, unpacked: Path, target: Path) -> bool:
    """Copy a kernel module, decompressed; False if it is built in."""
    for path in unpacked.rglob(f"{name}.ko*"):
        match path.suffix:
            case ".xz":
                data = lzma.decompress(path.read_bytes())
            case ".zst":
                data = _output(["zstd", "-dc", str(path)])
            case _:
                data = path.read_bytes()
        (target / f"{name}.ko").write_bytes(data)
        return True
    builtin = "".join(p.read_text() for p in unpacked.rglob("modules.builtin"))
    if f"/{name}.ko" in builtin:
        return False
    raise LabError(f"this distribution's kernel package has no module {name}")


def _cpio(busybox: Path, root: Path) -> bytes:
    names = sorted(str(path.relative_to(root)) for path in root.rglob("*"))
    command = [str(busybox), "cpio", "-o", "-H", "newc", "-R", "0:0"]
    return _output(command, cwd=root, stdin="\n".join(names).encode())


def _output(
    command: list[str], *, cwd: Path | None = None, stdin: bytes = b"", remedy: str = ""
) -> bytes:
    try:
        done = subprocess.run(
            command, cwd=cwd, input=stdin, capture_output=True, check=True, timeout=BUILD_TIMEOUT_S
        )
    except subprocess.CalledProcessError as exc:
        raise LabError(
            f"building the guest image failed{remedy}\n{exc}\n{exc.stderr.decode()}"
        ) from exc
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise LabError(f"building the guest image failed{remedy}: {exc}") from exc
    return done.stdout
