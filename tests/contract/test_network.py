"""What every HostNetwork promises about taps and addresses, and what only Linux can break."""

import json
import pwd
from ipaddress import IPv4Interface

import pytest

from schemas.errors import ForeignObject, NetworkError
from tests.contract.rigs import RealRig, Rig, tool

ADDRESS = IPv4Interface("203.0.113.1/24")


def test_an_ensured_tap_is_ours(rig: Rig) -> None:
    rig.drivers.network.ensure_tap("te1s0")
    rig.drivers.network.ensure_tap("te1s0")
    assert rig.drivers.network.taps() == ("te1s0",)
    assert "te1s0" in rig.devices()


def test_removing_a_tap_leaves_nothing_and_may_be_repeated(rig: Rig) -> None:
    rig.drivers.network.ensure_tap("te1s0")
    rig.drivers.network.remove_tap("te1s0")
    rig.drivers.network.remove_tap("te1s0")
    assert rig.drivers.network.taps() == ()
    assert "te1s0" not in rig.devices()


def test_a_device_without_our_mark_is_refused_and_untouched(rig: Rig) -> None:
    rig.plant_device("te1s0")
    with pytest.raises(ForeignObject, match="te1s0"):
        rig.drivers.network.ensure_tap("te1s0")
    with pytest.raises(ForeignObject, match="te1s0"):
        rig.drivers.network.remove_tap("te1s0")
    assert "te1s0" in rig.devices()
    assert rig.drivers.network.taps() == ()


def test_another_hosts_tap_is_refused_by_its_owners_name(rig: Rig) -> None:
    rig.drivers.network.ensure_tap("te1s0")
    other = rig.drivers_of("other").network
    with pytest.raises(ForeignObject) as caught:
        other.remove_tap("te1s0")
    assert caught.value.owner == "contract"
    assert other.taps() == ()


def test_an_ensured_address_is_on_its_device(rig: Rig) -> None:
    rig.drivers.network.ensure_tap("te1s0")
    rig.drivers.network.ensure_address("te1s0", ADDRESS)
    rig.drivers.network.ensure_address("te1s0", ADDRESS)
    assert rig.address_holders(ADDRESS.ip) == {"te1s0": ADDRESS}


def test_the_addresses_of_a_device_are_told_with_their_prefix_lengths(rig: Rig) -> None:
    network = rig.drivers.network
    network.ensure_tap("te1s0")
    network.ensure_tap("te1s1")
    assert network.addresses("te1s0") == ()
    network.ensure_address("te1s0", ADDRESS)
    network.ensure_address("te1s0", IPv4Interface("198.51.100.1/25"))
    assert set(network.addresses("te1s0")) == {ADDRESS, IPv4Interface("198.51.100.1/25")}
    assert network.addresses("te1s1") == ()


def test_another_device_loses_the_address(rig: Rig) -> None:
    rig.drivers.network.ensure_tap("te1s0")
    rig.drivers.network.ensure_tap("te1s1")
    rig.drivers.network.ensure_address("te1s0", ADDRESS)
    rig.drivers.network.ensure_address("te1s1", ADDRESS)
    assert rig.address_holders(ADDRESS.ip) == {"te1s1": ADDRESS}


def test_a_wrong_prefix_length_is_put_right(rig: Rig) -> None:
    rig.drivers.network.ensure_tap("te1s0")
    rig.drivers.network.ensure_address("te1s0", IPv4Interface("203.0.113.1/28"))
    rig.drivers.network.ensure_address("te1s0", ADDRESS)
    assert rig.address_holders(ADDRESS.ip) == {"te1s0": ADDRESS}


def test_a_missing_device_is_an_error_that_names_it(rig: Rig) -> None:
    with pytest.raises(NetworkError, match="missing0"):
        rig.drivers.network.ensure_address("missing0", ADDRESS)
    with pytest.raises(NetworkError, match="missing0"):
        rig.drivers.network.ensure_up("missing0")
    with pytest.raises(NetworkError, match="missing0"):
        rig.drivers.network.addresses("missing0")


def test_a_tap_is_persistent_and_up_and_for_qemus_user(real: RealRig) -> None:
    real.drivers.network.ensure_tap("te1s0")
    link = details("te1s0")
    data = link["linkinfo"]["info_data"]
    assert (data["type"], data["persist"]) == ("tap", True)
    assert data["user"] in {"libvirt-qemu", "qemu", pwd.getpwuid(0).pw_name}
    assert "UP" in link["flags"]


def test_a_tap_that_somebody_set_down_is_up_again(real: RealRig) -> None:
    real.drivers.network.ensure_tap("te1s0")
    tool("ip", "link", "set", "te1s0", "down")
    real.drivers.network.ensure_tap("te1s0")
    assert "UP" in details("te1s0")["flags"]


def test_an_unrelated_address_stays_where_it_is(real: RealRig) -> None:
    network = real.drivers.network
    network.ensure_tap("te1s0")
    network.ensure_tap("te1s1")
    tool("ip", "address", "add", "203.0.113.2/24", "dev", "te1s0")
    network.ensure_address("te1s0", ADDRESS)
    network.ensure_address("te1s1", ADDRESS)
    kept = IPv4Interface("203.0.113.2/24")
    assert real.address_holders(kept.ip) == {"te1s0": kept}


def test_routes_that_work_by_the_address_come_along(real: RealRig) -> None:
    network = real.drivers.network
    network.ensure_tap("te1s0")
    network.ensure_tap("te1s1")
    network.ensure_address("te1s0", ADDRESS)
    tool("ip", "address", "add", "10.9.9.9/24", "dev", "te1s0")
    tool("ip", "route", "add", "default", "via", "203.0.113.254", "metric", "7")
    tool("ip", "route", "add", "10.8.0.0/16", "via", "10.9.9.1")
    network.ensure_address("te1s1", ADDRESS)
    routes = {route["dst"]: route for route in json.loads(tool("ip", "-json", "route"))}
    assert (routes["default"]["dev"], routes["default"]["metric"]) == ("te1s1", 7)
    assert routes["10.8.0.0/16"]["dev"] == "te1s0"


def test_a_name_that_linux_does_not_take_is_an_error(real: RealRig) -> None:
    with pytest.raises(NetworkError, match="not a valid ifname"):
        real.drivers.network.ensure_tap("sixteen-letters0")


def details(device: str) -> dict[str, dict[str, dict[str, object]]]:
    (link,) = json.loads(tool("ip", "-json", "-details", "link", "show", "dev", device))
    return dict(link)
