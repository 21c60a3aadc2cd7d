"""The builder over fake drivers: any start, restart or lease's end leads back to the plan."""

import threading
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from uuid import uuid4

import pytest

from hosts.builder import Builder
from hosts.drivers.base import DriveInfo, PortInfo
from hosts.drivers.fake import (
    AgentDied,
    FakeBridge,
    FakeDisks,
    FakeDomain,
    FakeHypervisor,
    FakeMachine,
    fake_drivers,
)
from hosts.leaks import LOOKS_APART_S, Sweeper
from hosts.plan import plan_host
from hosts.verify import Difference, reservations
from schemas.config import HostConfig
from schemas.errors import (
    BridgeError,
    DiskError,
    DomainError,
    EnvironmentDiffers,
    ForeignObject,
    HostError,
    HypervisorError,
)
from schemas.plan import Disk, Domain, Environment, Facts, HostPlan

IMAGE = Path("/images/seed.qcow2")
BIG = Facts(memory_mib=65536, cpus=64, disk_gib=500)


def planned(count: int = 2) -> HostPlan:
    config = HostConfig.model_validate(
        {
            "host": {"name": "te1", "state_dir": "/nowhere"},
            "public": {"interface": "eth1"},
            "environments": {"count": count, "seed": {"image": IMAGE}},
        }
    )
    return plan_host(config, BIG)


@pytest.fixture
def machine() -> FakeMachine:
    return FakeMachine(devices={"eth1": ""}, images={IMAGE})


def builder(machine: FakeMachine, tmp_path: Path, plan: HostPlan) -> Builder:
    """A builder as an agent that has just started has it."""
    return Builder(plan, fake_drivers(machine, "te1"), tmp_path)


def build_all(machine: FakeMachine, tmp_path: Path, plan: HostPlan) -> Builder:
    made = builder(machine, tmp_path, plan)
    for env in plan.environments:
        made.build(env)
    return made


def running(machine: FakeMachine) -> set[str]:
    return {name for name, domain in machine.domains.items() if domain.running}


def somebodys(name: str, owner: str) -> FakeDomain:
    """A running domain that we have not made."""
    plan = planned().environments[0].seed.model_copy(update={"name": name, "uuid": uuid4()})
    return FakeDomain(owner, plan, running=True)


class Undead(FakeHypervisor):
    """A hypervisor on which somebody starts again what is powered off."""

    def power_off_domain(self, name: str) -> None:
        super().power_off_domain(name)
        self.start_domain(name)


def test_everything_planned_is_there_and_only_seeds_run(
    machine: FakeMachine, tmp_path: Path
) -> None:
    plan = planned()
    build_all(machine, tmp_path, plan)
    assert {name: domain.plan for name, domain in machine.domains.items()} == {
        domain.name: domain for domain in plan.domains
    }
    assert running(machine) == {"seed_1", "seed_2"}
    assert set(machine.bridges["br-ctlplane"].ports) == {"eth1", "te1s0", "te2s0"}
    assert set(machine.bridges["brbm1"].ports) == {"te1s1", "te1n0e0", "te1n1e0"}
    assert set(machine.disks) == {domain.disk.path for domain in plan.domains}
    assert machine.addresses == {plan.public.address: "br-ctlplane"}


def test_each_seed_s_address_is_reserved_for_its_mac_before_it_is_started(
    machine: FakeMachine, tmp_path: Path
) -> None:
    plan = planned()
    machine.fail_on("start_domain", "seed_1", DomainError("seed_1", "not yet"))
    with pytest.raises(DomainError):
        builder(machine, tmp_path, plan).build(plan.environments[0])
    assert machine.reservations == reservations(plan)
    seed = plan.environments[0].seed.nics[0]
    first = machine.reservations[0]
    assert (first.mac, first.address) == (seed.mac, seed.address)


def test_building_again_changes_nothing(machine: FakeMachine, tmp_path: Path) -> None:
    plan = planned()
    build_all(machine, tmp_path, plan)
    before = deepcopy(everything(machine))
    build_all(machine, tmp_path, plan)
    assert everything(machine) == before


def test_a_power_cut_is_healed_by_building(machine: FakeMachine, tmp_path: Path) -> None:
    plan = planned()
    build_all(machine, tmp_path, plan)
    before = dict(machine.devices)
    machine.power_cut()
    build_all(machine, tmp_path, plan)
    assert machine.devices == before
    assert machine.domains["seed_1"].running
    assert machine.reservations == reservations(plan)


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


def test_turnover_brings_back_what_all_environments_share(
    machine: FakeMachine, tmp_path: Path
) -> None:
    """A dnsmasq that was killed, a public bridge that somebody deleted."""
    plan = planned()
    made = build_all(machine, tmp_path, plan)
    machine.reservations = ()
    machine.bridges["br-ctlplane"].ports.clear()
    machine.addresses.clear()
    made.turn_over(plan.environments[0])
    assert machine.reservations == reservations(plan)
    assert set(machine.bridges["br-ctlplane"].ports) == {"eth1", "te1s0"}
    assert machine.addresses == {plan.public.address: "br-ctlplane"}


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


def test_a_failure_breaks_one_environment_and_a_retry_finishes_it(
    machine: FakeMachine, tmp_path: Path
) -> None:
    plan = planned()
    machine.fail_on("ensure_domain", "seed_1", DomainError("seed_1", "no memory"))
    made = builder(machine, tmp_path, plan)
    with pytest.raises(DomainError):
        made.build(plan.environments[0])
    made.build(plan.environments[1])
    assert machine.domains["seed_2"].running
    machine.heal("ensure_domain", "seed_1")
    made.build(plan.environments[0])
    assert machine.domains["seed_1"].running


def test_what_is_not_marked_as_ours_stays(machine: FakeMachine, tmp_path: Path) -> None:
    machine.domains["other"] = somebodys("other", owner="")
    machine.domains["theirs"] = somebodys("theirs", owner="te2")
    machine.bridges["br-other"] = FakeBridge(owner="")
    machine.devices["br-other"] = machine.devices["tap9"] = ""
    plan = planned()
    build_all(machine, tmp_path, plan).destroy()
    assert set(machine.domains) == {"other", "theirs"}
    assert all(domain.running for domain in machine.domains.values())
    assert set(machine.bridges) == {"br-other"}
    assert set(machine.devices) == {"eth1", "br-other", "tap9"}


@pytest.mark.parametrize("owner", ["", "te2"])
def test_a_domain_with_our_name_that_is_not_ours_is_refused_and_not_touched(
    machine: FakeMachine, tmp_path: Path, owner: str
) -> None:
    foreign = machine.domains["seed_1"] = somebodys("seed_1", owner)
    plan = planned()
    with pytest.raises(ForeignObject, match="domain seed_1: this domain exists"):
        builder(machine, tmp_path, plan).build(plan.environments[0])
    assert machine.domains["seed_1"] is foreign
    assert foreign.running


def test_a_missing_image_is_named(machine: FakeMachine, tmp_path: Path) -> None:
    machine.images.clear()
    plan = planned()
    with pytest.raises(DiskError, match=str(IMAGE)):
        builder(machine, tmp_path, plan).build(plan.environments[0])


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


def redefine(machine: FakeMachine, name: str, **changes: object) -> None:
    """As `virsh edit` does."""
    domain = machine.domains[name]
    domain.plan = domain.plan.model_copy(update=changes)


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


def everything(machine: FakeMachine) -> tuple[object, ...]:
    """All that there is, but for what only says how it came about."""
    return (
        {name: (each.plan, each.running) for name, each in machine.domains.items()},
        machine.bridges,
        machine.devices,
        machine.addresses,
        machine.disks,
        machine.used,
        set(machine.reservations),
    )


def life(made: Builder, plan: HostPlan) -> None:
    """Both environments are made, and the first is given back after a lease."""
    for env in plan.environments:
        made.build(env)
    end_lease(made, plan.environments[0])


def end_lease(made: Builder, env: Environment) -> None:
    made.fence(env, "lease")
    made.turn_over(env)


def test_an_agent_killed_at_any_step_is_converged_by_the_next(tmp_path: Path) -> None:
    plan = planned()
    clean = FakeMachine(devices={"eth1": ""}, images={IMAGE})
    life(builder(clean, tmp_path / "clean", plan), plan)
    for step in range(clean.calls):
        machine = FakeMachine(devices={"eth1": ""}, images={IMAGE})
        machine.kill_agent(after=step)
        with pytest.raises(AgentDied):
            life(builder(machine, tmp_path / str(step), plan), plan)
        machine.start_agent()
        build_all(machine, tmp_path / str(step), plan)
        assert everything(machine) == everything(clean), f"killed after {step} calls"


def test_a_fence_and_turnover_killed_at_any_step_are_finished_by_the_next_agent(
    tmp_path: Path,
) -> None:
    plan = planned(1)
    [env] = plan.environments
    clean = FakeMachine(devices={"eth1": ""}, images={IMAGE})
    made = build_all(clean, tmp_path / "clean", plan)
    before = clean.calls
    end_lease(made, env)
    for step in range(clean.calls - before):
        machine = FakeMachine(devices={"eth1": ""}, images={IMAGE})
        made = build_all(machine, tmp_path / str(step), plan)
        redefine(machine, "seed_1", memory_mib=1024)
        machine.kill_agent(after=step)
        with pytest.raises(AgentDied):
            end_lease(made, env)
        machine.start_agent()
        end_lease(builder(machine, tmp_path / str(step), plan), env)
        assert everything(machine) == everything(clean), f"killed after {step} calls"


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


def swept(machine: FakeMachine, tmp_path: Path, plan: HostPlan, *times: float) -> None:
    """Leaks are looked for at these times."""
    directories = (tmp_path / "disks", tmp_path / "console")
    sweeper = Sweeper(plan, fake_drivers(machine, "te1"), directories)
    for now in times:
        sweeper.sweep(now)


def test_what_is_ours_and_no_longer_planned_goes_once_it_was_seen_twice(
    machine: FakeMachine, tmp_path: Path
) -> None:
    build_all(machine, tmp_path, planned(3))
    leaked = tmp_path / "disks" / "seed_3.qcow2"
    leaked.touch()
    plan = planned(1)
    build_all(machine, tmp_path, plan)
    swept(machine, tmp_path, plan, 0, LOOKS_APART_S / 2)
    assert set(machine.bridges) == {"br-ctlplane", "brbm1", "brbm2", "brbm3"}
    assert leaked.exists()
    swept(machine, tmp_path, plan, 0, LOOKS_APART_S)
    assert set(machine.domains) == {domain.name for domain in plan.domains}
    assert set(machine.bridges) == {"br-ctlplane", "brbm1"}
    assert set(machine.bridges["br-ctlplane"].ports) == {"eth1", "te1s0"}
    assert not any(name.startswith(("te2", "te3")) for name in machine.devices)
    assert not leaked.exists()


def test_what_a_holder_has_plugged_in_attached_or_renamed_is_no_leak(
    machine: FakeMachine, tmp_path: Path
) -> None:
    plan = planned(1)
    build_all(machine, tmp_path, plan)
    extra = tmp_path / "disks" / "extra.qcow2"
    extra.touch()
    machine.domains["baremetalbrbm1_0"].drives = (DriveInfo(extra, "qcow2"),)
    machine.bridges["brbm1"].ports["stray"] = PortInfo("stray")
    machine.domains["mine"] = machine.domains.pop("seed_1")
    swept(machine, tmp_path, plan, 0, LOOKS_APART_S)
    assert running(machine) == {"mine"}
    assert extra.exists()
    assert "stray" in machine.bridges["brbm1"].ports


def test_a_leak_that_cannot_be_removed_does_not_keep_the_others(
    machine: FakeMachine, tmp_path: Path
) -> None:
    build_all(machine, tmp_path, planned(2))
    plan = planned(1)
    machine.fail_on("remove_domain", "seed_2", DomainError("seed_2", "stuck"))
    swept(machine, tmp_path, plan, 0, LOOKS_APART_S)
    assert "seed_2" in machine.domains
    assert "brbm2" not in machine.bridges


def test_destroy_leaves_no_trace_and_gives_the_nic_its_address(
    machine: FakeMachine, tmp_path: Path
) -> None:
    plan = planned()
    made = build_all(machine, tmp_path, plan)
    made.destroy()
    assert machine == FakeMachine(
        devices={"eth1": ""},
        images={IMAGE},
        addresses={plan.public.address: "eth1"},
        disks=machine.disks,
        used=machine.used,
    )
    assert list(tmp_path.iterdir()) == []
