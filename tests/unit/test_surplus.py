"""What is in use, and in no plan."""

from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest

from hosts.journal import Journal
from hosts.plan import plan_environment, plan_host
from hosts.surplus import surplus
from schemas.config import HostConfig
from schemas.plan import Facts
from schemas.status import EnvState

CONFIG = HostConfig.model_validate({"host": {"name": "te1"}, "environments": {"count": 1}})
PLAN = plan_host(CONFIG, Facts(memory_mib=4096, cpus=8, disk_gib=100))


@pytest.mark.parametrize(
    ("env_id", "state", "numbers"),
    [
        ("te1/1", EnvState.LEASED, []),
        ("te1/2", EnvState.LEASED, [2]),
        ("te1/2", EnvState.HELD, [2]),
        ("te1/2", EnvState.READY, []),
        ("te1/2", EnvState.DIRTY, []),
        ("te2/2", EnvState.LEASED, []),
        ("te1/x", EnvState.LEASED, []),
        ("te1/02", EnvState.LEASED, []),
    ],
)
async def test_only_what_is_in_use_and_not_planned_is_surplus(
    tmp_path: Path, env_id: str, state: EnvState, numbers: list[int]
) -> None:
    async with Journal.open(tmp_path / "journal.db", now=partial(datetime.now, UTC)) as journal:
        await journal.move(env_id, state)
        found = surplus(CONFIG, PLAN, journal.path)
    assert found == tuple(plan_environment(CONFIG, number) for number in numbers)
