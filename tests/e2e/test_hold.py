"""What a failed job leaves, kept for a person on a real host: it runs on, and cannot be reached."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.fleet import BIN, BROKER, Fleet, wait_until
from tests.lab import LabHost

SEED, NODE = "seed_1", "baremetalbrbm1_0"
DISKS = "/var/lib/testenv/disks"
ENV = "te1/1"


@pytest.fixture
def fleet(lab_fleet: Fleet) -> Iterator[Fleet]:
    """A broker, and te1's agent with one environment; destroyed afterwards."""
    with lab_fleet.serving_one():
        yield lab_fleet


def operator(fleet: Fleet, *words: str) -> str:
    return str(fleet.lab.ci.run([f"{BIN}/testenv", *words, "-b", BROKER], timeout=60).stdout)


def reaches_the_seed(fleet: Fleet, address: str) -> bool:
    """Whether it answers a job, or whoever else is on its network."""
    ping = ["busybox", "ping", "-c", "1", "-W", "2", address]
    return bool(fleet.lab.ci.run(ping, check=False, timeout=20).returncode == 0)


def leavings(te1: LabHost) -> dict[str, str]:
    """Its machines' runs, and what is on its node's disk."""
    disk = f"{DISKS}/{NODE}.qcow2"
    read = ["qemu-io", "-r", "-U", "-c", "read -P 7 0 1M", disk]
    return {
        "runs": te1.run(["virsh", "list", "--name", "--id"]).stdout,
        "disk": te1.run(["qemu-img", "info", "--force-share", "--output=json", disk]).stdout,
        "marker": te1.run(read, check=False).stdout.partition("(")[0],
    }


def failed_job(fleet: Fleet, te1: LabHost) -> tuple[dict[str, Any], dict[str, str]]:
    """A job that starts a node, writes to its disk, and fails: its data file, and its leavings."""
    script = 'jq -c . "$TE_DATAFILE"; read -r go; exit 3'
    argv = [f"{BIN}/testenv-client", "-b", BROKER, "-n", "gate-1", "--hold-on-failure", "1m"]
    with fleet.lab.ci.popen(
        [*argv, "--", "sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as job:
        assert job.stdout
        document = json.loads(job.stdout.readline())
        wait_until(lambda: reaches_the_seed(fleet, document["seed-ip"]), 60, fleet.log)
        te1.run(["qemu-io", "-c", "write -P 7 0 1M", f"{DISKS}/{NODE}.qcow2"])
        te1.run(["virsh", "start", NODE])
        before = leavings(te1)
        job.communicate("go\n", timeout=60)
        assert job.returncode == 3
    return document, before


def test_what_a_failed_job_leaves_runs_on_and_is_a_persons_until_it_expires(
    fleet: Fleet, tmp_path: Path
) -> None:
    te1 = fleet.lab.hosts["te1"]
    document, before = failed_job(fleet, te1)
    fleet.wait_for_states({ENV: "held"})
    assert not reaches_the_seed(fleet, document["seed-ip"])
    assert leavings(te1) == before
    listed = operator(fleet, "holds")
    assert ENV in listed
    assert "gate-1" in listed
    fleet.stop_agents()
    fleet.start_agent(te1)
    fleet.wait_for_states({ENV: "held"})
    assert leavings(te1) == before
    operator(fleet, "hold", ENV, "--connect", "--datafile", str(tmp_path / "held.json"))
    wait_until(lambda: reaches_the_seed(fleet, document["seed-ip"]), 20, fleet.log)
    taken = json.loads((tmp_path / "held.json").read_text())
    assert taken["seed-ip"] == document["seed-ip"]
    old, new = document["testenv"]["lease"], taken["testenv"]["lease"]
    assert new["generation"] == old["generation"] + 1
    assert new["secret"] != old["secret"]
    assert leavings(te1) == before
    operator(fleet, "hold", ENV, "--for", "1s")
    fleet.wait_for_states({ENV: "ready"})
    with fleet.lease() as (later, end):
        assert later["testenv"]["lease"]["generation"] == new["generation"] + 1
        after = leavings(te1)
        assert "baremetal" not in after["runs"]
        assert "Pattern verification failed" in after["marker"]
        end()
