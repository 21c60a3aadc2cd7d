"""A lease's end: the fence, what it tells of the holder, and a turnover that is verified."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from hosts.builder import Builder
from hosts.drivers.base import PortInfo
from hosts.drivers.fake import (
    FakeDisks,
    FakeHypervisor,
    FakeMachine,
    fake_drivers,
)
from hosts.verify import Difference
from schemas.errors import (
    BridgeError,
    DomainError,
    EnvironmentDiffers,
    HostError,
    HypervisorError,
)
from schemas.plan import Disk, Domain, HostPlan
from tests.unit.builder_rig import IMAGE, build_all, builder, planned, redefine, running


@pytest.fixture
def machine() -> FakeMachine:
    return FakeMachine(devices={"eth1": ""}, images={IMAGE})


class Undead(FakeHypervisor):
    """A hypervisor on which somebody starts again what is powered off."""

    def power_off_domain(self, name: str) -> None:
        super().power_off_domain(name)
        self.start_domain(name)


def test_a_fenced_environment_is_off_and_on_no_bridge(machine: FakeMachine, tmp_path: Path) -> None:
    plan = planned()
    made = build_all(machine, tmp_path, plan)
    machine.domains["baremetalbrbm1_0"].running = True
    before = dict(machine.devices)
    for _ in ("once", "and again"):
        made.fence(plan.environments[0])
        assert running(machine) == {"seed_2"}
        assert set(machine.bridges["br-ctlplane"].ports) == {"eth1", "te2s0"}
        assert set(machine.bridges["brbm1"].ports) == set()
        assert set(machine.bridges["brbm2"].ports) == {"te2s1", "te2n0e0", "te2n1e0"}
    assert machine.devices == before


def test_a_port_that_was_moved_to_another_bridge_is_fenced_there(
    machine: FakeMachine, tmp_path: Path
) -> None:
    plan = planned()
    made = build_all(machine, tmp_path, plan)
    machine.bridges["brbm2"].ports["te1n0e0"] = machine.bridges["brbm1"].ports.pop("te1n0e0")
    made.fence(plan.environments[0])
    assert set(machine.bridges["brbm2"].ports) == {"te2s1", "te2n0e0", "te2n1e0"}


def test_turnover_plugs_in_what_the_fence_unplugged(machine: FakeMachine, tmp_path: Path) -> None:
    plan = planned()
    made = build_all(machine, tmp_path, plan)
    before = {name: set(bridge.ports) for name, bridge in machine.bridges.items()}
    made.fence(plan.environments[0])
    made.turn_over(plan.environments[0])
    assert {name: set(bridge.ports) for name, bridge in machine.bridges.items()} == before
    assert running(machine) == {"seed_1", "seed_2"}


def test_a_domain_that_does_not_go_off_is_unplugged_all_the_same(
    machine: FakeMachine, tmp_path: Path
) -> None:
    plan = planned()
    made = build_all(machine, tmp_path, plan)
    machine.domains["baremetalbrbm1_0"].running = True
    machine.fail_on("power_off_domain", "seed_1", DomainError("seed_1", "stuck"))
    with pytest.raises(DomainError, match="stuck"):
        made.fence(plan.environments[0])
    assert running(machine) == {"seed_1", "seed_2"}
    assert set(machine.bridges["br-ctlplane"].ports) == {"eth1", "te2s0"}
    assert set(machine.bridges["brbm1"].ports) == set()
    machine.heal("power_off_domain", "seed_1")
    made.fence(plan.environments[0])
    assert running(machine) == {"seed_2"}


def test_a_domain_that_somebody_starts_again_is_no_fence(
    machine: FakeMachine, tmp_path: Path
) -> None:
    plan = planned()
    build_all(machine, tmp_path, plan)
    drivers = fake_drivers(machine, "te1")
    restarted = replace(drivers, hypervisor=Undead(machine, "te1"))
    with pytest.raises(DomainError, match=r"virsh destroy (seed_1|baremetalbrbm1_\d)"):
        Builder(plan, restarted, tmp_path).fence(plan.environments[0])


@pytest.mark.parametrize("port", ["te1s0", "te1s1", "te1n0e0", "te1n1e0"])
def test_a_fence_that_stopped_half_way_is_finished_by_the_next_agent(
    machine: FakeMachine, tmp_path: Path, port: str
) -> None:
    plan = planned()
    made = build_all(machine, tmp_path, plan)
    machine.fail_on("remove_ports", port, BridgeError(port, "no answer"))
    with pytest.raises(BridgeError):
        made.fence(plan.environments[0])
    machine.heal("remove_ports", port)
    builder(machine, tmp_path, plan).fence(plan.environments[0])
    assert set(machine.bridges["br-ctlplane"].ports) == {"eth1", "te2s0"}
    assert set(machine.bridges["brbm1"].ports) == set()


@pytest.mark.parametrize(
    ("verb", "name"),
    [("ensure_port", "te1n0e0"), ("ensure_domain", "seed_1"), ("start_domain", "seed_1")],
)
def test_a_turnover_that_stopped_half_way_is_fenced_and_finished_by_the_next_agent(
    machine: FakeMachine, tmp_path: Path, verb: str, name: str
) -> None:
    plan = planned()
    made = build_all(machine, tmp_path, plan)
    whole = {name: set(bridge.ports) for name, bridge in machine.bridges.items()}
    made.fence(plan.environments[0])
    machine.fail_on(verb, name, DomainError(name, "the agent died here"))
    with pytest.raises(DomainError):
        made.turn_over(plan.environments[0])
    machine.heal(verb, name)
    again = builder(machine, tmp_path, plan)
    again.fence(plan.environments[0])
    assert set(machine.bridges["brbm1"].ports) == set()
    again.turn_over(plan.environments[0])
    assert {name: set(bridge.ports) for name, bridge in machine.bridges.items()} == whole
    assert running(machine) == {"seed_1", "seed_2"}


def test_turnover_makes_used_disks_fresh_and_powers_nodes_off(
    machine: FakeMachine, tmp_path: Path
) -> None:
    plan = planned()
    made = build_all(machine, tmp_path, plan)
    env = plan.environments[0]
    node = machine.domains["baremetalbrbm1_0"]
    node.running = True
    machine.used.add(env.nodes[0].disk.path)
    machine.bridges["brbm1"].ports["te1n0e0"] = PortInfo("te1n0e0", tag=42)
    made.turn_over(env)
    assert not node.running
    assert env.nodes[0].disk.path not in machine.used
    assert machine.bridges["brbm1"].ports["te1n0e0"].tag is None


def test_turnover_of_one_environment_leaves_the_other_s_lease_alone(
    machine: FakeMachine, tmp_path: Path
) -> None:
    plan = planned()
    made = build_all(machine, tmp_path, plan)
    machine.domains["baremetalbrbm2_0"].running = True
    machine.used.add(plan.environments[1].nodes[0].disk.path)
    made.turn_over(plan.environments[0])
    assert machine.domains["baremetalbrbm2_0"].running
    assert plan.environments[1].nodes[0].disk.path in machine.used


def test_disks_are_not_touched_before_their_domains_are_off(
    machine: FakeMachine, tmp_path: Path
) -> None:
    plan = planned()
    made = build_all(machine, tmp_path, plan)
    env = plan.environments[0]
    machine.used.add(env.nodes[1].disk.path)
    machine.fail_on("power_off_domain", env.nodes[1].name, DomainError(env.nodes[1].name, "stuck"))
    with pytest.raises(DomainError):
        made.turn_over(env)
    assert env.nodes[1].disk.path in machine.used


@dataclass
class Hanging(FakeHypervisor):
    """A hypervisor that does not come back with one domain until it is told to."""

    hung: threading.Event = field(default_factory=threading.Event)

    def remove_domain(self, name: str) -> None:
        if name == "seed_1":
            self.hung.wait(timeout=30)
        super().remove_domain(name)


def test_a_turnover_that_hangs_does_not_keep_another_environment_s(
    machine: FakeMachine, tmp_path: Path
) -> None:
    plan = planned()
    hypervisor = Hanging(machine, "te1")
    made = Builder(plan, replace(fake_drivers(machine, "te1"), hypervisor=hypervisor), tmp_path)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(made.build, plan.environments[0])
        pool.submit(made.build, plan.environments[1]).result(timeout=10)
        assert not first.done()
        with pytest.raises(HostError, match="te1/1: an earlier step has not come back"):
            made.build(plan.environments[0])
        hypervisor.hung.set()
        first.result(timeout=10)
    assert running(machine) == {"seed_1", "seed_2"}


def test_a_fence_tells_what_the_holder_has_changed(machine: FakeMachine, tmp_path: Path) -> None:
    plan = planned()
    made = build_all(machine, tmp_path, plan)
    redefine(machine, "baremetalbrbm1_0", memory_mib=512)
    machine.domains["baremetalbrbm1_1"].leftovers = ("managed save",)
    del machine.domains["seed_1"]
    machine.bridges["brbm1"].ports["te1n0e0"] = PortInfo("te1n0e0", tag=42, ours=True)
    machine.bridges["brbm1"].ports["stray"] = PortInfo("stray")
    assert set(map(str, made.fence(plan.environments[0]))) == {
        "seed_1: is missing",
        "baremetalbrbm1_0: memory is 512 MiB, planned 256 MiB",
        "baremetalbrbm1_1: managed save left",
        "te1n0e0: tag 42, planned none",
        "brbm1: stray port stray",
    }


def test_a_fence_of_what_was_only_used_tells_nothing(machine: FakeMachine, tmp_path: Path) -> None:
    plan = planned()
    made = build_all(machine, tmp_path, plan)
    machine.domains["baremetalbrbm1_0"].running = True
    machine.domains["seed_1"].running = False
    assert made.fence(plan.environments[0]) == ()


def test_a_look_that_fails_does_not_stop_a_fence(machine: FakeMachine, tmp_path: Path) -> None:
    plan = planned()
    made = build_all(machine, tmp_path, plan)
    machine.bridges["brbm1"].ports["stray"] = PortInfo("stray")
    machine.fail_on("inspect_domain", "seed_1", HypervisorError("qemu:///system", "no answer"))
    assert made.fence(plan.environments[0]) == (Difference("brbm1", "stray port stray"),)
    assert running(machine) == {"seed_2"}


def test_a_domain_that_its_holder_renamed_does_not_survive_the_fence(
    machine: FakeMachine, tmp_path: Path
) -> None:
    plan = planned()
    made = build_all(machine, tmp_path, plan)
    machine.domains["mine"] = machine.domains.pop("seed_1")
    made.fence(plan.environments[0])
    assert running(machine) == {"seed_2"}
    made.turn_over(plan.environments[0])
    assert set(machine.domains) == {domain.name for domain in plan.domains}


def test_turnover_undoes_all_that_can_be_seen(machine: FakeMachine, tmp_path: Path) -> None:
    plan = planned()
    made = build_all(machine, tmp_path, plan)
    env = plan.environments[0]
    redefine(machine, "baremetalbrbm1_0", memory_mib=512, cpus=2, boot="disk")
    machine.domains["baremetalbrbm1_1"].leftovers = ("snapshots", "NVRAM", "autostart")
    machine.bridges["brbm1"].ports["stray"] = PortInfo("stray")
    machine.bridges["br-ctlplane"].ports["te9s0"] = PortInfo("te9s0", ours=True)
    machine.bridges["br-ctlplane"].ports["eth7"] = PortInfo("eth7")
    made.fence(env)
    made.turn_over(env)
    assert made.differences(env) == ()
    assert "stray" not in machine.bridges["brbm1"].ports
    assert set(machine.bridges["br-ctlplane"].ports) == {"eth1", "te1s0", "te2s0", "eth7"}


class Forgetful(FakeDisks):
    """Makes disks in the wrong size, as often as it was told to."""

    lapses = 0

    def make_fresh(self, disk: Disk) -> None:
        super().make_fresh(disk)
        if disk.base is None and self.lapses:
            self.lapses -= 1
            self.machine.disks[disk.path] = disk.model_copy(update={"size_gib": 9})


def forgetful(machine: FakeMachine, tmp_path: Path, plan: HostPlan, lapses: int) -> Builder:
    disks = Forgetful(machine)
    disks.lapses = lapses
    return Builder(plan, replace(fake_drivers(machine, "te1"), disks=disks), tmp_path)


def test_a_difference_is_repaired_once(machine: FakeMachine, tmp_path: Path) -> None:
    plan = planned()
    made = forgetful(machine, tmp_path, plan, lapses=1)
    made.build(plan.environments[0])
    assert made.differences(plan.environments[0]) == ()


def test_a_difference_that_stays_is_an_error_that_names_it(
    machine: FakeMachine, tmp_path: Path
) -> None:
    plan = planned()
    made = forgetful(machine, tmp_path, plan, lapses=4)
    with pytest.raises(EnvironmentDiffers, match=r"te1/1 .*baremetalbrbm1_0.*has 9663676416 bytes"):
        made.build(plan.environments[0])


def test_an_offered_environment_has_its_seed_running_and_its_nodes_off(
    machine: FakeMachine, tmp_path: Path
) -> None:
    plan = planned()
    made = build_all(machine, tmp_path, plan)
    machine.domains["seed_1"].running = False
    machine.domains["baremetalbrbm1_0"].running = True
    assert made.differences(plan.environments[0]) == (
        Difference("seed_1", "is off, planned running"),
        Difference("baremetalbrbm1_0", "is running, planned off"),
    )


def say(domain: Domain, text: str) -> None:
    domain.console.parent.mkdir(parents=True, exist_ok=True)
    domain.console.write_text(text)


def with_consoles(plan: HostPlan, directory: Path) -> HostPlan:
    """`plan` with its consoles in `directory`."""
    moved = plan.model_dump()
    for env in moved["environments"]:
        for domain in (env["seed"], *env["nodes"]):
            domain["console"] = directory / "console" / domain["console"].name
    return HostPlan.model_validate(moved)


def test_turnover_keeps_the_consoles_of_a_lease_and_begins_new_ones(
    machine: FakeMachine, tmp_path: Path
) -> None:
    plan = with_consoles(planned(1), tmp_path)
    [env] = plan.environments
    made = build_all(machine, tmp_path, plan)
    say(env.seed, "booted")
    made.fence(env, "lease1")
    say(env.seed, "a boot after the lease")
    made.fence(env, "lease1")
    made.turn_over(env)
    assert not env.seed.console.exists()
    kept = tmp_path / "console" / "kept" / "1" / "lease1"
    assert [path.read_text() for path in kept.iterdir()] == ["booted"]
