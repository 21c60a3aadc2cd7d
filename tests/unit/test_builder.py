"""The builder over fake drivers: any start, restart or lease's end leads back to the plan."""

from dataclasses import replace
from pathlib import Path

import pytest

from hosts.builder import Builder, reservations
from hosts.drivers.base import PortInfo
from hosts.drivers.fake import (
    FakeBridge,
    FakeDomain,
    FakeHypervisor,
    FakeMachine,
    fake_drivers,
)
from hosts.plan import plan_host
from schemas.config import HostConfig
from schemas.errors import BridgeError, DiskError, DomainError, ForeignObject
from schemas.plan import Facts, HostPlan

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
    before = (dict(machine.domains), dict(machine.bridges), dict(machine.devices))
    build_all(machine, tmp_path, plan)
    assert (dict(machine.domains), dict(machine.bridges), dict(machine.devices)) == before


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
    with pytest.raises(DomainError, match="virsh destroy seed_1"):
        Builder(plan, restarted, tmp_path).fence(plan.environments[0])


@pytest.mark.parametrize("port", ["te1s0", "te1s1", "te1n0e0", "te1n1e0"])
def test_a_fence_that_stopped_half_way_is_finished_by_the_next_agent(
    machine: FakeMachine, tmp_path: Path, port: str
) -> None:
    plan = planned()
    made = build_all(machine, tmp_path, plan)
    machine.fail_on("remove_port", port, BridgeError(port, "no answer"))
    with pytest.raises(BridgeError):
        made.fence(plan.environments[0])
    machine.heal("remove_port", port)
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


def test_what_is_marked_as_ours_and_no_longer_planned_goes(
    machine: FakeMachine, tmp_path: Path
) -> None:
    build_all(machine, tmp_path, planned(3))
    plan = planned(1)
    build_all(machine, tmp_path, plan)
    assert set(machine.domains) == {domain.name for domain in plan.domains}
    assert set(machine.bridges) == {"br-ctlplane", "brbm1"}
    assert set(machine.bridges["br-ctlplane"].ports) == {"eth1", "te1s0"}
    assert not any(name.startswith(("te2", "te3")) for name in machine.devices)


def test_what_is_not_marked_as_ours_stays(machine: FakeMachine, tmp_path: Path) -> None:
    machine.domains["other"] = FakeDomain(owner="", running=True)
    machine.domains["theirs"] = FakeDomain(owner="te2", running=True)
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
    foreign = machine.domains["seed_1"] = FakeDomain(owner=owner, running=True)
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
