"""What is held goes on as it is, cut off from outside, whatever hypervisor and switch are."""

from pathlib import Path

from hosts.builder import Builder
from schemas.plan import Environment
from tests.contract.rigs import BRIDGE, RealRig, Rig
from tests.contract.test_fence import PORTS, built

PUBLIC, PRIVATE = {"te1s0"}, PORTS - {"te1s0"}


def in_use(rig: Rig) -> tuple[Environment, Builder]:
    """An environment whose machines all run."""
    env, builder = built(rig)
    for node in env.nodes:
        rig.drivers.hypervisor.start_domain(node.name)
    return env, builder


def leavings(rig: Rig, env: Environment) -> dict[str, object]:
    """Its machines' runs, and on a real host what is on their disks."""

    def written(path: Path) -> object:
        return (
            path.stat().st_mtime_ns if isinstance(rig, RealRig) else rig.drivers.disks.inspect(path)
        )

    return {each.name: (rig.run_of(each.name), written(each.disk.path)) for each in env.domains}


def test_its_machines_run_on_with_their_disks_and_cannot_be_reached(rig: Rig) -> None:
    env, builder = in_use(rig)
    before = leavings(rig, env)
    for _ in ("secluded", "and again"):
        builder.seclude(env)
        assert rig.bridges()[env.bridge] == PRIVATE
        assert not rig.bridges()[BRIDGE] & PORTS
    assert leavings(rig, env) == before
    assert set(rig.domains().values()) == {True}
    assert rig.devices() >= PORTS


def test_ways_out_that_its_holder_has_made_are_closed(rig: Rig) -> None:
    env, builder = in_use(rig)
    rig.drivers.switch.remove_ports(env.bridge, {"te1n0e0"})
    rig.plant_port(BRIDGE, "te1n0e0")
    rig.plant_device("stray")
    rig.plant_port(env.bridge, "stray")
    builder.seclude(env)
    assert not rig.bridges()[BRIDGE] & PORTS
    assert rig.bridges()[env.bridge] == PRIVATE - {"te1n0e0"}


def test_connected_it_can_be_reached_again_until_it_is_secluded(rig: Rig) -> None:
    env, builder = in_use(rig)
    before = leavings(rig, env)
    builder.seclude(env)
    for _ in ("connected", "and again"):
        builder.connect(env)
        assert rig.bridges()[BRIDGE] & PORTS == PUBLIC
        assert rig.bridges()[env.bridge] == PRIVATE
    builder.seclude(env)
    assert not rig.bridges()[BRIDGE] & PORTS
    assert leavings(rig, env) == before


def test_after_its_hold_it_is_made_anew_like_any_other(rig: Rig) -> None:
    env, builder = in_use(rig)
    before = leavings(rig, env)
    builder.seclude(env)
    assert builder.fence(env) == ()
    builder.turn_over(env)
    assert builder.differences(env) == ()
    assert leavings(rig, env) != before
    assert rig.domains() == {env.seed.name: True} | {node.name: False for node in env.nodes}
