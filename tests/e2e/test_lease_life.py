"""Leases on real VMs, through the restart and the power cut of their host, and a cut network."""

import json
import subprocess
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.fleet import BIN, BROKER, Fleet, wait_until
from tests.lab import LabHost

TERMS = """
[lease]
beat_s = 0.5
ttl_s = 8
margin_s = 2
reattach_s = 3
"""
TTL_S, MARGIN_S = 8.0, 2.0
MARKS = "while :; do date +%s.%N; sleep 0.1; done"


@pytest.fixture
def fleet(lab_fleet: Fleet) -> Iterator[Fleet]:
    """A broker, and te1's agent with one environment and short terms; destroyed afterwards."""
    with lab_fleet.serving_one(TERMS):
        yield lab_fleet


@pytest.fixture
def te1(fleet: Fleet) -> LabHost:
    return fleet.lab.hosts["te1"]


def last_lease(fleet: Fleet, host: LabHost) -> dict[str, Any]:
    """The newest in the host's journal."""
    journal = json.loads(fleet.admin(host, "journal", "--json").stdout)
    leases: list[dict[str, Any]] = journal["leases"]
    return max(leases, key=lambda lease: lease["generation"])


def lease_state(fleet: Fleet) -> str | None:
    """Of te1/1; None while its agent is not there."""
    state: str | None = fleet.environments().get("te1/1", {}).get("lease_state")
    return state


def running_domains(host: LabHost) -> set[str]:
    return set(host.run(["virsh", "list", "--name"]).stdout.split())


def test_restarted_agent_leaves_the_vms_of_a_lease_alone(fleet: Fleet, te1: LabHost) -> None:
    with fleet.lease() as (document, end):
        seed = document["testenv"]["seed"]["name"]
        before = te1.run(["virsh", "domid", seed]).stdout
        fleet.stop_agents()
        fleet.start_agent(te1)
        wait_until(lambda: lease_state(fleet) == "active", 30, fleet.log)
        lease = fleet.environments()["te1/1"]["lease"]
        assert (lease["id"], lease["generation"]) == (
            document["testenv"]["lease"]["id"],
            document["testenv"]["lease"]["generation"],
        )
        assert te1.run(["virsh", "domid", seed]).stdout == before
        end()
    fleet.wait_for_states({"te1/1": "ready"})
    assert te1.run(["virsh", "domid", seed]).stdout != before, "turned over after the lease"


def test_power_cut_of_the_host_ends_the_command_and_the_environment_comes_back(
    fleet: Fleet, te1: LabHost, tmp_path: Path
) -> None:
    marks = tmp_path / "marks"
    with marks.open("w") as out, fleet.client(MARKS, stdout=out, stderr=subprocess.PIPE) as job:
        wait_until(lambda: marks.stat().st_size > 0, 30, fleet.log)
        te1.power_cut()
        cut = time.time()
        _, said = job.communicate(timeout=60)
        assert job.returncode == 70, said
        assert "lease lost" in said
    assert float(marks.read_text().split()[-1]) <= cut + TTL_S
    te1.power_on()
    fleet.start_agent(te1)
    fleet.wait_for_states({"te1/1": "ready"})
    assert last_lease(fleet, te1)["ended"]
    assert "seed_1" in running_domains(te1)


def test_command_on_a_machine_that_is_cut_off_is_dead_before_its_environment_is_fenced(
    fleet: Fleet, te1: LabHost, tmp_path: Path
) -> None:
    """No FIN, no RST: te2, as a CI machine, loses its network in mid-lease."""
    ci_machine, marks = fleet.lab.hosts["te2"], tmp_path / "marks"
    argv = [f"{BIN}/testenv-client", "-b", BROKER, "--", "sh", "-c", MARKS]
    with marks.open("w") as out, ci_machine.popen(argv, stdout=out, stderr=subprocess.PIPE) as job:
        wait_until(lambda: marks.stat().st_size > 0, 30, fleet.log)
        ci_machine.partition()
        cut = time.time()
        try:
            _, said = job.communicate(timeout=60)
            assert job.returncode == 70, said
            wait_until(lambda: bool(last_lease(fleet, te1)["ended"]), 60, fleet.log)
        finally:
            ci_machine.heal()
    ended = datetime.fromisoformat(last_lease(fleet, te1)["ended"]).timestamp()
    last_mark = float(marks.read_text().split()[-1])
    assert last_mark <= cut + TTL_S
    assert last_mark < ended
    assert ended >= cut + TTL_S + MARGIN_S - 1.5, "not before the last beat's time is over"
    fleet.wait_for_states({"te1/1": "ready"})
