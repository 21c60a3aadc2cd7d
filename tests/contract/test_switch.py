"""What every Switch promises about bridges and ports."""

from collections.abc import Callable

import pytest

from hosts.drivers.base import BridgeInfo, PortInfo, Switch
from schemas.errors import BridgeError, ForeignObject
from tests.contract.rigs import Rig

VERBS: dict[str, Callable[[Switch], None]] = {
    "ensure the bridge": lambda switch: switch.ensure_bridge("brbm1"),
    "remove the bridge": lambda switch: switch.remove_bridge("brbm1"),
    "ensure a port": lambda switch: switch.ensure_port("brbm1", "te1s0"),
    "remove a port": lambda switch: switch.remove_ports("brbm1", {"te1n0e0"}),
}


def test_an_ensured_bridge_is_ours_and_has_no_ports(rig: Rig) -> None:
    rig.drivers.switch.ensure_bridge("brbm1")
    rig.drivers.switch.ensure_bridge("brbm1")
    assert rig.drivers.switch.bridges() == (BridgeInfo("brbm1", {}),)
    assert rig.bridges() == {"brbm1": set()}
    assert "brbm1" in rig.devices()


def test_an_ensured_port_is_on_its_bridge(rig: Rig) -> None:
    ensure_port(rig, "brbm1", "te1s0")
    rig.drivers.switch.ensure_port("brbm1", "te1s0")
    assert rig.drivers.switch.bridges() == (
        BridgeInfo("brbm1", {"te1s0": PortInfo("te1s0", ours=True)}),
    )
    assert rig.bridges() == {"brbm1": {"te1s0"}}


def test_tags_and_trunks_are_seen_and_ensuring_the_port_clears_them(rig: Rig) -> None:
    ensure_port(rig, "brbm1", "te1s0")
    rig.set_vlans("te1s0", 42, (1, 2))
    assert rig.drivers.switch.bridges()[0].ports == {
        "te1s0": PortInfo("te1s0", tag=42, trunks=(1, 2), ours=True)
    }
    rig.drivers.switch.ensure_port("brbm1", "te1s0")
    assert rig.drivers.switch.bridges()[0].ports == {"te1s0": PortInfo("te1s0", ours=True)}


def test_a_port_needs_its_device(rig: Rig) -> None:
    rig.drivers.switch.ensure_bridge("brbm1")
    with pytest.raises(BridgeError, match="te1s0"):
        rig.drivers.switch.ensure_port("brbm1", "te1s0")
    assert rig.bridges() == {"brbm1": set()}


def test_a_port_needs_its_bridge(rig: Rig) -> None:
    rig.drivers.network.ensure_tap("te1s0")
    with pytest.raises(BridgeError, match="brbm1"):
        rig.drivers.switch.ensure_port("brbm1", "te1s0")
    assert rig.bridges() == {}


def test_a_port_moves_between_our_bridges(rig: Rig) -> None:
    ensure_port(rig, "brbm1", "te1s0")
    ensure_port(rig, "brbm2", "te1s0")
    assert rig.bridges() == {"brbm1": set(), "brbm2": {"te1s0"}}


def test_removing_a_port_leaves_its_device_and_may_be_repeated(rig: Rig) -> None:
    ensure_port(rig, "brbm1", "te1s0")
    rig.drivers.switch.remove_ports("brbm1", {"te1s0"})
    rig.drivers.switch.remove_ports("brbm1", {"te1s0"})
    rig.drivers.switch.remove_ports("brbm2", {"te1s0"})
    assert rig.bridges() == {"brbm1": set()}
    assert "te1s0" in rig.devices()


def test_a_stray_port_on_our_bridge_is_seen_and_can_be_removed(rig: Rig) -> None:
    rig.drivers.switch.ensure_bridge("brbm1")
    rig.plant_device("stray")
    rig.plant_port("brbm1", "stray")
    assert rig.drivers.switch.bridges()[0].ports == {"stray": PortInfo("stray")}
    rig.drivers.switch.remove_ports("brbm1", {"stray"})
    assert rig.bridges() == {"brbm1": set()}


def test_removing_a_bridge_with_ports_leaves_nothing_and_may_be_repeated(rig: Rig) -> None:
    ensure_port(rig, "brbm1", "te1s0")
    rig.drivers.switch.remove_bridge("brbm1")
    rig.drivers.switch.remove_bridge("brbm1")
    assert rig.bridges() == {}
    assert "brbm1" not in rig.devices()
    assert rig.drivers.switch.bridges() == ()


@pytest.mark.parametrize("verb", VERBS)
def test_a_bridge_without_our_mark_is_refused_and_untouched(rig: Rig, verb: str) -> None:
    rig.drivers.network.ensure_tap("te1s0")
    rig.plant_bridge("brbm1")
    rig.plant_device("te1n0e0")
    rig.plant_port("brbm1", "te1n0e0")
    with pytest.raises(ForeignObject, match="brbm1"):
        VERBS[verb](rig.drivers.switch)
    assert rig.bridges() == {"brbm1": {"te1n0e0"}}
    assert rig.drivers.switch.bridges() == ()


def test_a_device_with_a_bridges_name_is_refused_and_untouched(rig: Rig) -> None:
    rig.plant_device("brbm1")
    with pytest.raises(ForeignObject, match="brbm1"):
        rig.drivers.switch.ensure_bridge("brbm1")
    assert rig.bridges() == {}
    assert "brbm1" in rig.devices()


def test_a_port_on_a_bridge_that_is_not_ours_is_refused_and_untouched(rig: Rig) -> None:
    rig.drivers.switch.ensure_bridge("brbm1")
    rig.plant_bridge("theirs")
    rig.plant_device("te1s0")
    rig.plant_port("theirs", "te1s0")
    with pytest.raises(ForeignObject, match="te1s0"):
        rig.drivers.switch.ensure_port("brbm1", "te1s0")
    assert rig.bridges() == {"brbm1": set(), "theirs": {"te1s0"}}


def test_another_hosts_bridge_is_refused_by_its_owners_name(rig: Rig) -> None:
    rig.drivers.switch.ensure_bridge("brbm1")
    other = rig.drivers_of("other").switch
    with pytest.raises(ForeignObject) as caught:
        other.remove_bridge("brbm1")
    assert caught.value.owner == "contract"
    assert other.bridges() == ()


def ensure_port(rig: Rig, bridge: str, port: str) -> None:
    rig.drivers.network.ensure_tap(port)
    rig.drivers.switch.ensure_bridge(bridge)
    rig.drivers.switch.ensure_port(bridge, port)
