"""Building brings a host to its plan, whatever is there, and leaves alone what is not its own."""

from copy import deepcopy
from pathlib import Path
from uuid import uuid4

import pytest

from hosts.drivers.base import DriveInfo, PortInfo
from hosts.drivers.fake import (
    FakeBridge,
    FakeDomain,
    FakeMachine,
    fake_drivers,
)
from hosts.leaks import LOOKS_APART_S, Sweeper
from hosts.verify import reservations
from schemas.errors import (
    DiskError,
    DomainError,
    ForeignObject,
)
from schemas.plan import HostPlan
from tests.unit.builder_rig import IMAGE, build_all, builder, everything, planned, running


@pytest.fixture
def machine() -> FakeMachine:
    return FakeMachine(devices={"eth1": ""}, images={IMAGE})


def somebodys(name: str, owner: str) -> FakeDomain:
    """A running domain that we have not made."""
    plan = planned().environments[0].seed.model_copy(update={"name": name, "uuid": uuid4()})
    return FakeDomain(owner, plan, running=True)


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
