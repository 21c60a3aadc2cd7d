"""An agent that is killed at any step: the next one converges, and leaves nothing behind."""

from pathlib import Path

import pytest

from hosts.builder import Builder
from hosts.drivers.fake import (
    AgentDied,
    FakeMachine,
)
from schemas.plan import Environment, HostPlan
from tests.unit.builder_rig import IMAGE, build_all, builder, everything, planned, redefine


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
