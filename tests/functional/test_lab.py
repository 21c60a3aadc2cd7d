"""The lab itself: real hosts, real guests, and nothing of them on the machine."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from lxml.builder import E
from lxml.etree import tostring

from tests.lab import Lab, LabError, LabHost, LabProcess, Namespace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lxml.etree import _Element

SEED_MAC = "52:54:00:00:01:01"
SEED_ADDRESS = "203.0.113.10"
NODE_MAC = "52:54:00:00:02:01"
WAIT_FOR_TERM = "trap 'exit 7' TERM; echo ready; while :; do sleep 0.1; done"
# OVS's userspace datapath fills in no checksums: the guests must do it themselves.
HOST_OFFLOADS = dict.fromkeys(("csum", "gso", "tso4", "tso6", "ecn", "ufo"), "off")
GUEST_OFFLOADS = {name: "off" for name in HOST_OFFLOADS if name != "gso"}


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with Lab(tmp_path) as lab:
        yield lab


@pytest.fixture
def te1(lab: Lab) -> LabHost:
    return lab.add_host("te1")


def wait_until(condition: Callable[[], bool], timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not so within {timeout} s"
        time.sleep(0.2)


def make_bridge(host: LabHost, bridge: str, *ports: str) -> None:
    netdev = ["--", "set", "bridge", bridge, "datapath_type=netdev"]
    host.run(["ovs-vsctl", "--may-exist", "add-br", bridge, *netdev])
    for port in ports:
        host.run(["ovs-vsctl", "--may-exist", "add-port", bridge, port])
    host.run(["ip", "link", "set", bridge, "up"])


def make_tap(host: LabHost, tap: str, bridge: str) -> None:
    host.run(["ip", "tuntap", "add", tap, "mode", "tap", "user", "libvirt-qemu"])
    host.run(["ip", "link", "set", tap, "up"])
    host.run(["ovs-vsctl", "--may-exist", "add-port", bridge, tap])


def start_domain(host: LabHost, name: str, nics: dict[str, str], *boot: _Element) -> None:
    """Start a guest with a NIC for each {tap: MAC}."""
    interfaces = [
        E.interface(
            E.target(dev=tap, managed="no"),
            E.mac(address=mac),
            E.model(type="virtio"),
            E.driver(E.host(**HOST_OFFLOADS), E.guest(**GUEST_OFFLOADS)),
            type="ethernet",
        )
        for tap, mac in nics.items()
    ]
    console = E.log(file=f"/var/log/libvirt/qemu/{name}-console.log")
    domain = E.domain(
        E.name(name),
        E.memory("256", unit="MiB"),
        E.vcpu("1"),
        E.os(E.type("hvm", arch="x86_64"), *boot),
        E.features(E.acpi()),
        E.devices(*interfaces, E.serial(console, type="pty")),
        type="qemu",
    )
    host.run(["virsh", "define", "--validate", "/dev/stdin"], stdin=tostring(domain).decode())
    host.run(["virsh", "start", name])


def start_seed(host: LabHost) -> LabProcess:
    """Wire the host and start a seed on it; returns the host's DHCP server."""
    make_bridge(host, "br-ctlplane", "eth1")
    make_bridge(host, "brbm1")
    host.run(["ip", "addr", "add", "203.0.113.1/24", "dev", "br-ctlplane"])
    make_tap(host, "seed-public", "br-ctlplane")
    make_tap(host, "seed-private", "brbm1")
    dnsmasq = host.popen(
        [
            *("dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--port=0"),
            *("--interface=br-ctlplane", "--bind-interfaces", "--dhcp-range=203.0.113.0,static"),
            *(f"--dhcp-host={SEED_MAC},{SEED_ADDRESS}", "--dhcp-leasefile=/run/dnsmasq.leases"),
            *("--pid-file=/run/dnsmasq.pid", "--user=root"),
        ],
        stderr=subprocess.DEVNULL,
    )
    image = host.image
    boot = [
        E.kernel(str(image.kernel)),
        E.initrd(str(image.seed_initrd)),
        E.cmdline(image.cmdline("seed")),
    ]
    nics = {"seed-public": SEED_MAC, "seed-private": "52:54:00:00:01:02"}
    start_domain(host, "seed_1", nics, *boot)
    return dnsmasq


@contextmanager
def lab_command(*arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.lab", *arguments]
    with subprocess.Popen(
        command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def http_get(lab: Lab, path: str) -> str:
    """Fetch from the seed, as the CI network sees it, as soon as it answers."""
    retry = [
        "--retry",
        "60",
        "--retry-max-time",
        "60",
        "--retry-delay",
        "1",
        "--retry-all-errors",
        "--connect-timeout",
        "1",
    ]
    return lab.ci.run(["curl", "-fsS", *retry, f"http://{SEED_ADDRESS}{path}"], timeout=90).stdout


def answers(lab: Lab, address: str) -> bool:
    ping = ["busybox", "ping", "-c", "1", "-W", "1", address]
    return lab.ci.run(ping, check=False).returncode == 0


def pid_namespace(process: str | int) -> str:
    try:
        return str(Path(f"/proc/{process}/ns/pid_for_children").readlink())
    except OSError:  # It is gone, or not ours to look at.
        return ""


def processes_in(namespace: str) -> list[str]:
    """The processes on this machine that are in a PID namespace, whatever they are."""
    return [p.name for p in Path("/proc").glob("[0-9]*") if pid_namespace(p.name) == namespace]


def test_hosts_have_a_libvirt_and_a_switch_of_their_own(lab: Lab, te1: LabHost) -> None:
    te2 = lab.add_host("te2")
    te1.run(
        [
            "ovs-vsctl",
            "add-br",
            "only-te1",
            "--",
            "set",
            "bridge",
            "only-te1",
            "datapath_type=netdev",
        ]
    )
    assert te1.run(["ovs-vsctl", "list-br"]).stdout == "only-te1\n"
    assert te2.run(["ovs-vsctl", "list-br"]).stdout == ""
    assert te1.run(["virsh", "hostname"]).stdout.strip() == "te1"
    assert te2.run(["virsh", "hostname"]).stdout.strip() == "te2"
    assert answers(lab, te1.address)
    assert answers(lab, te2.address)


def test_seed_gets_its_address_and_serves_the_ci_network(lab: Lab, te1: LabHost) -> None:
    start_seed(te1)
    assert http_get(lab, "/") == "testenv seed\n"
    assert answers(lab, SEED_ADDRESS)


def test_node_boots_from_the_network_and_reports_to_its_seed(lab: Lab, te1: LabHost) -> None:
    start_seed(te1)
    http_get(lab, "/")
    make_tap(te1, "node-private", "brbm1")
    start_domain(te1, "baremetalbrbm1_0", {"node-private": NODE_MAC}, E.boot(dev="network"))
    wait_until(lambda: http_get(lab, "/nodes") != "", timeout=90)
    mac, address = http_get(lab, "/nodes").split()
    assert mac == NODE_MAC
    assert address.startswith("172.20.0.")


def test_power_cut_kills_guests_and_power_on_brings_the_host_back(lab: Lab, te1: LabHost) -> None:
    dnsmasq = start_seed(te1)
    http_get(lab, "/")
    te1.power_cut()
    assert dnsmasq.wait(timeout=5) == -signal.SIGKILL
    assert not answers(lab, SEED_ADDRESS)
    assert not answers(lab, te1.address)

    te1.power_on()
    assert answers(lab, te1.address)
    assert te1.run(["virsh", "list", "--all", "--name"]).stdout.split() == ["seed_1"]
    assert te1.run(["virsh", "domstate", "seed_1"]).stdout.strip() == "shut off"
    assert te1.run(["ovs-vsctl", "list-ports", "brbm1"]).stdout == "seed-private\n"
    assert not te1.path("/run/dnsmasq.pid").exists()


def test_partitioned_host_runs_on_unreachable_until_healed(lab: Lab, te1: LabHost) -> None:
    te1.partition()
    assert not answers(lab, te1.address)
    te1.run(["virsh", "list"])
    te1.heal()
    wait_until(lambda: answers(lab, te1.address), timeout=10)


def test_signals_reach_the_command_and_its_exit_status_comes_back(te1: LabHost) -> None:
    with te1.popen(["sh", "-c", WAIT_FOR_TERM], stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        process.terminate()
        assert process.wait(timeout=5) == 7


def test_failed_daemon_is_reported_with_its_log(lab: Lab, te1: LabHost) -> None:
    te1.path("/etc/libvirt/libvirtd.conf").write_text("log_outputs = 'not a sink'\n")
    te1.power_cut()
    with pytest.raises(LabError, match="libvirtd"):
        te1.power_on()
    assert not te1.running
    assert not answers(lab, te1.address)


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    links = subprocess.check_output(["ip", "-o", "link"])
    mounts = Path("/proc/mounts").read_text()
    with Lab(tmp_path) as lab:
        te1 = lab.add_host("te1")
        start_seed(te1)
        inside = pid_namespace(te1.pid)
        assert len(processes_in(inside)) > len(
            ["init", "ovsdb", "vswitchd", "virtlogd", "libvirtd"]
        )
        assert subprocess.check_output(["ip", "-o", "link"]) == links
        assert Path("/proc/mounts").read_text() == mounts
    assert processes_in(inside) == []
    assert subprocess.check_output(["ip", "-o", "link"]) == links
    assert Path("/proc/mounts").read_text() == mounts


def test_killed_owner_takes_the_lab_with_it(tmp_path: Path) -> None:
    with lab_command("up", "--hosts", "te1", "--workdir", tmp_path) as owner:
        assert owner.stdout
        said = list(takewhile(lambda line: line != "ready\n", owner.stdout))
        assert said == ["te1 198.51.100.11\n", f"workdir {tmp_path}\n"]
        inside = pid_namespace((tmp_path / "te1.pid").read_text().strip())
        assert processes_in(inside)
        with pytest.raises(LabError, match="already running"), Lab(tmp_path):
            pass
        owner.kill()
    wait_until(lambda: processes_in(inside) == [], timeout=10)


def test_leftovers_of_a_crashed_lab_are_removed(tmp_path: Path) -> None:
    (tmp_path / "lab.lock").touch()
    (tmp_path / "te1").mkdir()
    leftover = Namespace("te1", tmp_path / "te1.pid")
    leftover.start()
    inside = pid_namespace(leftover.pid)
    with Lab(tmp_path) as lab:
        wait_until(lambda: processes_in(inside) == [], timeout=10)
        lab.add_host("te1")
    leftover.stop()


def test_running_lab_can_be_entered_from_the_command_line(tmp_path: Path, lab: Lab) -> None:
    del lab  # It runs in tmp_path.
    with lab_command("exec", "--lab", tmp_path, "ci", "--", "sh", "-c", WAIT_FOR_TERM) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        process.terminate()
        assert process.wait(timeout=5) == 7
    with lab_command("exec", "--lab", tmp_path, "te9", "--", "true") as none:
        assert "no te9 is running" in none.communicate(timeout=20)[0]
    assert none.returncode == 1


def test_command_line_runs_in_a_host_and_keeps_status_and_directory() -> None:
    script = "hostname; pwd; virsh list --name; exit 9"
    with lab_command("run", "--host", "contract", "--", "sh", "-c", script) as process:
        said = process.communicate(timeout=60)[0].split()
    assert (process.returncode, said) == (9, ["contract", str(Path.cwd())])


def test_foreign_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "hosts").mkdir()
    with pytest.raises(LabError, match="not empty"), Lab(tmp_path):
        pass
    assert (tmp_path / "hosts").exists()
