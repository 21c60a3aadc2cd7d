"""A client, its guard or an agent dies, or is stopped, while a lease runs."""

import os
import signal
import time
from pathlib import Path

import pytest

from schemas.exits import SIGNAL_BASE, ExitStatus
from tests.functional.brokers import GEARD, GEARMAND, GEARMAND_TUNED, OURS, RunningBroker
from tests.functional.lease_rig import (
    HASTY,
    SLACK_S,
    over_all_brokers,
    staged,
    wait_for,
    when,
)


@pytest.mark.parametrize("broker", [OURS, GEARMAND, GEARMAND_TUNED, GEARD], ids=str, indirect=True)
def test_killed_client_takes_its_whole_command_along_and_the_next_is_served(
    broker: RunningBroker, tmp_path: Path
) -> None:
    with staged(tmp_path, broker) as stage:
        host = stage.host()
        dead = stage.running_job()
        heir = stage.waiting_job(status=7)
        killed = dead.kill()
        heir.begins()
        assert dead.is_dead()
        end = host.ended(dead.lease)
        assert end.reason == "client killed"
        assert dead.last_sign <= when(end.ended) < killed + SLACK_S
        assert host.states_after(dead.lease)[:2] == ["dirty", "ready"]
        assert dead.last_sign < heir.signs[0].at < killed + 2 * SLACK_S
        heir.ends_well(7)


@over_all_brokers
def test_command_dies_with_its_client_and_guard_and_is_fenced_when_nobody_came_back(
    broker: RunningBroker, tmp_path: Path
) -> None:
    with staged(tmp_path, broker, terms=HASTY) as stage:
        host = stage.host()
        # What has left the command's process group lives on: only a guard could find it.
        dead = stage.running_job(setsid=False)
        heir = stage.waiting_job()
        killed = dead.kill(dead.guard)
        wait_for(dead.is_dead, bound_s=SLACK_S)
        end = host.ended(dead.lease)
        assert dead.last_sign <= when(end.ended) < killed + HASTY.reattach_s + SLACK_S
        heir.begins()
        assert host.states_after(dead.lease)[:2] == ["dirty", "ready"]
        heir.ends_well()


@over_all_brokers
def test_killed_agent_that_is_started_again_goes_on_with_the_lease(
    broker: RunningBroker, tmp_path: Path
) -> None:
    with staged(tmp_path, broker) as stage:
        host = stage.host()
        job = stage.running_job(status=7)
        stage.holds(host, job.held)
        host.kill()
        host.start()
        stage.holds(host, job.held)
        assert not job.is_dead()
        job.ends_well(7)
        assert host.ended(job.lease).reason == "exited"
        host.ready()
        stage.running_job().ends_well()
        assert len(host.uses) == 2


@over_all_brokers
def test_upgraded_agent_goes_on_with_the_lease(broker: RunningBroker, tmp_path: Path) -> None:
    with staged(tmp_path, broker) as stage:
        host = stage.host(drain_s=600)
        job = stage.running_job(status=7)
        waiting = stage.waiting_job()
        began = time.monotonic()
        assert host.stop() == 0
        assert time.monotonic() - began < 2 * SLACK_S
        assert not job.is_dead()
        host.start()
        stage.holds(host, job.held)
        job.ends_well(7)
        waiting.begins()
        waiting.ends_well()
        host.ended(waiting.lease)
        assert [each.reason for each in host.uses] == ["exited", "exited"]


def test_client_ends_its_command_when_the_agent_is_gone_for_good(
    broker: RunningBroker, tmp_path: Path
) -> None:
    with staged(tmp_path, broker, terms=HASTY) as stage:
        host = stage.host()
        job = stage.running_job()
        host.kill()
        killed = time.time()
        assert job.exits() == ExitStatus.LEASE_LOST
        assert f"its host was not heard of in {HASTY.ttl_s:g} s" in job.said
        assert job.is_dead()
        assert job.last_sign < killed + HASTY.ttl_s


def test_client_that_can_t_write_its_data_file_gives_the_environment_back_at_once(
    broker: RunningBroker, tmp_path: Path
) -> None:
    with staged(tmp_path, broker) as stage:
        host = stage.host()
        host.ready()
        job = stage.job("--datafile", "/proc/te.json")
        assert job.exits() == ExitStatus.INTERNAL
        stage.running_job().ends_well()
        [first, _] = host.uses
        assert first.reason == "command-not-started"


def test_command_of_a_stopped_client_ends_in_time_and_one_that_was_stopped_with_it_never_goes_on(
    broker: RunningBroker, tmp_path: Path
) -> None:
    """The second is what a suspended machine, or a frozen container, does to all three."""
    with staged(tmp_path, broker, terms=HASTY) as stage:
        first, second = stage.host(), stage.host()
        for _ in range(2):
            stage.running_job()
        stopped, frozen = stage.holder_of(first), stage.holder_of(second)
        at = time.time()
        os.kill(stopped.process.pid, signal.SIGSTOP)
        for pid in (*frozen.pids, frozen.guard, frozen.process.pid):
            os.kill(pid, signal.SIGSTOP)
        signs = len(frozen.signs)

        end = first.ended(stopped.lease)
        assert stopped.is_dead()
        assert stopped.last_sign < at + HASTY.ttl_s
        assert stopped.last_sign < when(end.ended) < at + HASTY.ttl_s + HASTY.margin_s + SLACK_S
        os.kill(stopped.process.pid, signal.SIGCONT)
        assert stopped.exits() in (ExitStatus.LEASE_LOST, SIGNAL_BASE + signal.SIGKILL)

        second.ended(frozen.lease)
        for pid in (frozen.process.pid, frozen.guard):
            os.kill(pid, signal.SIGCONT)
        assert frozen.exits() in (ExitStatus.LEASE_LOST, SIGNAL_BASE + signal.SIGKILL)
        assert frozen.is_dead()
        assert {each.what for each in frozen.signs[signs:]} <= {"end"}
        stage.running_job().ends_well()


@pytest.mark.parametrize("broker", [GEARMAND], ids=str, indirect=True)
def test_agent_whose_offer_comes_too_late_has_its_environment_back_at_once(
    broker: RunningBroker, tmp_path: Path
) -> None:
    """gearmand gives the request of a dead agent to the next one."""
    with staged(tmp_path, broker) as stage:
        first = stage.host()
        job = stage.running_job(status=7)
        second = stage.host()
        first.kill()
        [offer] = wait_for(lambda: second.leases)
        end = second.ended(offer.id)
        assert end.reason == "the client did not want it"
        assert when(end.ended) - when(end.granted) < 1.0
        assert second.states_after(offer.id) == ["ready"]
        assert not job.is_dead()
        first.start()
        stage.holds(first, job.held)
        job.ends_well(7)
