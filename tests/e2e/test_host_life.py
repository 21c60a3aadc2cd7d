"""A host through restarts, power cuts, foreign objects and the end."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.e2e.fleet import Fleet, config_text, wait_until
from tests.lab import LabHost

TE1_READY = {"te1/1": "ready", "te1/2": "ready"}


@pytest.fixture
def alone(lab_fleet: Fleet) -> Iterator[Fleet]:
    """A broker, and no agent yet; te1 is destroyed afterwards."""
    with lab_fleet.serving():
        yield lab_fleet


@pytest.fixture
def te1(alone: Fleet) -> LabHost:
    return alone.lab.hosts["te1"]


def traces(host: LabHost) -> str:
    """All that an agent could leave behind on a host."""
    commands = (
        "virsh list --all --name; ovs-vsctl list-br; ip -o link | cut -d: -f2;"
        "ls /var/lib/testenv/disks /var/lib/testenv/console 2>/dev/null;"
        "pgrep -c qemu-system; pgrep -c dnsmasq; true"
    )
    return host.run(["sh", "-c", commands]).stdout


@contextmanager
def foreign_domain(host: LabHost, name: str) -> Iterator[None]:
    host.run(["virsh", "define", "/dev/stdin"], stdin=FOREIGN_DOMAIN.format(name=name))
    try:
        yield
    finally:
        host.run(["virsh", "undefine", name])


@contextmanager
def foreign_bridge(host: LabHost, name: str) -> Iterator[None]:
    netdev = ["--", "set", "bridge", name, "datapath_type=netdev"]
    host.run(["ovs-vsctl", "add-br", name, *netdev])
    try:
        yield
    finally:
        host.run(["ovs-vsctl", "del-br", name])


def test_destroy_leaves_nothing_of_ours_and_everything_else(alone: Fleet, te1: LabHost) -> None:
    with foreign_domain(te1, "foreign"), foreign_bridge(te1, "br-foreign"):
        before = traces(te1)
        alone.start_agent(te1)
        alone.wait_for_states(TE1_READY)
        assert "seed_1" in traces(te1)
        alone.stop_agents()
        alone.admin(te1, "destroy", "--yes")
        assert traces(te1) == before


def test_destroy_without_yes_and_without_a_terminal_does_nothing(
    alone: Fleet, te1: LabHost
) -> None:
    alone.start_agent(te1)
    alone.wait_for_states(TE1_READY)
    alone.stop_agents()
    before = traces(te1)
    refused = alone.admin(te1, "destroy", check=False)
    assert refused.returncode == 2
    assert "seed_1" in refused.stderr
    assert traces(te1) == before


def test_destroy_and_a_second_run_are_refused_while_the_agent_runs(
    alone: Fleet, te1: LabHost
) -> None:
    alone.start_agent(te1)
    alone.wait_for_states(TE1_READY)
    for words in (["destroy", "--yes"], ["run"]):
        refused = alone.admin(te1, *words, check=False)
        assert refused.returncode == 1
        assert "an agent already runs on /var/lib/testenv" in refused.stderr
    alone.wait_for_states(TE1_READY)


def test_an_agent_s_stop_leaves_the_vms_and_its_restart_offers_them_again(
    alone: Fleet, te1: LabHost
) -> None:
    alone.start_agent(te1)
    alone.wait_for_states(TE1_READY)
    alone.stop_agents()
    assert "seed_1" in te1.run(["virsh", "list", "--name"]).stdout
    alone.start_agent(te1)
    alone.wait_for_states(TE1_READY)


def test_a_power_cut_ends_in_the_same_environments_and_the_host_s_own_address(
    alone: Fleet, te1: LabHost
) -> None:
    agent = alone.start_agent(te1)
    alone.wait_for_states(TE1_READY)
    before = te1.run(["virsh", "dumpxml", "--inactive", "baremetalbrbm1_0"]).stdout
    te1.power_cut()
    agent.wait(timeout=20)
    te1.power_on()
    alone.start_agent(te1)
    alone.wait_for_states(TE1_READY)
    assert te1.run(["virsh", "dumpxml", "--inactive", "baremetalbrbm1_0"]).stdout == before
    alone.lab.ci.run(["busybox", "ping", "-c", "3", "-W", "2", "203.0.113.11"])


def test_a_smaller_count_removes_what_is_no_longer_planned(alone: Fleet, te1: LabHost) -> None:
    alone.start_agent(te1)
    alone.wait_for_states(TE1_READY)
    alone.stop_agents()
    alone.configure(te1, config_text(te1, 1, count=1))
    alone.start_agent(te1)
    alone.wait_for_states({"te1/1": "ready"})

    def only_planned() -> bool:
        """Leaks go when a turnover sees them again."""
        alone.job("true")
        return not any(name in traces(te1) for name in ("seed_2", "brbm2", "te2s0"))

    wait_until(only_planned, 60, alone.log)
    assert "seed_1" in traces(te1)


def test_a_foreign_domain_breaks_its_environment_only_and_is_not_touched(
    alone: Fleet, te1: LabHost
) -> None:
    with foreign_domain(te1, "seed_1"):
        foreign = te1.run(["virsh", "dumpxml", "seed_1"]).stdout
        alone.start_agent(te1)
        alone.wait_for_states({"te1/1": "broken", "te1/2": "ready"})
        reason = alone.environments()["te1/1"]["reason"]
        assert "domain seed_1: this domain exists and is not marked as ours" in reason
        assert te1.run(["virsh", "dumpxml", "seed_1"]).stdout == foreign
        alone.job("true")


def test_a_foreign_bridge_breaks_its_environment_only_and_is_not_touched(
    alone: Fleet, te1: LabHost
) -> None:
    with foreign_bridge(te1, "brbm2"):
        alone.start_agent(te1)
        alone.wait_for_states({"te1/1": "ready", "te1/2": "broken"})
        reason = alone.environments()["te1/2"]["reason"]
        assert "bridge brbm2: this bridge exists and is not marked as ours" in reason
        assert te1.run(["ovs-vsctl", "list-ports", "brbm2"]).stdout == ""


def test_an_image_that_is_missing_is_named_by_check_and_by_run(alone: Fleet, te1: LabHost) -> None:
    text = config_text(te1, 1).replace("seed.initrd", "gone.initrd")
    alone.configure(te1, text)
    checked = alone.admin(te1, "check", check=False)
    assert checked.returncode == 1
    assert "gone.initrd" in checked.stdout
    alone.start_agent(te1)
    alone.wait_for_states({"te1/1": "broken", "te1/2": "broken"})
    assert "gone.initrd" in alone.environments()["te1/1"]["reason"]


def test_check_passes_on_a_host_that_can_carry_its_plan(alone: Fleet, te1: LabHost) -> None:
    checked = alone.admin(te1, "check", check=False)
    assert checked.returncode == 0, checked.stdout


def test_check_names_what_is_wrong_with_the_remedy(alone: Fleet, te1: LabHost) -> None:
    te1.run(["sh", "-c", "kill $(cat /run/openvswitch/ovsdb-server.pid)"])
    checked = alone.admin(te1, "check", check=False)
    te1.power_cut()
    te1.power_on()
    assert checked.returncode == 1
    assert any(
        "Open vSwitch" in line and "openvswitch" in line for line in checked.stdout.splitlines()
    )


FOREIGN_DOMAIN = """
<domain type='qemu'>
  <name>{name}</name>
  <memory unit='MiB'>64</memory>
  <os><type arch='x86_64'>hvm</type></os>
</domain>
"""
