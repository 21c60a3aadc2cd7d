"""What a fence promises of a whole environment, whatever its hypervisor and its switch are."""

import time

from hosts.builder import Builder
from hosts.plan import plan_host
from schemas.config import HostConfig
from schemas.plan import Facts, HostPlan
from tests.contract.frames import hears
from tests.contract.rigs import ADDRESS, BRIDGE, HOST, RealRig, Rig, tool

PORTS = {"te1s0", "te1s1", "te1n0e0", "te1n1e0"}


def planned(rig: Rig) -> HostPlan:
    """A host with one environment of a small seed and two nodes."""
    image = rig.plant_image("seed.qcow2")
    small = {"memory_mib": 64, "disk_gib": 1}
    config = HostConfig.model_validate(
        {
            "host": {"name": HOST, "state_dir": rig.directory},
            "public": {"bridge": BRIDGE, "address": str(ADDRESS), "interface": ""},
            "environments": {"count": 1, "seed": {**small, "image": image}, "nodes": small},
        }
    )
    return plan_host(config, Facts(memory_mib=65536, cpus=64, disk_gib=500))


def plugged(rig: Rig) -> set[str]:
    """The environment's ports that are on any bridge."""
    return set().union(*rig.bridges().values())


def test_a_fenced_environment_is_off_and_unplugged_and_turnover_plugs_it_in(
    rig: Rig,
) -> None:
    plan = planned(rig)
    env, builder = plan.environments[0], Builder(plan, rig.drivers, rig.directory)
    builder.build(env)
    for node in env.nodes:
        rig.drivers.hypervisor.start_domain(node.name)
    assert plugged(rig) == PORTS
    assert set(rig.domains().values()) == {True}
    started = time.monotonic()
    builder.fence(env)
    assert time.monotonic() - started < 1
    assert plugged(rig) == set()
    assert set(rig.domains().values()) == {False}
    assert rig.devices() >= PORTS
    builder.turn_over(env)
    assert plugged(rig) == PORTS
    assert rig.domains() == {env.seed.name: True} | {node.name: False for node in env.nodes}


def test_fencing_again_and_after_half_a_fence_or_half_a_turnover_converges(
    rig: Rig,
) -> None:
    plan = planned(rig)
    env, builder = plan.environments[0], Builder(plan, rig.drivers, rig.directory)
    builder.build(env)
    rig.drivers.switch.remove_port(BRIDGE, "te1s0")
    rig.drivers.hypervisor.power_off_domain(env.seed.name)
    for _ in ("after half a fence", "after a whole one"):
        builder.fence(env)
        assert plugged(rig) == set()
        assert set(rig.domains().values()) == {False}
    rig.drivers.switch.ensure_port(env.bridge, "te1n0e0")
    rig.drivers.hypervisor.remove_domain(env.seed.name)
    restarted = Builder(plan, rig.drivers_of(HOST), rig.directory)
    restarted.fence(env)
    assert plugged(rig) == set()
    restarted.turn_over(env)
    assert plugged(rig) == PORTS
    assert rig.domains()[env.seed.name]


def test_frames_stop_at_the_fence_and_pass_again_after_turnover(
    real: RealRig,
) -> None:
    plan = planned(real)
    env, builder = plan.environments[0], Builder(plan, real.drivers, real.directory)
    builder.build(env)
    tool("ip", "link", "set", env.bridge, "up")
    assert hears(env.bridge, "te1n0e0")
    builder.fence(env)
    assert not hears(env.bridge, "te1n0e0", timeout=0.3)
    assert not hears(BRIDGE, "te1s0", timeout=0.3)
    builder.turn_over(env)
    assert hears(env.bridge, "te1n0e0")
