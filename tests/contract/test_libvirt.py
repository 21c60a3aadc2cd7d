"""What only a real libvirt can break."""

import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import libvirt
import pytest
from lxml import etree

from hosts.drivers.base import DomainInfo
from hosts.drivers.kvm import BOOT_DISK, prove_kvm
from hosts.drivers.libvirt_connection import LibvirtConnection
from schemas.errors import DomainError, ForeignObject
from schemas.plan import KernelBoot
from tests.contract.daemons import LIBVIRTD, restart, stopped
from tests.contract.plans import build, planned_domain
from tests.contract.rigs import LIBVIRT, RealRig, tool

BOUND_S = 15.0
"""No call on a hanging libvirtd takes longer."""


def test_libvirt_has_the_domain_as_planned(real: RealRig) -> None:
    domain = planned_domain(real, ports=("te1s0", "te1s1"), memory_mib=80)
    build(real, domain)
    xml = etree.fromstring(tool("virsh", "dumpxml", "seed_1"))
    assert xml.findtext("uuid") == str(domain.uuid)
    assert xml.findtext("memory") == str(80 * 1024)
    assert [mac.get("address") for mac in xml.iterfind("devices/interface/mac")] == [
        nic.mac for nic in domain.nics
    ]
    assert [dev.get("dev") for dev in xml.iterfind("devices/interface/target")] == [
        "te1s0",
        "te1s1",
    ]
    assert [file.get("file") for file in xml.iterfind("devices/disk/source")] == [
        str(domain.disk.path)
    ]


def test_a_domain_undefined_while_it_runs_is_persistent_again(real: RealRig) -> None:
    domain = planned_domain(real)
    build(real, domain)
    real.drivers.hypervisor.start_domain("seed_1")
    first = real.run_of("seed_1")
    tool("virsh", "undefine", "seed_1")
    real.drivers.hypervisor.ensure_domain(domain)
    assert real.run_of("seed_1") == first
    real.drivers.hypervisor.power_off_domain("seed_1")
    assert real.domains() == {"seed_1": False}


def test_a_transient_domain_of_ours_is_removed(real: RealRig) -> None:
    build(real, planned_domain(real))
    real.drivers.hypervisor.start_domain("seed_1")
    tool("virsh", "undefine", "seed_1")
    real.drivers.hypervisor.remove_domain("seed_1")
    assert real.domains() == {}


def test_a_renamed_domain_gives_way_to_the_planned_one(real: RealRig) -> None:
    domain = planned_domain(real)
    build(real, domain)
    tool("virsh", "domrename", "seed_1", "mine")
    real.drivers.hypervisor.ensure_domain(domain)
    assert real.domains() == {"seed_1": False}


def test_a_foreign_domain_with_our_uuid_is_refused(real: RealRig) -> None:
    domain = planned_domain(real)
    xml = real.directory / "foreign.xml"
    xml.write_text(
        f"<domain type='qemu'><name>other</name><uuid>{domain.uuid}</uuid>"
        "<memory>65536</memory><os><type>hvm</type></os></domain>"
    )
    tool("virsh", "define", xml)
    with pytest.raises(ForeignObject, match="other"):
        real.drivers.hypervisor.ensure_domain(domain)
    assert real.domains() == {"other": False}


def test_a_start_boots_and_does_not_go_on_with_a_saved_state(real: RealRig) -> None:
    domain = planned_domain(real)
    build(real, domain)
    write_disk(domain.disk.path, BOOT_DISK)
    real.drivers.hypervisor.start_domain("seed_1")
    wait_for_text(domain.console, b"K")
    tool("virsh", "managedsave", "seed_1")
    real.drivers.hypervisor.start_domain("seed_1")
    wait_for_text(domain.console, b"KK")


def test_snapshots_and_saved_states_do_not_keep_a_domain_from_going(real: RealRig) -> None:
    build(real, planned_domain(real))
    tool("virsh", "snapshot-create-as", "seed_1", "one")
    real.drivers.hypervisor.start_domain("seed_1")
    tool("virsh", "managedsave", "seed_1")
    real.drivers.hypervisor.remove_domain("seed_1")
    assert real.domains() == {}


def test_autostart_that_somebody_switched_on_is_off_again(real: RealRig) -> None:
    domain = planned_domain(real)
    build(real, domain)
    tool("virsh", "autostart", "seed_1")
    real.drivers.hypervisor.ensure_domain(domain)
    assert "Autostart:      disable" in tool("virsh", "dominfo", "seed_1")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("<on_reboot>restart", "<on_reboot>destroy"),
        ("</devices>", "<watchdog model='i6300esb'/></devices>"),
        ("<clock offset='utc'", "<clock offset='localtime'"),
    ],
)
def test_a_change_that_nobody_has_thought_of_is_seen(
    real: RealRig, before: str, after: str
) -> None:
    domain = planned_domain(real)
    build(real, domain)
    definition = real.directory / "changed.xml"
    definition.write_text(tool("virsh", "dumpxml", "--inactive", "seed_1").replace(before, after))
    tool("virsh", "define", definition)
    seen = real.drivers.hypervisor.inspect_domain("seed_1")
    assert seen
    assert seen.altered


def test_saved_states_and_snapshots_are_seen_and_go_with_the_domain(real: RealRig) -> None:
    domain, hypervisor = planned_domain(real), real.drivers.hypervisor
    build(real, domain)
    tool("virsh", "snapshot-create-as", "seed_1", "one")
    hypervisor.start_domain("seed_1")
    tool("virsh", "managedsave", "seed_1")
    seen = hypervisor.inspect_domain("seed_1")
    assert seen
    assert set(seen.leftovers) == {"managed save", "snapshots"}
    hypervisor.remove_domain("seed_1")
    hypervisor.ensure_domain(domain)
    seen = hypervisor.inspect_domain("seed_1")
    assert seen
    assert seen.leftovers == ()


def test_the_console_log_has_every_boot(real: RealRig) -> None:
    domain = planned_domain(real)
    build(real, domain)
    write_disk(domain.disk.path, BOOT_DISK)
    for boots in (1, 2):
        real.drivers.hypervisor.start_domain("seed_1")
        wait_for_text(domain.console, b"K" * boots)
        real.drivers.hypervisor.power_off_domain("seed_1")


def test_a_node_asks_for_an_address_over_its_network_card(real: RealRig) -> None:
    domain = planned_domain(real, ports=("te1n0e0",), boot="network")
    build(real, domain)
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800)) as wire:
        wire.bind(("te1n0e0", 0))
        wire.settimeout(60)
        real.drivers.hypervisor.start_domain("seed_1")
        frame = wire.recv(2048)
        while not is_dhcp_request(frame):
            frame = wire.recv(2048)
    assert frame[6:12].hex(":") == domain.nics[0].mac


def test_a_kernel_is_booted_directly(real: RealRig) -> None:
    boot = KernelBoot(
        kernel=Path("/var/lib/testenv/images/vmlinuz"),
        initrd=Path("/var/lib/testenv/images/node.initrd"),
        cmdline="console=ttyS0 marker=<&>",
    )
    domain = planned_domain(real, boot=boot, memory_mib=256)
    build(real, domain)
    real.drivers.hypervisor.start_domain("seed_1")
    wait_for_text(domain.console, b"marker=<&>")


def test_a_hanging_libvirtd_is_a_typed_error_in_bounded_time(real: RealRig) -> None:
    domain = planned_domain(real)
    build(real, domain)
    hypervisor = real.drivers.hypervisor
    with stopped(LIBVIRTD):
        started = time.monotonic()
        with pytest.raises(DomainError, match="libvirtd running"):
            hypervisor.power_off_domain("seed_1")
        assert time.monotonic() - started < BOUND_S
    assert hypervisor.domains() == (DomainInfo("seed_1", domain.uuid, running=False),)


@pytest.mark.usefixtures("real")
def test_a_call_that_libvirtd_does_not_answer_ends_in_time() -> None:
    connection = LibvirtConnection(LIBVIRT).open(silence_s=2)
    with stopped(LIBVIRTD):
        started = time.monotonic()
        with pytest.raises(libvirt.libvirtError, match="keepalive timeout"):
            connection.listAllDomains()
        assert time.monotonic() - started < 2 + 3


def test_a_restarted_libvirtd_is_connected_to_again_and_its_domains_ran_on(real: RealRig) -> None:
    domain = planned_domain(real)
    build(real, domain)
    hypervisor = real.drivers.hypervisor
    hypervisor.start_domain("seed_1")
    restart(LIBVIRTD)
    assert hypervisor.domains() == (DomainInfo("seed_1", domain.uuid, running=True),)


def test_a_guest_that_runs_proves_its_domain_type(real: RealRig) -> None:
    proof = prove_kvm(LibvirtConnection(LIBVIRT), real.directory, domain_type="qemu")
    assert proof.works, proof.detail
    assert real.domains() == {}
    assert list(real.directory.iterdir()) == []


def test_without_usable_kvm_guests_run_without_it(real: RealRig) -> None:
    proof = prove_kvm(LibvirtConnection(LIBVIRT), real.directory)
    assert (proof.domain_type, proof.works) in {("kvm", True), ("qemu", False)}
    assert real.domains() == {}
    assert list(real.directory.iterdir()) == []


def write_disk(path: Path, content: bytes) -> None:
    """Put `content` at the start of a qcow2 disk."""
    raw = path.with_suffix(".raw")
    raw.write_bytes(content)
    subprocess.run(
        ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, path], check=True, timeout=30
    )


def test_a_daemon_that_restarts_under_many_callers_harms_none(real: RealRig) -> None:
    """Each call is done or fails as our own error, and this process does not crash."""
    over = threading.Event()

    def call_on() -> int:
        done = 0
        while not over.is_set():
            with suppress(DomainError):
                real.drivers.hypervisor.domains()
                done += 1
        return done

    with ThreadPoolExecutor(16) as pool:
        callers = [pool.submit(call_on) for _ in range(16)]
        try:
            for _ in range(2):
                time.sleep(0.3)
                restart(LIBVIRTD)
        finally:
            over.set()
    assert all(caller.result() for caller in callers)


def wait_for_text(path: Path, text: bytes, timeout: float = 30) -> None:
    deadline = time.monotonic() + timeout
    while not path.exists() or text not in path.read_bytes():
        assert time.monotonic() < deadline, f"{text!r} is not in {path}"
        time.sleep(0.02)


def is_dhcp_request(frame: bytes) -> bool:
    """Whether an Ethernet frame is UDP to the DHCP server's port."""
    return frame[23] == socket.IPPROTO_UDP and frame[36:38] == (67).to_bytes(2, "big")
