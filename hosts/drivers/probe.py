"""What this host lacks to carry environments, found out without changing anything.

Each probe is bounded in time and answers with a Check; none raises for what it looks for.
"""

from pathlib import Path
from typing import NamedTuple

from hosts.drivers.base import HostMemory
from hosts.drivers.command import CommandFailed, may, run
from hosts.drivers.connect import chosen_datapath_type, qemu_user
from hosts.drivers.disks import QemuImg
from hosts.drivers.domain_xml import ARCH, MACHINE, emulator_path
from hosts.drivers.kvm import KVM_DEVICE, prove_kvm
from hosts.drivers.libvirt_connection import LibvirtConnection
from hosts.drivers.memory import LinuxMemory, hugetlbfs_mount
from hosts.drivers.switch import OvsSwitch
from schemas.config import HostConfig
from schemas.errors import DriverError

PROBE_TIMEOUT_S = 5.0


class Check(NamedTuple):
    """One finding: what was found and, where there is something to do, what to do."""

    name: str
    ok: bool
    detail: str
    remedy: str = ""

    def line(self) -> str:
        """All of it, in one line for a person."""
        remedy = f"; {self.remedy}" if self.remedy else ""
        return f"{self.name}: {'ok' if self.ok else 'FAILED'}: {self.detail}{remedy}"


def check_drivers(config: HostConfig) -> tuple[Check, ...]:
    """All that drivers need on this host; takes up to 15 s where a daemon does not answer."""
    connection = LibvirtConnection(config.hypervisor.uri)
    return (
        *_check_libvirt(connection, config),
        check_switch(config),
        *_check_tools(config),
        *_check_hugepages(config),
    )


def check_libvirt(connection: LibvirtConnection) -> Check:
    """libvirt answers."""
    try:
        with connection.naming(connection.uri, "asking for its version") as libvirt:
            version = _version(libvirt.getLibVersion())
    except DriverError as error:
        return _failed("libvirt", error)
    return Check("libvirt", True, f"{version} at {connection.uri}")


def check_emulator(connection: LibvirtConnection) -> Check:
    """libvirt has a QEMU that emulates our kind of machine."""
    try:
        with connection.naming(connection.uri, "looking for QEMU") as libvirt:
            document = libvirt.getDomainCapabilities(None, ARCH, MACHINE, "qemu")
            version = _version(libvirt.getVersion())
    except DriverError as error:
        return Check("qemu", False, error.why, "install qemu-system-x86")
    return Check("qemu", True, f"{version} at {emulator_path(document)}")


def check_domain_type(connection: LibvirtConnection, wanted: str, scratch: Path) -> Check:
    """Guests run with `wanted`: kvm, qemu, or with auto whichever works."""
    if wanted == "qemu":
        return Check("kvm", True, "not wanted: domain_type is qemu")
    try:
        proof = prove_kvm(connection, scratch)
        user = qemu_user(connection)
    except DriverError as error:
        return _failed("kvm", error)
    if proof.works:
        return Check("kvm", True, proof.detail)
    remedy = 'use a host with KVM, or set domain_type = "qemu"' if wanted == "kvm" else ""
    if KVM_DEVICE.exists() and not all(may(user, access, KVM_DEVICE) for access in "rw"):
        # Root sees KVM and QEMU's user does not, so that libvirt distrusts what it has cached and
        # probes QEMU anew, many times per definition: 10 s instead of 15 ms (libvirt 9.0).
        remedy = f"let QEMU's user use it (chgrp kvm {KVM_DEVICE}; chmod 660 {KVM_DEVICE})"
    without = "" if wanted == "kvm" else "guests run in QEMU's TCG, slowly: "
    return Check("kvm", wanted == "auto", f"{without}{proof.detail}", remedy)


def check_switch(config: HostConfig) -> Check:
    """Open vSwitch's database answers."""
    datapath_type = chosen_datapath_type(config)
    remote = config.switch.ovsdb
    switch = OvsSwitch(remote, config.host.name, datapath_type, timeout_s=PROBE_TIMEOUT_S)
    try:
        version = switch.version()
    except DriverError as error:
        return _failed("open vswitch", error)
    finally:
        switch.close()
    return Check(
        "open vswitch", True, f"{version or 'answers'} at {remote}, datapath {datapath_type}"
    )


def check_dnsmasq() -> Check:
    """dnsmasq is installed."""
    try:
        said = run(["dnsmasq", "--version"], timeout_s=PROBE_TIMEOUT_S)
    except CommandFailed as exc:
        return Check("dnsmasq", False, str(exc), "install dnsmasq-base")
    return Check("dnsmasq", True, said.partition("  ")[0])


def check_hugepages(memory: HostMemory, mount: str | None) -> Check:
    """The kernel has huge pages, and libvirt finds them."""
    try:
        pages = memory.hugepages()
    except DriverError as error:
        return _failed("huge pages", error)
    if not pages.size_kib:
        return Check("huge pages", False, "this kernel has none", 'use memory_backing = "ordinary"')
    detail = f"{pages.free} of {pages.total} are free, of {pages.size_kib} KiB"
    if mount is None:
        remedy = "mount -t hugetlbfs hugetlbfs /dev/hugepages, and restart libvirt"
        return Check("huge pages", False, f"{detail}, but they are mounted nowhere", remedy)
    return Check("huge pages", True, f"{detail}, at {mount}")


def check_image(disks: QemuImg, image: Path) -> Check:
    """The base image can be used."""
    try:
        disks.check_image(image)
    except DriverError as error:
        return _failed("image", error)
    return Check("image", True, str(image))


def check_boot_file(disks: QemuImg, path: Path) -> Check:
    """A kernel or an initrd can be read by QEMU's user."""
    try:
        disks.check_readable(path)
    except DriverError as error:
        return _failed("boot file", error)
    return Check("boot file", True, str(path))


def check_state_dir(disks: QemuImg, state_dir: Path) -> Check:
    """QEMU's user can get at the disks below; a directory that is still missing will be made."""
    existing = next(each for each in (state_dir, *state_dir.parents) if each.exists())
    try:
        disks.check_directory(existing)
    except DriverError as error:
        return _failed("state_dir", error)
    return Check("state_dir", True, str(state_dir))


def _check_libvirt(connection: LibvirtConnection, config: HostConfig) -> tuple[Check, ...]:
    """libvirt, and what only libvirt can tell."""
    libvirt = check_libvirt(connection)
    if not libvirt.ok:
        return (libvirt,)
    state_dir, seed = config.host.state_dir, config.environments.seed
    disks = QemuImg(qemu_user(connection))
    return (
        libvirt,
        check_emulator(connection),
        check_domain_type(connection, config.hypervisor.domain_type, state_dir),
        check_state_dir(disks, state_dir),
        *([check_image(disks, seed.image)] if seed.image else []),
        *(check_boot_file(disks, path) for path in (seed.kernel, seed.initrd) if path),
    )


def _check_hugepages(config: HostConfig) -> tuple[Check, ...]:
    if config.environments.memory_backing != "hugepages":
        return ()
    return (check_hugepages(LinuxMemory(), hugetlbfs_mount()),)


def _check_tools(config: HostConfig) -> tuple[Check, ...]:
    return (check_dnsmasq(),) if config.public.provider == "dnsmasq" else ()


def _failed(name: str, error: DriverError) -> Check:
    return Check(name, False, f"{error.name}: {error.why}", error.remedy)


def _version(number: int) -> str:
    """libvirt's numbers: 9000001 is 9.0.1."""
    return f"{number // 1_000_000}.{number // 1_000 % 1_000}.{number % 1_000}"
