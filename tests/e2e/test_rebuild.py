"""A fleet whose nodes get more memory while jobs run."""

import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.e2e.fleet import BIN, BROKER, Fleet, config_text, wait_until
from tests.lab import LabHost

NODE = "baremetalbrbm1_0"
READY = {"te1/1": "ready", "te2/1": "ready"}


def configure(fleet: Fleet, *, node_memory_mib: int = 256) -> None:
    """One environment on each host."""
    for number, host in enumerate(fleet.lab.hosts.values(), start=1):
        before, nodes = config_text(host, number, count=1).split("[environments.nodes]")
        resized = re.sub(r"memory_mib = \d+", f"memory_mib = {node_memory_mib}", nodes)
        fleet.configure(host, f"{before}[environments.nodes]{resized}")


@pytest.fixture
def fleet(lab_fleet: Fleet) -> Iterator[Fleet]:
    """A broker and two hosts; both are destroyed afterwards."""
    with lab_fleet.serving():
        configure(lab_fleet)
        for host in lab_fleet.lab.hosts.values():
            lab_fleet.start_agent(host)
        lab_fleet.wait_for_states(READY)
        yield lab_fleet


def node_memory_mib(host: LabHost) -> int:
    """As libvirt has it."""
    info = host.run(["virsh", "dominfo", NODE]).stdout
    [kib] = re.findall(r"Max memory:\s+(\d+) KiB", info)
    return int(kib) // 1024


def test_a_running_job_finishes_first_and_waiting_clients_are_all_served(fleet: Fleet) -> None:
    with ExitStack() as stack:
        document, end = stack.enter_context(fleet.lease())
        leased = fleet.lab.hosts[document["testenv"]["host"]]
        [free] = [host for host in fleet.lab.hosts.values() if host is not leased]
        configure(fleet, node_memory_mib=384)
        argv = [f"{BIN}/testenv", "rebuild", "te*", "--wait", "--yes", "-b", BROKER]
        rebuild = stack.enter_context(
            fleet.lab.ci.popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        )
        stack.callback(rebuild.kill)
        wait_until(lambda: fleet.environments()[f"{leased.name}/1"]["rebuilding"], 30, fleet.log)
        jobs = [stack.enter_context(fleet.client("true")) for _ in range(2)]
        wait_until(lambda: all(job.poll() == 0 for job in jobs), 60, fleet.log)
        assert (node_memory_mib(free), node_memory_mib(leased)) == (384, 256)
        assert rebuild.poll() is None, "it waits for the job that still runs"
        end()
        out, err = rebuild.communicate(timeout=60)
        assert rebuild.returncode == 0, err
        assert out == "te1/1: rebuilt\nte2/1: rebuilt\n"
        assert f"{leased.name}/1: leased by" in err
    assert node_memory_mib(leased) == 384
    fleet.wait_for_states(READY)
