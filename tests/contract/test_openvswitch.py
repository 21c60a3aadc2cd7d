"""What only a real Open vSwitch can break."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from hosts.drivers.base import BridgeInfo, PortInfo, Switch
from hosts.drivers.switch import OvsSwitch
from schemas.errors import BridgeError
from tests.contract.daemons import OVSDB_SERVER, VSWITCHD, away, restart, stopped
from tests.contract.frames import arp_answers, hears
from tests.contract.plans import build, planned_domain
from tests.contract.rigs import ADDRESS, BRIDGE, HOST, OVSDB, RealRig, tool

BOUND_S = 2.0


@pytest.fixture
def hasty(real: RealRig) -> Iterator[OvsSwitch]:
    """A switch that gives up after BOUND_S."""
    switch = OvsSwitch(OVSDB, HOST, real.datapath_type, timeout_s=BOUND_S)
    try:
        yield switch
    finally:
        switch.close()


def test_a_tag_survives_power_cycles_of_its_guest(real: RealRig) -> None:
    build(real, planned_domain(real, ports=("te1n0e0",)))
    real.drivers.switch.ensure_bridge("brbm1")
    real.drivers.switch.ensure_port("brbm1", "te1n0e0")
    real.set_vlans("te1n0e0", 42, (1, 2))
    for _ in range(2):
        real.drivers.hypervisor.start_domain("seed_1")
        real.drivers.hypervisor.power_off_domain("seed_1")
    assert real.drivers.switch.bridges() == (
        BridgeInfo("brbm1", {"te1n0e0": PortInfo("te1n0e0", tag=42, trunks=(1, 2), ours=True)}),
    )


def test_a_bridge_keeps_its_mac_when_a_port_with_a_lower_one_comes(real: RealRig) -> None:
    switch, network = real.drivers.switch, real.drivers.network
    switch.ensure_bridge("brbm1")
    before = mac_of("brbm1")
    network.ensure_tap("te1s0")
    tool("ip", "link", "set", "te1s0", "address", "00:00:5e:00:53:01")
    switch.ensure_port("brbm1", "te1s0")
    assert mac_of("brbm1") == before


def test_a_port_whose_device_was_set_down_is_up_again(real: RealRig) -> None:
    switch, network = real.drivers.switch, real.drivers.network
    switch.ensure_bridge("brbm1")
    network.ensure_tap("te1s0")
    tool("ip", "link", "set", "te1s0", "down")
    switch.ensure_port("brbm1", "te1s0")
    (link,) = json.loads(tool("ip", "-json", "link", "show", "dev", "te1s0"))
    assert "UP" in link["flags"]


def test_a_bridge_takes_the_mac_of_the_nic_that_is_moved_onto_it(real: RealRig) -> None:
    switch = real.drivers.switch
    tool("ip", "link", "add", "nic0", "type", "veth", "peer", "name", "wire0")
    switch.ensure_bridge("br-ctlplane")
    own = mac_of("br-ctlplane")
    switch.ensure_port("br-ctlplane", "nic0")
    assert mac_of("br-ctlplane") == mac_of("nic0")
    switch.remove_ports("br-ctlplane", {"nic0"})
    assert mac_of("br-ctlplane") == own


def test_a_port_works_again_after_it_was_removed_and_its_tap_was_not(real: RealRig) -> None:
    switch, network = real.drivers.switch, real.drivers.network
    switch.ensure_bridge("brbm1")
    tool("ip", "link", "set", "brbm1", "up")
    network.ensure_tap("te1s0")
    for _ in range(3):
        switch.ensure_port("brbm1", "te1s0")
        assert hears("brbm1", "te1s0")
        switch.remove_ports("brbm1", {"te1s0"})
        assert not hears("brbm1", "te1s0", timeout=0.3)


def test_a_port_works_again_after_its_tap_was_made_anew(real: RealRig) -> None:
    switch, network = real.drivers.switch, real.drivers.network
    switch.ensure_bridge("brbm1")
    tool("ip", "link", "set", "brbm1", "up")
    network.ensure_tap("te1s0")
    switch.ensure_port("brbm1", "te1s0")
    assert hears("brbm1", "te1s0")
    network.remove_tap("te1s0")
    network.ensure_tap("te1s0")
    switch.ensure_port("brbm1", "te1s0")
    assert hears("brbm1", "te1s0")


def test_a_port_whose_tap_a_reboot_took_has_an_error_and_is_healed(real: RealRig) -> None:
    switch, network = real.drivers.switch, real.drivers.network
    switch.ensure_bridge("brbm1")
    network.ensure_tap("te1s0")
    switch.ensure_port("brbm1", "te1s0")
    with away(VSWITCHD):
        network.remove_tap("te1s0")
    wait_until(lambda: switch.bridges()[0].ports["te1s0"].error != "")
    network.ensure_tap("te1s0")
    switch.ensure_port("brbm1", "te1s0")
    assert switch.bridges()[0].ports == {"te1s0": PortInfo("te1s0", ours=True)}
    assert hears("brbm1", "te1s0")


def test_a_guest_on_a_private_bridge_does_not_find_this_hosts_own_address(real: RealRig) -> None:
    switch, network = real.drivers.switch, real.drivers.network
    for bridge, tap in ((BRIDGE, "te1s0"), ("brbm1", "te1s1")):
        switch.ensure_bridge(bridge)
        network.ensure_tap(tap)
        switch.ensure_port(bridge, tap)
    network.ensure_address(BRIDGE, ADDRESS)
    assert arp_answers("te1s0") == {mac_of(BRIDGE)}
    assert arp_answers("te1s1") == set()


def test_many_threads_that_ensure_the_same_things_make_them_once(real: RealRig) -> None:
    real.drivers.network.ensure_tap("te1s0")
    switches = [real.drivers_of(HOST).switch for _ in range(8)]
    together = threading.Barrier(len(switches))

    def ensure(switch: Switch) -> None:
        together.wait(10)
        switch.ensure_bridge("brbm1")
        switch.ensure_port("brbm1", "te1s0")

    with ThreadPoolExecutor(len(switches)) as pool:
        list(pool.map(ensure, switches))
    assert real.bridges() == {"brbm1": {"te1s0"}}


def test_a_hanging_ovsdb_server_is_a_typed_error_in_bounded_time(hasty: OvsSwitch) -> None:
    hasty.ensure_bridge("brbm1")
    with stopped(OVSDB_SERVER):
        for call in (hasty.bridges, lambda: hasty.ensure_bridge("brbm2")):
            started = time.monotonic()
            with pytest.raises(BridgeError, match="ovsdb-server does not answer"):
                call()
            assert time.monotonic() - started < BOUND_S + 0.5
    assert [bridge.name for bridge in hasty.bridges()] == ["brbm1"]


def test_callers_that_queue_for_a_hanging_server_are_bounded_too(hasty: OvsSwitch) -> None:
    hasty.ensure_bridge("brbm1")
    with stopped(OVSDB_SERVER), ThreadPoolExecutor(8) as pool:
        started = time.monotonic()
        calls = [pool.submit(hasty.bridges) for _ in range(8)]
        assert all(isinstance(call.exception(), BridgeError) for call in calls)
        assert time.monotonic() - started < BOUND_S + 1


def test_a_hanging_vswitchd_is_a_typed_error_in_bounded_time(hasty: OvsSwitch) -> None:
    with stopped(VSWITCHD):
        for _ in ("when it writes", "when all is written already"):
            started = time.monotonic()
            with pytest.raises(BridgeError, match="ovs-vswitchd does not apply"):
                hasty.ensure_bridge("brbm1")
            assert time.monotonic() - started < BOUND_S + 0.5
    hasty.ensure_bridge("brbm1")


def test_a_restarted_ovsdb_server_is_connected_to_again(real: RealRig) -> None:
    switch = real.drivers.switch
    switch.ensure_bridge("brbm1")
    restart(OVSDB_SERVER)
    assert switch.bridges() == (BridgeInfo("brbm1", {}),)
    switch.ensure_bridge("brbm2")
    assert set(real.bridges()) == {"brbm1", "brbm2"}


def test_a_server_that_comes_up_during_a_call_is_waited_for(real: RealRig) -> None:
    switch = real.drivers.switch
    with ThreadPoolExecutor(1) as pool:
        with away(OVSDB_SERVER):
            call = pool.submit(switch.bridges)
        assert call.result(20) == ()


def test_without_a_server_the_error_says_where_it_was_looked_for(real: RealRig) -> None:
    missing = f"unix:{real.directory}/none.sock"
    switch = OvsSwitch(missing, HOST, real.datapath_type, timeout_s=0.5)
    with pytest.raises(BridgeError, match=missing):
        switch.bridges()
    switch.close()


def mac_of(device: str) -> str:
    (link,) = json.loads(tool("ip", "-json", "link", "show", "dev", device))
    return str(link["address"])


def wait_until(reached: Callable[[], bool], timeout: float = 20) -> None:
    deadline = time.monotonic() + timeout
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.02)
