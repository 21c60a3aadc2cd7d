"""Guests whose memory is the host's huge pages, which are counted before one is started."""

import pytest

from hosts.plan import plan_host
from schemas.config import HostConfig
from schemas.errors import TooFewHugePages
from schemas.plan import Facts, HostPlan
from tests.contract.rigs import ADDRESS, BRIDGE, HOST, Rig
from tests.contract.test_fence import built

EACH_MIB = 64


def planned(rig: Rig) -> HostPlan:
    """A host with one environment of a seed and two nodes, of EACH_MIB each."""
    image = rig.plant_image("seed.qcow2")
    small = {"memory_mib": EACH_MIB, "disk_gib": 1}
    config = HostConfig.model_validate(
        {
            "host": {"name": HOST, "state_dir": rig.directory},
            "public": {"bridge": BRIDGE, "address": str(ADDRESS), "interface": ""},
            "environments": {
                "count": 1,
                "memory_backing": "hugepages",
                "seed": {**small, "image": image},
                "nodes": small,
            },
        }
    )
    return plan_host(config, Facts(memory_mib=65536, cpus=64, disk_gib=500, hugepages=1000))


def free_mib(rig: Rig) -> int:
    pages = rig.drivers.memory.hugepages()
    return pages.free * pages.size_kib // 1024


def test_a_guest_takes_its_memory_from_the_pages_and_gives_it_back(rig: Rig) -> None:
    rig.reserve_hugepages(4 * EACH_MIB)
    before = free_mib(rig)
    env, builder = built(rig, planned(rig))
    assert free_mib(rig) == before - EACH_MIB
    for node in env.nodes:
        rig.drivers.hypervisor.start_domain(node.name)
    assert free_mib(rig) == before - 3 * EACH_MIB
    assert builder.differences(env)
    builder.fence(env)
    assert free_mib(rig) == before
    builder.turn_over(env)
    assert builder.differences(env) == ()


def test_too_few_free_pages_are_said_before_a_guest_fails_for_them(rig: Rig) -> None:
    rig.reserve_hugepages(4 * EACH_MIB)
    env, builder = built(rig, planned(rig))
    builder.fence(env)
    rig.reserve_hugepages(2 * EACH_MIB)
    with pytest.raises(TooFewHugePages) as caught:
        builder.turn_over(env)
    pages = rig.drivers.memory.hugepages()
    needed = 3 * EACH_MIB * 1024 // pages.size_kib
    assert str(caught.value) == (
        f"{env.id} needs {needed} huge pages, and {pages.free} of {pages.total} are free; "
        f"end what else uses them, or reserve more: sysctl vm.nr_hugepages={needed}"
    )
    assert set(rig.domains().values()) == {False}
    rig.reserve_hugepages(3 * EACH_MIB)
    builder.turn_over(env)
    assert builder.differences(env) == ()
