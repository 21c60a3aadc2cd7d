"""What a fence promises of a whole environment, whatever its hypervisor and its switch are."""

import threading
import time
from collections.abc import Callable
from dataclasses import fields
from typing import Any, cast

import pytest

from hosts.builder import Builder
from hosts.drivers.base import Drivers
from hosts.drivers.fake import AgentDied
from hosts.plan import plan_host
from schemas.config import HostConfig
from schemas.plan import Environment, Facts, HostPlan
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


def built(rig: Rig, plan: HostPlan | None = None) -> tuple[Environment, Builder]:
    """The one environment of `plan`, by default the small one, made; and what has made it."""
    plan = plan or planned(rig)
    env, builder = plan.environments[0], Builder(plan, rig.drivers, rig.directory)
    builder.build(env)
    return env, builder


def plugged(rig: Rig) -> set[str]:
    """The environment's ports that are on any bridge."""
    return set().union(*rig.bridges().values())


def test_a_fenced_environment_is_off_and_unplugged_and_turnover_plugs_it_in(
    rig: Rig,
) -> None:
    env, builder = built(rig)
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
    rig.drivers.switch.remove_ports(BRIDGE, {"te1s0"})
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


def test_what_a_holder_has_changed_is_told_by_the_fence_and_gone_after_turnover(
    rig: Rig,
) -> None:
    env, builder = built(rig)
    assert builder.differences(env) == ()
    rig.set_memory(env.nodes[0].name, 96)
    rig.set_autostart(env.nodes[1].name)
    rig.set_vlans("te1n0e0", 42, ())
    rig.plant_device("stray")
    rig.plant_port(env.bridge, "stray")
    assert set(map(str, builder.fence(env))) == {
        f"{env.nodes[0].name}: memory is 96 MiB, planned 64 MiB",
        f"{env.nodes[1].name}: autostart left",
        "te1n0e0: tag 42, planned none",
        f"{env.bridge}: stray port stray",
    }
    builder.turn_over(env)
    assert builder.differences(env) == ()
    assert plugged(rig) == PORTS


def test_a_fence_and_turnover_killed_half_way_are_finished_by_the_next_agent(
    real: RealRig,
) -> None:
    plan = planned(real)
    [env] = plan.environments
    Builder(plan, real.drivers, real.directory).build(env)
    whole = (real.domains(), real.bridges(), real.devices())
    for verb in ("remove_ports", "ensure_port", "ensure_domain"):
        dying = Builder(plan, dying_at(real.drivers, verb), real.directory)
        with pytest.raises(AgentDied):
            end_lease(dying, env)
        builder = Builder(plan, real.drivers, real.directory)
        end_lease(builder, env)
        assert (real.domains(), real.bridges(), real.devices()) == whole
        assert builder.differences(env) == ()


def end_lease(builder: Builder, env: Environment) -> None:
    builder.fence(env)
    builder.turn_over(env)


def dying_at(drivers: Drivers, verb: str) -> Drivers:
    """Drivers that do nothing from the first call of `verb` on."""
    dead = threading.Event()

    class Dying:
        def __init__(self, driver: object) -> None:
            self._driver = driver

        def __getattr__(self, name: str) -> Callable[..., object]:
            def call(*arguments: object) -> object:
                if name == verb:
                    dead.set()
                if dead.is_set():
                    raise AgentDied(f"before {name}")
                result: object = getattr(self._driver, name)(*arguments)
                return result

            return call

    return Drivers(*(cast("Any", Dying(getattr(drivers, each.name))) for each in fields(drivers)))


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
    tool("ovs-ofctl", "add-flow", env.bridge, "priority=9,actions=drop")
    builder.turn_over(env)
    tool("ip", "link", "set", env.bridge, "up")
    assert hears(env.bridge, "te1n0e0")
