"""A daemon that hangs makes its host sick in bounded time, and the host is well when it goes on."""

import asyncio
import time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest

from hosts.health import Health
from hosts.journal import Journal
from hosts.plan import plan_host
from hosts.vitals import Vital, vitals
from schemas.config import HostConfig
from schemas.plan import Facts
from tests.contract.daemons import LIBVIRTD, OVSDB_SERVER, stopped
from tests.contract.rigs import ADDRESS, BRIDGE, HOST, RealRig

LOOK_S = 2.0
"""Less than libvirt's keepalive allows, so that the call is still hanging at the second look."""
BACK_S = 40


def signs_of(real: RealRig) -> tuple[Vital, ...]:
    config = HostConfig.model_validate({"host": {"name": HOST}, "environments": {"count": 0}})
    plan = plan_host(config, Facts(memory_mib=1024, cpus=1, disk_gib=10))
    return vitals(lambda: plan, real.drivers, real.directory, min_free_gib=0, repair=lambda: None)


@pytest.mark.parametrize(
    ("daemon", "sign"), [(LIBVIRTD, "libvirt"), (OVSDB_SERVER, "Open vSwitch")], ids=str
)
async def test_a_hanging_daemon_makes_the_host_sick_until_it_goes_on(
    real: RealRig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, daemon: Path, sign: str
) -> None:
    monkeypatch.setattr("hosts.health.LOOK_S", LOOK_S)
    real.drivers.switch.ensure_bridge(BRIDGE)
    real.drivers.network.ensure_address(BRIDGE, ADDRESS)
    async with Journal.open(tmp_path / "journal.db", now=partial(datetime.now, UTC)) as journal:
        health = Health(signs_of(real), {}, journal, check_interval_s=60)
        assert await health.trouble() == ""
        with stopped(daemon):
            for _ in range(2):
                began = time.monotonic()
                trouble = await health.trouble(anew=True)
                assert trouble == f"{sign}: does not answer within {LOOK_S:g} s"
                assert time.monotonic() - began < LOOK_S + 2
        async with asyncio.timeout(BACK_S):
            while await health.trouble():
                await asyncio.sleep(0.2)
