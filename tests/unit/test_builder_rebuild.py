"""The builder over fake drivers: what there was goes, and what is planned anew is made."""

from pathlib import Path

import pytest

from hosts import leaks
from hosts.builder import Builder
from hosts.drivers.fake import AgentDied, FakeMachine, fake_drivers
from hosts.plan import plan_host
from hosts.verify import reservations
from schemas.config import HostConfig
from schemas.errors import DomainError
from schemas.plan import Facts, HostPlan

IMAGE, NEWER = Path("/images/seed.qcow2"), Path("/images/newer.qcow2")
BIG = Facts(memory_mib=65536, cpus=64, disk_gib=500)


def planned(environments: int = 2, image: Path = IMAGE, **nodes: object) -> HostPlan:
    carved = {"count": environments, "seed": {"image": image}, "nodes": nodes}
    config = {"host": {"name": "te1", "state_dir": "/nowhere"}, "environments": carved}
    return plan_host(HostConfig.model_validate(config), BIG)


BEFORE = planned(memory_mib=256)
AFTER = planned(image=NEWER, memory_mib=512, disk_format="raw")


@pytest.fixture
def machine() -> FakeMachine:
    return FakeMachine(images={IMAGE, NEWER})


def built(machine: FakeMachine, plan: HostPlan, tmp_path: Path) -> Builder:
    """All of `plan`, by an agent that has just started."""
    made = Builder(plan, fake_drivers(machine, "te1"), tmp_path)
    for env in plan.environments:
        made.build(env)
    return made


def domains_of(plan: HostPlan, *numbers: int) -> dict[str, object]:
    envs = [env for env in plan.environments if env.number in numbers]
    return {domain.name: domain for env in envs for domain in env.domains}


def defined(machine: FakeMachine) -> dict[str, object]:
    return {name: domain.plan for name, domain in machine.domains.items()}


def test_an_environment_is_made_as_the_new_plan_has_it_and_the_others_are_left_alone(
    machine: FakeMachine, tmp_path: Path
) -> None:
    made = built(machine, BEFORE, tmp_path)
    made.rebuild(AFTER.environments[0])
    assert defined(machine) == domains_of(AFTER, 1) | domains_of(BEFORE, 2)
    assert made.plan.environments == (AFTER.environments[0], BEFORE.environments[1])
    assert machine.domains["seed_1"].running
    for env in made.plan.environments:
        assert made.differences(env) == ()


def test_what_the_new_plan_has_not_is_gone_at_once(machine: FakeMachine, tmp_path: Path) -> None:
    made = built(machine, BEFORE, tmp_path)
    smaller = planned(count=1, disk_format="raw").environments[0]
    made.rebuild(smaller)
    assert set(defined(machine)) == {"seed_1", "baremetalbrbm1_0", *domains_of(BEFORE, 2)}
    assert set(machine.bridges["brbm1"].ports) == {"te1s1", "te1n0e0"}
    assert "te1n1e0" not in machine.devices
    assert {path.name for path in machine.disks} == {
        "seed_1.qcow2",
        "baremetalbrbm1_0.raw",
        *(each.disk.path.name for each in BEFORE.environments[1].domains),
    }


def test_a_new_one_is_made_beside_the_others_and_a_surplus_one_is_gone(
    machine: FakeMachine, tmp_path: Path
) -> None:
    made = built(machine, BEFORE, tmp_path)
    third = planned(3).environments[2]
    made.build(third)
    assert set(machine.reservations) == set(reservations(planned(3)))
    made.remove(BEFORE.environments[0])
    left = HostPlan.model_validate(BEFORE.model_dump() | {"environments": ()})
    left = left.with_environment(third).with_environment(BEFORE.environments[1])
    assert defined(machine) == {domain.name: domain for domain in left.domains}
    assert set(machine.disks) == {domain.disk.path for domain in left.domains}
    assert set(machine.bridges) == {"br-ctlplane", "brbm2", "brbm3"}
    assert not any(name.startswith("te1") for name in machine.devices)
    assert made.plan == left
    assert set(machine.reservations) == set(reservations(left))
    assert [made.differences(env) for env in left.environments] == [(), ()]


def test_what_can_t_be_removed_is_not_planned_all_the_same(
    machine: FakeMachine, tmp_path: Path
) -> None:
    made = built(machine, BEFORE, tmp_path)
    machine.fail_on("remove_domain", "seed_1", DomainError("seed_1", "stuck"))
    with pytest.raises(DomainError):
        made.remove(BEFORE.environments[0])
    assert made.plan.environments == BEFORE.environments[1:]


def test_a_rebuild_that_failed_is_made_good_by_building(
    machine: FakeMachine, tmp_path: Path
) -> None:
    made = built(machine, BEFORE, tmp_path)
    machine.fail_on("start_domain", "seed_1", DomainError("seed_1", "not now"))
    with pytest.raises(DomainError):
        made.rebuild(AFTER.environments[0])
    machine.heal("start_domain", "seed_1")
    made.build(AFTER.environments[0])
    assert defined(machine) == domains_of(AFTER, 1) | domains_of(BEFORE, 2)


def test_an_agent_killed_at_any_step_of_a_rebuild_is_converged_by_the_next(tmp_path: Path) -> None:
    clean = FakeMachine(images={IMAGE, NEWER})
    built(clean, AFTER, tmp_path)
    trial = FakeMachine(images={IMAGE, NEWER})
    made = built(trial, BEFORE, tmp_path)
    before = trial.calls
    made.rebuild(AFTER.environments[0])
    for step in range(trial.calls - before):
        machine = FakeMachine(images={IMAGE, NEWER})
        made = built(machine, BEFORE, tmp_path)
        machine.kill_agent(after=step)
        with pytest.raises(AgentDied):
            made.rebuild(AFTER.environments[0])
        machine.start_agent()
        made = built(machine, AFTER, tmp_path)
        assert defined(machine) == defined(clean), f"killed after {step} calls"
        assert made.differences(AFTER.environments[0]) == ()


def test_what_a_lease_of_before_was_given_goes_only_after_its_own_turnover(
    machine: FakeMachine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leaks, "LOOKS_APART_S", 0)
    built(machine, BEFORE, tmp_path)
    leased, free = planned(count=1).environments
    restarted = Builder(planned(count=1), fake_drivers(machine, "te1"), tmp_path)
    restarted.build(free)
    for _ in range(3):
        restarted.sweep()
    assert "baremetalbrbm1_1" in machine.domains
    assert "baremetalbrbm2_1" not in machine.domains
    restarted.fence(leased)
    restarted.turn_over(leased)
    for _ in range(2):
        restarted.sweep()
    assert "baremetalbrbm1_1" not in machine.domains
    assert "te1n1e0" not in machine.devices
