"""Builders over a machine of fakes."""

from pathlib import Path

from hosts.builder import Builder
from hosts.drivers.fake import (
    FakeMachine,
    fake_drivers,
)
from hosts.plan import plan_host
from schemas.config import HostConfig
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


def redefine(machine: FakeMachine, name: str, **changes: object) -> None:
    """As `virsh edit` does."""
    domain = machine.domains[name]
    domain.plan = domain.plan.model_copy(update=changes)


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
