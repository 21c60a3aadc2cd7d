"""Operators' commands on a broker, two agents and running jobs, all real processes."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from schemas.exits import SIGNAL_BASE, ExitStatus
from tests.functional.brokers import OURS, running_broker
from tests.functional.client_rig import PEERS
from tests.functional.lease_rig import BOUND_S, HASTY, Host, Job, Stage, staged, wait_for
from tests.functional.operator_rig import Operator, cordon_of

REASON = "te1 gets a new disk"


class Scene(NamedTuple):
    """A stage with two hosts."""

    stage: Stage
    operator: Operator
    first: Host
    second: Host

    def holder(self) -> tuple[Job, Host, Host]:
        """A job whose command runs, its host, and the other one."""
        job = self.stage.running_job()
        both = (self.first, self.second)
        ours = next(host for host in both if any(each.id == job.lease for each in host.leases))
        return job, ours, self.second if ours is self.first else self.first


@pytest.fixture(scope="module")
def theatre(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """One for all tests, each of which cleans up: processes take seconds to start."""
    with (
        running_broker(OURS) as broker,
        staged(tmp_path_factory.mktemp("operators"), broker, terms=HASTY) as stage,
    ):
        yield Scene(stage, Operator(stage), stage.host(), stage.host())


@pytest.fixture
def scene(theatre: Scene) -> Iterator[Scene]:
    """Two hosts that offer their environments."""
    yield theatre
    for job in theatre.stage.jobs:
        job.end()
    hosts = (theatre.first, theatre.second)
    if any(cordon_of(host) is not None for host in hosts):
        assert theatre.operator.types("uncordon", "*").status == 0
    for host in hosts:
        host.ready()


def test_a_cordon_outlives_the_agent_and_ends_with_uncordon(scene: Scene) -> None:
    operator, first, second = scene.operator, scene.first, scene.second
    said = operator.types("cordon", first.name, second.environment, "--reason", REASON)
    cordoned = {f"{host.environment}: cordoned" for host in (first, second)}
    assert (said.status, set(said.out.splitlines()), said.err) == (0, cordoned, "")
    again = operator.types("cordon", f"{first.name}/*", "--json")
    assert (again.status, again.results) == (0, {first.environment: "unchanged"})
    first.kill()
    first.start()
    waiting = scene.stage.waiting_job()
    env = wait_for(lambda: scene.stage.status().get(first.environment), lambda: first.log)
    assert (env["cordoned"], env["cordon_reason"]) == (True, REASON)
    assert not waiting.signs
    assert operator.types("uncordon", first.name).status == 0
    waiting.begins()
    assert waiting.lease == first.leases[-1].id
    assert cordon_of(second) == REASON


def test_signals_cordon_the_host_as_operators_do(scene: Scene) -> None:
    host = scene.first
    host.process.send_signal(signal.SIGUSR2)
    wait_for(lambda: cordon_of(host) == "SIGUSR2")
    host.process.send_signal(signal.SIGUSR1)
    wait_for(lambda: cordon_of(host) is None)


def test_a_drain_waits_for_running_jobs_can_be_interrupted_and_repeated(scene: Scene) -> None:
    operator = scene.operator
    job, leased, free = scene.holder()
    told = operator.types("drain", leased.name, free.name, "--reason", REASON)
    assert told.status == 0
    assert f"{free.environment}: empty\n" in told.out
    assert f"{leased.environment}: leased by {job.name}" in told.out
    assert " UTC at the latest\n" in told.out

    drain = ("drain", leased.name, free.name, "--wait", "--json")
    with operator.typing(*drain) as command:
        operator.hears(command, f"{leased.name}: {leased.environment}: leased by {job.name}")
        command.send_signal(signal.SIGINT)
        said = operator.reads(command)
    assert (said.status, said.out) == (SIGNAL_BASE + signal.SIGINT, "")
    assert "interrupted; what is done stays done" in said.err
    assert cordon_of(leased) == REASON

    with operator.typing(*drain) as command:
        operator.hears(command, f"{leased.name}: {leased.environment}: leased by {job.name}")
        job.ends_well()
        said = operator.reads(command)
    assert said.status == 0
    assert said.results == {leased.environment: "done", free.environment: "done"}
    assert f"testenv: {leased.name}: empty\n" in said.err


def test_leases_that_are_left_at_the_deadline_are_told_or_revoked(scene: Scene) -> None:
    operator = scene.operator
    job, leased, free = scene.holder()
    drain = ("drain", leased.name, free.name, "--deadline", "0s")
    left = operator.types(*drain, "--json")
    assert left.status == ExitStatus.STILL_LEASED
    assert left.results == {leased.environment: "leased", free.environment: "done"}
    assert [each["lease"]["id"] for each in left.document["outcomes"] if each["lease"]] == [
        job.lease
    ]
    assert operator.types(*drain, "--revoke").status == ExitStatus.USAGE, "nobody can be asked"
    assert job.process.poll() is None
    revoked = operator.types(*drain, "--revoke", "--yes", "--reason", REASON)
    assert revoked.status == 0, revoked.err
    assert f"lease {job.lease} of {job.name}" in revoked.err
    assert job.exits() == ExitStatus.LEASE_LOST
    assert REASON in job.said


def test_a_lease_that_cannot_be_revoked_is_named_and_not_waited_for(scene: Scene) -> None:
    host = scene.first
    scene.operator.types("cordon", scene.second.name)
    toci = [sys.executable, str(PEERS / "v1_client.py"), "-b", scene.stage.addresses]
    holder = subprocess.Popen([*toci, "--", "sleep", "60"], start_new_session=True)
    try:
        wait_for(lambda: host.state == "leased")
        drain = ("drain", host.name, "--deadline", "0s", "--revoke", "--yes")
        said = scene.operator.types(*drain)
    finally:
        os.killpg(holder.pid, signal.SIGKILL)  # with its command, which would outlive it
        holder.wait(timeout=BOUND_S)
    assert said.status == ExitStatus.STILL_LEASED
    assert "version 1" in said.out


def test_a_host_that_does_not_answer_is_named_and_the_others_are_done(scene: Scene) -> None:
    silent, well = scene.first, scene.second
    silent.process.send_signal(signal.SIGSTOP)
    try:
        said = scene.operator.types("drain", silent.name, well.name, "--wait")
    finally:
        silent.process.send_signal(signal.SIGCONT)
    assert said.status == ExitStatus.FAILED
    assert said.out == f"{well.environment}: empty\n"
    assert f"testenv: {silent.name}: no answer within 3 s\n" in said.err


def test_an_unknown_target_stops_the_whole_command_and_the_nearest_is_named(scene: Scene) -> None:
    host = scene.first
    for target, nearest in ((f"{host.name}x", host.name), (f"{host.name}/9", host.environment)):
        said = scene.operator.types("cordon", host.name, target)
        assert (said.status, said.out) == (ExitStatus.FAILED, "")
        assert f"{target}; did you mean {nearest}" in said.err
    assert cordon_of(host) is None


def test_a_broken_environment_is_cleared_and_built_anew(scene: Scene) -> None:
    job, host, other = scene.holder()
    good = scene.stage.datafile.read_text()
    scene.stage.datafile.write_text("{")
    job.ends_well()
    wait_for(lambda: host.state == "broken", lambda: host.log)
    scene.stage.datafile.write_text(good)
    said = scene.operator.types("clear", host.environment, other.name, "--json")
    assert said.status == 0
    assert said.results == {host.environment: "done", other.environment: "unchanged"}
    host.ready()


def test_history_tells_who_held_what_and_how_it_ended_over_all_hosts(scene: Scene) -> None:
    operator, stage = scene.operator, scene.stage
    jobs = [stage.running_job(status=status) for status in (0, 7)]
    for job, status in zip(jobs, (0, 7), strict=True):
        job.ends_well(status)
    for host in (scene.first, scene.second):
        wait_for(lambda host=host: all(each.ended for each in host.leases))  # type: ignore[misc]
    every = operator.types("history", "--json").document["leases"][-2:]
    assert [each["id"] for each in every] == [job.lease for job in jobs]
    assert [each["exit_code"] for each in every] == [0, 7]
    assert [each["job"] for each in every] == [job.name for job in jobs]
    [newest] = operator.types("history", "--limit", "1", "--json").document["leases"]
    assert newest["id"] == jobs[1].lease
    [one] = operator.types("history", jobs[0].lease[:8], "--json").document["leases"]
    assert one == every[0]
    env = one["environment"]
    of_one = operator.types("history", env, "--json").document["leases"]
    assert {each["environment"] for each in of_one} == {env}
    assert one in of_one
    table = operator.types("history").out
    assert jobs[1].lease[:8] in table
    assert jobs[1].name in table
    nothing = operator.types("history", "0" * 32)
    assert nothing.status == ExitStatus.FAILED
    assert f"no host remembers a lease {'0' * 32}" in nothing.err


def test_a_rebuild_says_what_it_would_do_and_leaves_alone_what_others_have_made(
    scene: Scene,
) -> None:
    operator = scene.operator
    job, leased, free = scene.holder()
    asked = operator.types("rebuild", leased.name, free.name)
    assert asked.status == ExitStatus.USAGE, "nobody can be asked"
    anew = "will be destroyed and made anew"
    assert f"{free.environment}: {anew} at once\n" in asked.err
    assert f"{leased.environment}: {anew} once its lease ends: {job.name}" in asked.err
    refused = operator.types("rebuild", free.name, "--wait", "--yes")
    assert (refused.status, refused.out) == (ExitStatus.FAILED, "")
    assert f"{free.name} offers what others have made" in refused.err
    free.ready()
