"""A broker dies, or forgets a connection, while leases run and clients wait."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from schemas.exits import ExitStatus
from schemas.terms import Terms
from tests.functional.brokers import (
    GEARD,
    GEARMAND,
    GEARMAND_TUNED,
    OURS,
    BrokerKind,
    RunningBroker,
    running_broker,
)
from tests.functional.cable import Cable, cable_to
from tests.functional.lease_rig import (
    HASTY,
    SLACK_S,
    Host,
    Job,
    Stage,
    over_all_brokers,
    staged,
    wait_for,
    when,
)

CUT = Terms(beat_s=0.3, ttl_s=12, margin_s=2, reattach_s=4, untaken_s=2)
"""For a connection that is cut: its client has to be dead long before its beats would say so."""


def serve_each_once(stage: Stage, waiting: list[Job]) -> None:
    """Let the commands of those who wait begin and end, one after the other, as they come."""
    for job in waiting:
        job.release()
    for job in waiting:
        assert job.exits() == 7, job.said
    begun = [each.lease for job in waiting for each in job.signs if each.what == "begin"]
    assert len(begun) == len(set(begun)) == len(waiting)
    uses = [each for host in stage.hosts for each in host.uses]
    assert sorted(each.holder.split()[0] for each in uses) == sorted(
        job.name for job in stage.jobs if job.signs
    )


@over_all_brokers
def test_restarted_broker_ends_no_lease_and_loses_no_waiting_client(
    broker: RunningBroker, tmp_path: Path
) -> None:
    with staged(tmp_path, broker) as stage:
        host = stage.host()
        job = stage.running_job(status=7)
        waiting = [stage.waiting_job(status=7) for _ in range(3)]
        stage.holds(host, job.held)
        broker.kill()
        job.says("is sought")
        broker.restart()
        stage.holds(host, job.held)
        assert not job.is_dead()
        job.ends_well(7)
        serve_each_once(stage, waiting)
        wait_for(lambda: {each.reason for each in host.uses} == {"exited"})


@pytest.mark.parametrize("broker", [GEARD], ids=str, indirect=True)
def test_restarted_geard_ends_no_lease(broker: RunningBroker, tmp_path: Path) -> None:
    with staged(tmp_path, broker) as stage:
        host = stage.host()
        job = stage.running_job(status=7)
        broker.kill()
        job.says("is sought")
        broker.restart()
        job.says("the lease goes on")
        job.ends_well(7)
        assert host.ended(job.lease).reason == "exited"


def test_broker_that_is_gone_too_long_ends_the_lease_at_the_client_first(
    broker: RunningBroker, tmp_path: Path
) -> None:
    with staged(tmp_path, broker, terms=HASTY) as stage:
        host = stage.host()
        job = stage.running_job()
        waiting = stage.waiting_job(status=7)
        broker.kill()
        killed = time.time()
        assert job.exits() == ExitStatus.LEASE_LOST
        assert "its host was not heard of" in job.said
        assert job.last_sign < killed + HASTY.ttl_s
        end = host.ended(job.lease)
        assert end.reason == "nothing was heard of the client in time"
        assert job.last_sign < when(end.ended) < (killed + HASTY.ttl_s + HASTY.margin_s + SLACK_S)
        broker.restart()
        serve_each_once(stage, [waiting])


@pytest.mark.parametrize(
    "kinds",
    [(OURS, OURS), (GEARMAND, GEARMAND), (GEARMAND_TUNED, OURS)],
    ids=lambda kinds: "-and-".join(map(str, kinds)),
)
def test_killed_broker_of_two_loses_nothing_and_doubles_nothing(
    kinds: tuple[BrokerKind, BrokerKind], tmp_path: Path
) -> None:
    with (
        running_broker(kinds[0]) as first,
        running_broker(kinds[1]) as second,
        staged(tmp_path, first, second) as stage,
    ):
        here, there = str(first.endpoint), str(second.endpoint)
        host = stage.host()
        job = stage.job(brokers=here, status=7)
        job.begins()
        places = (f"{here},{there}", f"{here},{there}", f"{there},{here}", there)
        waiting = [stage.job(brokers=place, status=7) for place in places]
        for one in waiting:
            one.waits()
        job.ends_well(7)
        holder = next_of(waiting)
        first.kill()
        stage.holds(host, holder.held)
        waiting.remove(holder)
        holder.ends_well(7)
        serve_each_once(stage, waiting)


@over_all_brokers
def test_lease_goes_on_when_its_client_s_connection_is_cut(
    broker: RunningBroker, tmp_path: Path
) -> None:
    """gearmand offers it the environment again, which it has already."""
    with staged(tmp_path, broker) as stage, cable_to(broker.endpoint) as cable:
        host = stage.host()
        job = stage.job(brokers=str(cable.endpoint), status=7)
        job.begins()
        stage.holds(host, job.held)
        cable.cut()
        job.says("the lease goes on")
        stage.holds(host, job.held)
        time.sleep(SLACK_S)
        assert not job.is_dead()
        stage.holds(host, job.held)
        job.ends_well(7)
        assert host.ended(job.lease).reason == "exited"
        assert len(host.leases) == 1


@over_all_brokers
def test_client_that_is_cut_off_and_finds_no_way_back_is_dead_before_its_environment_is_fenced(
    broker: RunningBroker, tmp_path: Path
) -> None:
    """Both sides see the connection closed; after that, nothing answers the client."""
    with leased_by_cable(broker, tmp_path) as (cable, host, job):
        cut = time.time()
        cable.swallow()
        assert job.exits() == ExitStatus.LEASE_LOST
        end = host.ended(job.lease)
        assert job.last_sign < when(end.ended)
        assert job.last_sign < cut + CUT.reattach_s


@over_all_brokers
def test_stopped_client_whose_connection_is_cut_is_ended_by_its_guard_in_time(
    broker: RunningBroker, tmp_path: Path
) -> None:
    with leased_by_cable(broker, tmp_path) as (cable, host, job):
        os.kill(job.process.pid, signal.SIGSTOP)
        cut = time.time()
        cable.cut()
        end = host.ended(job.lease)
        os.kill(job.process.pid, signal.SIGCONT)
        assert job.exits() == ExitStatus.LEASE_LOST
        assert job.last_sign < when(end.ended)
        assert job.last_sign < cut + CUT.reattach_s


@over_all_brokers
def test_client_that_learns_late_of_its_cut_connection_gains_no_time(
    broker: RunningBroker, tmp_path: Path
) -> None:
    with leased_by_cable(broker, tmp_path) as (cable, host, job):
        os.kill(job.process.pid, signal.SIGSTOP)
        cut = time.time()
        cable.swallow()
        time.sleep(1.5)
        os.kill(job.process.pid, signal.SIGCONT)
        assert job.exits() == ExitStatus.LEASE_LOST
        assert job.last_sign < cut + CUT.reattach_s
        assert job.last_sign < when(host.ended(job.lease).ended)


@over_all_brokers
def test_waiting_client_whose_connection_is_cut_is_served_once(
    broker: RunningBroker, tmp_path: Path
) -> None:
    with staged(tmp_path, broker) as stage, cable_to(broker.endpoint) as cable:
        stage.host()
        job = stage.running_job(status=7)
        waiting = stage.job(brokers=str(cable.endpoint), status=7)
        waiting.waits()
        cable.cut()
        waiting.says("asking again")
        job.ends_well(7)
        serve_each_once(stage, [waiting])


def next_of(waiting: list[Job]) -> Job:
    """Wait until one of them has the environment."""
    while not (served := [job for job in waiting if job.signs]):
        time.sleep(0.02)
    [holder] = served
    holder.begins()
    return holder


@contextmanager
def leased_by_cable(broker: RunningBroker, folder: Path) -> Iterator[tuple[Cable, Host, Job]]:
    """A lease whose client reaches its broker by a cable, with CUT's terms."""
    with staged(folder, broker, terms=CUT) as stage, cable_to(broker.endpoint) as cable:
        host = stage.host()
        job = stage.job(brokers=str(cable.endpoint))
        job.begins()
        stage.holds(host, job.held)
        yield cable, host, job
