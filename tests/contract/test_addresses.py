"""What every AddressServer promises, and what only a real dnsmasq can break."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from hosts.drivers.base import Reservation
from hosts.drivers.dnsmasq import ANSWER_TIMEOUT_S, STOP_TIMEOUT_S, Dnsmasq, StaticAddresses
from hosts.drivers.fake import FakeAddresses, FakeMachine
from schemas.errors import AddressServerError
from tests.contract import dhcp
from tests.contract.rigs import ADDRESS, BRIDGE, HOST, RealRig, Rig, tool

ONE = Reservation("52:54:00:00:01:01", IPv4Address("203.0.113.10"), "seed-1")
TWO = Reservation("52:54:00:00:02:01", IPv4Address("203.0.113.11"), "seed-2")
STRANGER = "52:54:00:00:09:09"


def test_exactly_the_last_reservations_are_served(rig: Rig) -> None:
    addresses = rig.drivers.addresses
    assert addresses.reservations() == ()
    addresses.ensure_reservations([ONE, TWO])
    assert addresses.reservations() == (ONE, TWO)
    addresses.ensure_reservations([TWO])
    assert addresses.reservations() == (TWO,)


def test_removing_the_server_leaves_nothing_and_may_be_repeated(rig: Rig) -> None:
    addresses = rig.drivers.addresses
    addresses.ensure_reservations([ONE])
    addresses.remove()
    addresses.remove()
    assert addresses.reservations() == ()


def test_an_agent_started_again_finds_its_server_at_work(rig: Rig) -> None:
    rig.drivers.addresses.ensure_reservations([ONE])
    assert rig.drivers_of(HOST).addresses.reservations() == (ONE,)


def test_a_server_answers_as_long_as_there_is_somebody_to_serve(rig: Rig) -> None:
    rig.drivers.switch.ensure_bridge(BRIDGE)
    rig.drivers.network.ensure_address(BRIDGE, ADDRESS)
    addresses = rig.drivers.addresses
    assert addresses.answers()
    addresses.ensure_reservations([ONE, TWO])
    assert addresses.answers()
    addresses.ensure_reservations([])
    assert addresses.answers()
    addresses.remove()
    assert addresses.answers()


def test_static_addresses_are_only_recorded_and_our_own_server_goes() -> None:
    former = FakeAddresses(FakeMachine())
    former.ensure_reservations([ONE])
    addresses = StaticAddresses(former)
    addresses.ensure_reservations(iter([ONE, TWO]))
    assert addresses.reservations() == (ONE, TWO)
    assert former.reservations() == ()
    assert addresses.answers()
    addresses.remove()
    assert addresses.reservations() == ()


@pytest.fixture
def wire(real: RealRig) -> str:
    """The public bridge with this host's address, and a device on it for a client."""
    real.drivers.switch.ensure_bridge(BRIDGE)
    real.drivers.network.ensure_address(BRIDGE, ADDRESS)
    tool("ip", "link", "add", "client0", "type", "veth", "peer", "name", "port0")
    for device in ("client0", "port0"):
        tool("ip", "link", "set", device, "up")
    real.plant_port(BRIDGE, "port0")
    return "client0"


def test_a_seed_gets_its_address_and_a_stranger_gets_none(real: RealRig, wire: str) -> None:
    real.drivers.addresses.ensure_reservations([ONE, TWO])
    assert dhcp.lease(wire, ONE.mac) == ONE.address
    assert dhcp.lease(wire, TWO.mac) == TWO.address
    assert dhcp.lease(wire, STRANGER, timeout=1.5) is None


def test_who_is_no_longer_reserved_gets_no_answer(real: RealRig, wire: str) -> None:
    real.drivers.addresses.ensure_reservations([ONE, TWO])
    assert dhcp.lease(wire, TWO.mac) == TWO.address
    real.drivers.addresses.ensure_reservations([ONE])
    assert dhcp.lease(wire, TWO.mac, timeout=1.5) is None
    assert dhcp.lease(wire, ONE.mac) == ONE.address


def test_an_address_goes_to_its_new_mac_although_the_old_one_leased_it(
    real: RealRig, wire: str
) -> None:
    real.drivers.addresses.ensure_reservations([ONE])
    assert dhcp.lease(wire, ONE.mac) == ONE.address
    moved = Reservation(STRANGER, ONE.address, ONE.name)
    real.drivers.addresses.ensure_reservations([moved])
    assert dhcp.lease(wire, STRANGER) == ONE.address


def test_the_same_reservations_again_leave_the_server_running(real: RealRig) -> None:
    real.drivers.addresses.ensure_reservations([ONE])
    before = dnsmasqs()
    real.drivers_of(HOST).addresses.ensure_reservations([ONE])
    assert dnsmasqs() == before
    assert len(before) == 1


def test_a_server_that_died_is_started_again(real: RealRig, wire: str) -> None:
    real.drivers.addresses.ensure_reservations([ONE])
    (pid,) = dnsmasqs()
    os.kill(pid, signal.SIGKILL)
    wait_for_end(pid)
    assert real.drivers.addresses.reservations() == ()
    real.drivers.addresses.ensure_reservations([ONE])
    assert dhcp.lease(wire, ONE.mac) == ONE.address


def test_a_server_that_is_dead_or_hangs_does_not_answer(real: RealRig, wire: str) -> None:
    addresses = real.drivers.addresses
    addresses.ensure_reservations([ONE])
    (pid,) = dnsmasqs()
    os.kill(pid, signal.SIGSTOP)
    started = time.monotonic()
    assert not addresses.answers()
    assert time.monotonic() - started < ANSWER_TIMEOUT_S + 1
    os.kill(pid, signal.SIGCONT)
    assert addresses.answers()
    # Asking takes nothing from the one in whose name it was done.
    assert dhcp.lease(wire, ONE.mac) == ONE.address
    os.kill(pid, signal.SIGKILL)
    wait_for_end(pid)
    assert not addresses.answers()


def test_a_server_whose_files_are_lost_is_replaced_and_not_doubled(real: RealRig) -> None:
    real.drivers.addresses.ensure_reservations([ONE])
    shutil.rmtree(real.directory / "dnsmasq")
    real.drivers.addresses.ensure_reservations([ONE])
    assert len(dnsmasqs()) == 1


def test_a_hanging_server_is_replaced_in_bounded_time(real: RealRig) -> None:
    real.drivers.addresses.ensure_reservations([ONE])
    (pid,) = dnsmasqs()
    os.kill(pid, signal.SIGSTOP)
    started = time.monotonic()
    real.drivers.addresses.ensure_reservations([TWO])
    assert time.monotonic() - started < STOP_TIMEOUT_S + 5
    assert pid not in dnsmasqs()
    assert len(dnsmasqs()) == 1


def test_removing_the_server_ends_its_process_and_only_that(real: RealRig) -> None:
    with other_dnsmasq(real.directory) as other:
        real.drivers.addresses.ensure_reservations([ONE])
        real.drivers.addresses.remove()
        assert dnsmasqs() == {other}
        assert not (real.directory / "dnsmasq").exists()


def test_a_configuration_that_dnsmasq_refuses_is_a_typed_error(real: RealRig) -> None:
    server = Dnsmasq("a bridge name that is no name", ADDRESS, real.directory)
    with pytest.raises(AddressServerError, match="dnsmasq"):
        server.ensure_reservations([Reservation("no mac", ONE.address, "seed-1")])


@contextmanager
def other_dnsmasq(directory: Path) -> Iterator[int]:
    """A dnsmasq that is not ours."""
    process = subprocess.Popen(
        [
            *("dnsmasq", "--keep-in-foreground", "--port=0", "--conf-file=/dev/null"),
            f"--pid-file={directory / 'other.pid'}",
        ],
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process.pid
    finally:
        process.terminate()
        process.wait(10)


def dnsmasqs() -> set[int]:
    """Every dnsmasq of this machine that lives."""
    shown = tool("ps", "-e", "-o", "pid=,stat=,comm=").splitlines()
    processes = (line.split() for line in shown)
    return {int(pid) for pid, state, name in processes if name == "dnsmasq" and "Z" not in state}


def wait_for_end(pid: int) -> None:
    deadline = time.monotonic() + 10
    while pid in dnsmasqs():
        assert time.monotonic() < deadline
        time.sleep(0.01)
