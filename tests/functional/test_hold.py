"""Environments kept for people: a broker, two agents, jobs and operators, all real processes."""

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from schemas.exits import ExitStatus
from tests.functional.brokers import OURS, running_broker
from tests.functional.lease_rig import HASTY, Host, Job, Stage, staged, wait_for
from tests.functional.operator_rig import Operator


class Scene:
    """A stage with two hosts, each of one environment."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.operator = Operator(stage)
        self.hosts = (stage.host(), stage.host())

    def failing_job(self, *options: str, status: int = 3) -> tuple[Job, Host]:
        """One whose command runs, and its host."""
        job = self.stage.running_job(*options, status=status)
        return job, self.host_of(job)

    def host_of(self, job: Job) -> Host:
        return next(host for host in self.hosts if any(one.id == job.lease for one in host.leases))

    def hold(self, host: Host) -> dict[str, Any] | None:
        """What `testenv holds` says of its environment; None if it is not held, nor to be."""
        found = self.operator.types("holds", "--json").document["holds"]
        return next((one for one in found if one["environment"] == host.environment), None)

    def held(self, host: Host) -> dict[str, Any]:
        """Wait until it is held; the hold."""

        def begun() -> dict[str, Any] | None:
            found = self.hold(host)
            return found["hold"] if found and found["state"] == "held" else None

        return wait_for(begun, lambda: host.log)

    def offered_again(self, host: Host, lease: str) -> list[str]:
        """Wait for that; the states since the lease's end."""
        host.ended(lease)
        host.ready()
        return host.states_after(lease)


@pytest.fixture(scope="module")
def theatre(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with (
        running_broker(OURS) as broker,
        staged(tmp_path_factory.mktemp("holds"), broker, terms=HASTY) as stage,
    ):
        yield Scene(stage)


@pytest.fixture
def scene(theatre: Scene) -> Iterator[Scene]:
    """Nothing is held, and two hosts offer their environments."""
    yield theatre
    for job in theatre.stage.jobs:
        job.end()
    assert theatre.operator.types("unhold", "*").status == 0
    for rule in theatre.operator.types("holds", "--json").document["autoholds"]:
        assert theatre.operator.types("autohold", "--remove", rule["rule"]["id"]).status == 0
    for host in theatre.hosts:
        host.ready()


def test_what_a_failing_job_leaves_is_held_and_offered_again_in_time(scene: Scene) -> None:
    job, host = scene.failing_job("--hold-on-failure", "2h")
    job.ends_well(3)
    hold = scene.held(host)
    assert (hold["lease"], hold["job"], hold["for_s"]) == (job.lease, job.name, 7200)
    assert (hold["asked_by"], hold["holder"]) == (f"--hold-on-failure of {job.name}", "")
    assert job.said.rstrip().endswith(f"asked for {host.environment} to be held: see testenv holds")
    assert scene.operator.types("hold", host.environment, "--for", "1s").status == 0
    assert scene.offered_again(host, job.lease) == ["dirty", "held", "dirty", "ready"]
    assert scene.hold(host) is None


def succeeds(job: Job) -> None:
    job.ends_well(0)


def is_cancelled(job: Job) -> None:
    job.process.send_signal(signal.SIGTERM)
    job.exits()


def is_killed(job: Job) -> None:
    job.kill()


@pytest.mark.parametrize(
    ("end", "status"),
    [(succeeds, 0), (is_cancelled, 3), (is_killed, 3)],
    ids=["succeeds", "is cancelled", "is killed"],
)
def test_a_job_that_has_not_failed_leaves_nothing_to_be_held(
    scene: Scene, end: Callable[[Job], None], status: int
) -> None:
    job, host = scene.failing_job("--hold-on-failure", "2h", status=status)
    end(job)
    assert scene.offered_again(host, job.lease) == ["dirty", "ready"]


def test_a_revoked_job_leaves_nothing_to_be_held(scene: Scene) -> None:
    job, host = scene.failing_job("--hold-on-failure", "2h")
    said = scene.operator.types("revoke", host.environment, "--reason", "needed", "--yes")
    assert said.status == 0
    assert job.exits() == ExitStatus.LEASE_LOST
    assert scene.offered_again(host, job.lease) == ["dirty", "ready"]


def test_a_job_that_outlives_its_time_has_failed(scene: Scene) -> None:
    job, host = scene.failing_job("--hold-on-failure", "2h", "--timeout", "1")
    assert job.exits() == ExitStatus.LEASE_TIMEOUT
    assert scene.held(host)["lease"] == job.lease
    assert host.ended(job.lease).exit_code == ExitStatus.LEASE_TIMEOUT


def test_a_hold_outlives_its_agent(scene: Scene) -> None:
    job, host = scene.failing_job("--hold-on-failure", "30m")
    job.ends_well(3)
    before = scene.held(host)
    host.kill()
    host.start()
    assert scene.held(host) == before
    assert host.states_after(job.lease) == ["dirty", "held"]


def test_who_takes_it_over_gets_credentials_that_are_newer_than_all_others(
    scene: Scene, tmp_path: Path
) -> None:
    job, host = scene.failing_job("--hold-on-failure", "30m")
    job.ends_well(3)
    scene.held(host)
    given = []
    for name in ("first.json", "second.json"):
        path = tmp_path / name
        said = scene.operator.types("hold", host.environment, "--datafile", str(path))
        assert (said.status, path.stat().st_mode & 0o777) == (0, 0o600), said.err
        document = json.loads(path.read_text())
        assert document["seed-ip"] == "203.0.113.10"
        given.append(document["testenv"]["lease"])
    first, second = given
    assert job.held.generation < first["generation"] < second["generation"]
    assert len({first["secret"], second["secret"], first["id"], second["id"], job.lease}) == 5
    assert first["terms"] is None
    assert 0 < second["timeout_s"] <= 1800
    assert scene.held(host)["holder"]
    text = (host.state_dir / host.name / "journal.db").read_bytes()
    assert second["secret"].encode() not in text
    assert scene.operator.types("unhold", host.environment).status == 0
    later = scene.stage.running_job()
    if scene.host_of(later) is host:
        assert later.held.generation > second["generation"]


def test_an_operator_holds_a_leased_environment_from_its_leases_end_on(
    scene: Scene, tmp_path: Path
) -> None:
    job, host = scene.failing_job(status=0)
    said = scene.operator.types("hold", host.environment, "--for", "1h", "--reason", "a look")
    assert said.status == 0
    assert f"{host.environment}: will be held for 1h00m once its lease ends" in said.out
    early = scene.operator.types(
        "hold", host.environment, "--datafile", str(tmp_path / "held.json")
    )
    assert early.status == ExitStatus.FAILED
    assert "not held yet" in early.err
    assert not (tmp_path / "held.json").exists()
    host.kill()
    host.start()
    job.ends_well(0)
    hold = scene.held(host)
    assert (hold["lease"], hold["reason"], hold["for_s"]) == (job.lease, "a look", 3600)


def test_a_hold_that_is_taken_back_before_its_lease_ends_is_none(scene: Scene) -> None:
    job, host = scene.failing_job()
    assert scene.operator.types("hold", host.environment).status == 0
    said = scene.operator.types("unhold", host.environment)
    assert (said.status, said.out) == (0, f"{host.environment}: not held any more\n")
    job.ends_well(3)
    assert scene.offered_again(host, job.lease) == ["dirty", "ready"]


def test_a_ready_environment_is_held_at_once_and_given_to_nobody(scene: Scene) -> None:
    first, second = scene.hosts
    said = scene.operator.types("hold", first.environment)
    assert (said.status, said.err) == (0, "")
    assert "held until" in said.out
    job = scene.stage.running_job()
    waiting = scene.stage.waiting_job()
    assert scene.host_of(job) is second
    assert scene.operator.types("unhold", first.environment, second.environment).status == 0
    waiting.begins()
    assert scene.host_of(waiting) is first


def test_no_more_are_held_than_the_host_allows(scene: Scene) -> None:
    """Each host has one environment here: see tests/unit/test_holds.py for the count."""
    scene.stage.config.write_text(scene.stage.config.read_text() + "[hold]\nmax_held = 0\n")
    host = scene.hosts[0]
    try:
        host.kill()
        host.start()
        wait_for(lambda: scene.stage.status().get(host.environment), lambda: host.log)
        said = scene.operator.types("hold", host.environment)
        assert said.status == ExitStatus.FAILED
        assert f"{host.name} may hold 0 environments at a time" in said.err
        assert scene.hold(host) is None
    finally:
        text = scene.stage.config.read_text()
        scene.stage.config.write_text(text.removesuffix("[hold]\nmax_held = 0\n"))
        host.kill()
        host.start()


def test_an_autohold_holds_the_next_failure_of_its_job_on_each_host(scene: Scene) -> None:
    said = scene.operator.types("autohold", "--job", "job-*", "--for", "1h", "--reason", "hangs")
    assert said.status == 0, said.err
    rules = scene.operator.types("holds", "--json").document["autoholds"]
    assert {rule["host"] for rule in rules} == {host.name for host in scene.hosts}
    assert {rule["rule"]["left"] for rule in rules} == {1}
    good, host = scene.failing_job(status=0)
    good.ends_well(0)
    assert scene.offered_again(host, good.lease) == ["dirty", "ready"]
    for _ in scene.hosts:
        job, host = scene.failing_job()
        job.ends_well(3)
        hold = scene.held(host)
        assert (hold["reason"], hold["job"]) == ("hangs", job.name)
        assert hold["asked_by"].startswith(f"autohold {rules[0]['rule']['id']} of ")
    document = scene.operator.types("holds", "--json").document
    assert (len(document["holds"]), document["autoholds"]) == (2, [])


def test_an_autohold_can_be_limited_to_hosts_and_removed(scene: Scene) -> None:
    first, _ = scene.hosts
    said = scene.operator.types("autohold", "--job", "*", first.name, "--json")
    assert (said.status, said.results) == (0, {first.name: "done"})
    [rule] = scene.operator.types("holds", "--json").document["autoholds"]
    removed = scene.operator.types("autohold", "--remove", rule["rule"]["id"], "--json")
    assert removed.status == 0
    assert removed.results[first.name] == "done"
    assert scene.operator.types("holds", "--json").document["autoholds"] == []


def test_a_drain_waits_for_a_hold_and_says_for_whom(scene: Scene) -> None:
    host = scene.hosts[0]
    assert scene.operator.types("hold", host.environment).status == 0
    said = scene.operator.types("drain", host.name, "--deadline", "1s")
    assert said.status == ExitStatus.STILL_LEASED
    assert f"{host.environment}: held for" in said.out
    assert scene.operator.types("unhold", host.environment).status == 0
    assert scene.operator.types("drain", host.name, "--wait").status == 0
    assert scene.operator.types("uncordon", host.name).status == 0


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (("hold", "nowhere/1"), 1, "there is no environment nowhere/1"),
        (("hold", "ENV", "--for", "2d"), 1, "may be held for 86400 s ([hold] max_s)"),
        (("hold", "ENV", "--for", "soon"), 2, "'soon' is not a duration"),
        (("hold", "ENV", "--for", "0s"), 2, "must be more than 0s"),
        (("hold", "ENV", "--datafile", "held.txt"), 2, "does not end in .json"),
        (("unhold", "nowhere/1"), 1, "there is no environment nowhere/1"),
        (("autohold",), 2, "needs either --job PATTERN or --remove ID"),
        (("autohold", "--job", "a", "--remove", "b"), 2, "needs either"),
        (("autohold", "--remove", "7c31 f9a0"), 2, "'7c31 f9a0' is no autohold's id"),
        (("autohold", "--job", ""), 2, "is no glob for a name"),
        (("autohold", "--job", "a", "--for", "0s"), 2, "must be more than 0s"),
        (("autohold", "--job", "a", "ENV"), 1, "an autohold is for whole hosts"),
        (("autohold", "--job", "a", "nowhere"), 1, "there is no host nowhere"),
    ],
)
def test_bad_input_is_one_line_and_changes_nothing(
    scene: Scene, words: tuple[str, ...], status: int, message: str
) -> None:
    environment = scene.hosts[0].environment
    said = scene.operator.types(*(environment if word == "ENV" else word for word in words))
    assert said.status == status
    assert message in said.err
    assert "Traceback" not in said.err
    assert scene.operator.types("holds", "--json").document == {"holds": [], "autoholds": []}
