"""What there is, held against the plan: every way in which an environment may differ is named."""

from collections.abc import Mapping
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, Literal

import pytest

from hosts.drivers.base import (
    BridgeInfo,
    DiskInfo,
    DomainDetails,
    DriveInfo,
    NicInfo,
    PortInfo,
    Reservation,
)
from hosts.drivers.fake import FakeDomain
from hosts.plan import plan_host
from hosts.verify import (
    Observed,
    Wiring,
    differences,
    power_differences,
    reservations,
    stray_ports,
    wiring_differences,
)
from schemas.config import HostConfig
from schemas.plan import Domain, Facts, HostPlan, KernelBoot

GIB = 1 << 30
BASE = Path("/images/seed.qcow2")
NODE = "baremetalbrbm1_0"


def planned(disk_format: Literal["qcow2", "raw"] = "qcow2") -> HostPlan:
    config = HostConfig.model_validate(
        {
            "host": {"name": "te1", "state_dir": "/s"},
            "public": {"interface": "eth1"},
            "environments": {
                "count": 2,
                "seed": {"image": BASE},
                "nodes": {"count": 1, "disk_format": disk_format},
            },
        }
    )
    return plan_host(config, Facts(memory_mib=65536, cpus=64, disk_gib=500))


PLAN = planned()
SEED, MAC = PLAN.environments[0].seed, PLAN.environments[0].nodes[0].nics[0].mac


def details(domain: Domain, *, running: bool = False) -> DomainDetails:
    return FakeDomain("te1", domain, running, given=domain).details()


def as_planned(plan: HostPlan = PLAN) -> Observed:
    """What there is of the first environment once all is well."""
    env = plan.environments[0]
    homes = {nic.port: nic.bridge for each in plan.domains for nic in each.nics} | {
        "eth1": plan.public.bridge
    }
    bridges = tuple(
        BridgeInfo(
            bridge, {port: PortInfo(port, ours=True) for port in homes if homes[port] == bridge}
        )
        for bridge in sorted(set(homes.values()))
    )
    return Observed(
        domains={each.name: details(each, running=each is env.seed) for each in env.domains},
        wiring=Wiring(bridges, frozenset(homes) - {"eth1"}),
        disks={
            each.disk.path: DiskInfo(each.disk.format, GIB, each.disk.base) for each in env.domains
        },
        reservations=reservations(plan),
    )


def told(observed: Observed, plan: HostPlan = PLAN) -> list[str]:
    return [str(each) for each in differences(plan, plan.environments[0], observed)]


def with_node(**changes: Any) -> Observed:
    """As planned, but for the first node's definition."""
    good = as_planned()
    return replace(good, domains={**good.domains, NODE: replace(good.domains[NODE], **changes)})


def with_disk(plan: HostPlan = PLAN, **changes: Any) -> Observed:
    """As planned, but for the first node's disk."""
    good = as_planned(plan)
    path = plan.environments[0].nodes[0].disk.path
    return replace(good, disks={**good.disks, path: replace(good.disks[path], **changes)})


def with_ports(bridge: str, ports: Mapping[str, PortInfo]) -> Observed:
    """As planned, but for these ports of `bridge`."""
    good = as_planned()
    bridges = tuple(
        BridgeInfo(each.name, {**each.ports, **ports}) if each.name == bridge else each
        for each in good.wiring.bridges
    )
    return replace(good, wiring=replace(good.wiring, bridges=bridges))


@pytest.mark.parametrize("disk_format", ["qcow2", "raw"])
def test_what_is_as_planned_differs_in_nothing(disk_format: Literal["qcow2", "raw"]) -> None:
    plan = planned(disk_format)
    assert told(as_planned(plan), plan) == []


def test_who_runs_is_another_question() -> None:
    env = PLAN.environments[0]
    swapped = {each.name: details(each, running=each is not env.seed) for each in env.domains}
    assert told(replace(as_planned(), domains=swapped)) == []
    assert [str(each) for each in power_differences(env, swapped)] == [
        "seed_1: is off, planned running",
        f"{NODE}: is running, planned off",
    ]
    assert power_differences(env, as_planned().domains) == ()


def test_a_missing_domain_is_named() -> None:
    good = as_planned()
    assert told(replace(good, domains={"seed_1": good.domains["seed_1"]})) == [
        f"{NODE}: is missing"
    ]


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"memory_mib": 512}, "memory is 512 MiB, planned 256 MiB"),
        ({"cpus": 2}, "CPUs are 2, planned 1"),
        (
            {"nics": (NicInfo("52:54:00:00:00:01", "te1n0e0"),)},
            f"network cards are 52:54:00:00:00:01 on te1n0e0, planned {MAC} on te1n0e0",
        ),
        (
            {"nics": (NicInfo(MAC, ""),)},
            f"network cards are {MAC} on no tap, planned {MAC} on te1n0e0",
        ),
        ({"nics": ()}, f"network cards are none, planned {MAC} on te1n0e0"),
        (
            {"drives": (DriveInfo(Path("/s/x"), "raw"), DriveInfo(None, ""))},
            f"disks are /s/x (raw), empty (), planned /s/disks/{NODE}.qcow2 (qcow2)",
        ),
        ({"boot": ("hd", "cdrom")}, "boots from hd, cdrom, planned network, hd"),
        (
            {"boot": KernelBoot(kernel=Path("/k"), cmdline="quiet")},
            "boots from /k quiet, planned network, hd",
        ),
        ({"altered": True}, "its definition was changed"),
        ({"leftovers": ("managed save",)}, "managed save left"),
    ],
)
def test_what_a_domain_is_defined_as_is_compared(changes: dict[str, Any], what: str) -> None:
    assert told(with_node(**changes)) == [f"{NODE}: {what}"]


def test_a_change_that_is_named_is_not_told_twice() -> None:
    assert told(with_node(memory_mib=512, altered=True)) == [
        f"{NODE}: memory is 512 MiB, planned 256 MiB"
    ]


@pytest.mark.parametrize(
    ("port", "what"),
    [
        (PortInfo("te1n0e0", tag=42), "tag 42, planned none"),
        (PortInfo("te1n0e0", tag=0), "tag 0, planned none"),
        (PortInfo("te1n0e0", trunks=(1, 2)), "trunks 1, 2, planned none"),
        (PortInfo("te1n0e0", error="no such device"), "Open vSwitch says: no such device"),
    ],
)
def test_vlans_and_errors_of_a_port_are_named(port: PortInfo, what: str) -> None:
    assert told(with_ports("brbm1", {"te1n0e0": port})) == [f"te1n0e0: {what}"]


def test_a_port_that_is_elsewhere_or_nowhere_is_named() -> None:
    good = as_planned()
    nowhere = tuple(
        BridgeInfo(
            each.name, {name: port for name, port in each.ports.items() if name != "te1n0e0"}
        )
        for each in good.wiring.bridges
    )
    assert told(replace(good, wiring=replace(good.wiring, bridges=nowhere))) == [
        "te1n0e0: is on no bridge of ours, planned on brbm1"
    ]
    fenced = wiring_differences(
        PLAN, PLAN.environments[0], Wiring(nowhere, good.wiring.taps), unplugged=False
    )
    assert fenced == ()
    moved = tuple(
        BridgeInfo("brbm2", {**each.ports, "te1n0e0": PortInfo("te1n0e0")})
        if each.name == "brbm2"
        else each
        for each in nowhere
    )
    assert told(replace(good, wiring=replace(good.wiring, bridges=moved))) == [
        "te1n0e0: is on brbm2, planned on brbm1"
    ]


def test_a_tap_that_is_not_there_is_named() -> None:
    good = as_planned()
    wiring = replace(good.wiring, taps=good.wiring.taps - {"te1n0e0"})
    assert told(replace(good, wiring=wiring)) == [
        "te1n0e0: there is no such tap, or it is not marked as ours"
    ]


def test_a_bridge_that_is_not_there_is_named_with_the_ports_that_miss_it() -> None:
    good = as_planned()
    left = tuple(each for each in good.wiring.bridges if each.name != "brbm1")
    assert told(replace(good, wiring=replace(good.wiring, bridges=left))) == [
        "brbm1: is missing, or is not marked as ours",
        "te1s1: is on no bridge of ours, planned on brbm1",
        "te1n0e0: is on no bridge of ours, planned on brbm1",
    ]


@pytest.mark.parametrize(
    ("bridge", "port", "stray"),
    [
        ("brbm1", PortInfo("x"), True),
        ("brbm1", PortInfo("x", ours=True), True),
        ("brbm2", PortInfo("x"), False),
        ("br-ctlplane", PortInfo("x"), False),
        ("br-ctlplane", PortInfo("x", ours=True), True),
    ],
)
def test_a_stray_port_on_the_private_bridge_or_of_ours_on_the_public_one_is_named(
    bridge: str, port: PortInfo, stray: bool
) -> None:
    observed = with_ports(bridge, {"x": port})
    assert told(observed) == ([f"{bridge}: stray port x"] if stray else [])
    found = list(stray_ports(PLAN, PLAN.environments[0], observed.wiring.bridges))
    assert found == ([(bridge, "x")] if stray else [])


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"format": "raw"}, "is raw, planned qcow2"),
        ({"size": 2 * GIB}, f"has {2 * GIB} bytes, planned {GIB}"),
        ({"backing": BASE}, f"is backed by {BASE}, planned nothing"),
    ],
)
def test_what_a_disk_is_made_as_is_compared(changes: dict[str, Any], what: str) -> None:
    assert told(with_disk(**changes)) == [f"/s/disks/{NODE}.qcow2: {what}"]


def test_a_missing_disk_is_named() -> None:
    good = as_planned()
    assert told(replace(good, disks={SEED.disk.path: good.disks[SEED.disk.path]})) == [
        f"/s/disks/{NODE}.qcow2: is missing"
    ]


def test_an_overlay_may_be_larger_than_planned_as_its_base_is_but_not_smaller() -> None:
    good, path = as_planned(), SEED.disk.path
    larger = {**good.disks, path: DiskInfo("qcow2", 3 * GIB, BASE)}
    assert told(replace(good, disks=larger)) == []
    smaller = {**good.disks, path: DiskInfo("qcow2", GIB - 1, BASE)}
    assert told(replace(good, disks=smaller)) == [f"{path}: has {GIB - 1} bytes, planned {GIB}"]
    other = {**good.disks, path: DiskInfo("qcow2", GIB, Path("/mine"))}
    assert told(replace(good, disks=other)) == [f"{path}: is backed by /mine, planned {BASE}"]


def test_a_disk_may_be_on_an_older_copy_of_a_named_image() -> None:
    named = Path("/s/images/base/current")
    seed = SEED.model_copy(update={"disk": SEED.disk.model_copy(update={"base": named})})
    env = PLAN.environments[0].model_copy(update={"seed": seed})
    good = as_planned()

    def told_of(backing: Path | None) -> list[str]:
        disks = {**good.disks, seed.disk.path: DiskInfo("qcow2", GIB, backing)}
        return [str(each) for each in differences(PLAN, env, replace(good, disks=disks))]

    assert told_of(Path("/s/images/base/0a1b")) == []
    for backing in (Path("/s/images/other/0a1b"), None):
        assert told_of(backing) == [
            f"{seed.disk.path}: is backed by {backing or 'nothing'}, planned {named}"
        ]


def test_a_reservation_that_is_missing_or_nobody_planned_is_named() -> None:
    good = as_planned()
    first, second = reservations(PLAN)
    assert told(replace(good, reservations=(second,))) == [
        f"seed_1: {first.address} is not reserved for {first.mac}"
    ]
    stray = Reservation("52:54:00:00:00:01", IPv4Address("203.0.113.7"), "x")
    assert told(replace(good, reservations=(first, second, stray))) == [
        "br-ctlplane: stray reservation of 203.0.113.7 for 52:54:00:00:00:01"
    ]
