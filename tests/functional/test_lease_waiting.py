"""Clients that wait, that take too long, that speak version 1; and a journal without space."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from schemas.exits import SIGNAL_BASE, ExitStatus
from tests.functional.brokers import OURS, RunningBroker
from tests.functional.client_rig import PEERS
from tests.functional.lease_rig import (
    BOUND_S,
    COMMAND,
    SLACK_S,
    Stage,
    staged,
    wait_for,
    when,
)
from tests.small_disk import fill, small_disk


def test_clients_that_leave_the_queue_are_as_if_they_had_never_been_there(
    broker: RunningBroker, tmp_path: Path
) -> None:
    """One by Ctrl-C, one by SIGKILL; the environment is not even turned over for them."""
    with staged(tmp_path, broker) as stage:
        host = stage.host()
        job = stage.running_job()
        interrupted, killed, heir = (stage.waiting_job(status=7) for _ in range(3))
        began = time.monotonic()
        interrupted.process.send_signal(signal.SIGINT)
        assert interrupted.exits() == SIGNAL_BASE + signal.SIGINT
        assert time.monotonic() - began < SLACK_S
        killed.kill()
        job.ends_well()
        heir.begins()
        end = host.ended(job.lease)
        assert heir.signs[0].at - when(end.ended) < SLACK_S
        heir.ends_well(7)
        host.ended(heir.lease)
        host.ready()
        assert not interrupted.signs
        assert not killed.signs
        assert [each.generation for each in host.leases] == [1, 2]


def test_command_that_outlives_its_timeout_is_dead_before_the_next_is_served(
    broker: RunningBroker, tmp_path: Path
) -> None:
    with staged(tmp_path, broker) as stage:
        host = stage.host()
        slow = stage.job("--timeout", "1")
        slow.begins()
        heir = stage.waiting_job()
        assert slow.exits() == ExitStatus.LEASE_TIMEOUT
        assert slow.is_dead()
        end = host.ended(slow.lease)
        assert end.reason == "the command was stopped after 1 s; allow more with --timeout"
        assert slow.last_sign <= when(end.ended)
        assert 1.0 <= when(end.ended) - when(end.granted) < 1.0 + SLACK_S
        heir.begins()
        heir.ends_well()


# Version 1


@contextmanager
def v1_client(stage: Stage, *command: str) -> Iterator[subprocess.Popen[bytes]]:
    """toci's client, in a process group of its own, which it kills when it loses its lock."""
    argv = [sys.executable, str(PEERS / "v1_client.py"), "-b", stage.addresses, "--", *command]
    with subprocess.Popen(argv, process_group=0) as client:
        try:
            yield client
        finally:
            if client.poll() is None:
                os.killpg(client.pid, signal.SIGKILL)


def test_lease_of_a_version_1_client_ends_when_it_has_ended_and_when_it_is_killed(
    broker: RunningBroker, tmp_path: Path
) -> None:
    with staged(tmp_path, broker) as stage:
        host = stage.host()
        with v1_client(stage, "sh", "-c", "exit 7") as client:
            assert client.wait(timeout=BOUND_S) == 7
        done = wait_for(lambda: host.leases)[0]
        assert host.ended(done.id).reason == "completed"
        folder = tmp_path / "v1"
        folder.mkdir()
        command = [sys.executable, "-S", str(COMMAND), str(folder), "600", "0"]
        with v1_client(stage, *command) as client:
            wait_for((folder / "signs").exists)
            heir = stage.waiting_job(status=7)
            os.killpg(client.pid, signal.SIGKILL)
        heir.begins()
        # gearmand does not tell that a client is gone: it is asked, every now and then.
        assert host.leases[1].reason in ("the client is gone", "no client took it")
        for each in host.leases[:2]:
            assert host.states_after(each.id)[:2] == ["dirty", "ready"]
        heir.ends_well(7)


@contextmanager
def v1_host(stage: Stage) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """toci's worker, and what it says. Its data file names a lease only for lease_command.py."""
    lease = {"id": "v1", "environment": "v1/1", "generation": 1}
    stage.datafile.write_text(json.dumps({"testenv": {"lease": lease}}))
    log = stage.folder / "v1_worker.log"
    argv = [sys.executable, str(PEERS / "v1_worker.py"), "-b", stage.addresses, "--pause", "0"]
    with log.open("wb") as out, subprocess.Popen([*argv, str(stage.datafile)], stdout=out) as host:
        try:
            yield host, log
        finally:
            host.kill()


def test_our_client_s_death_frees_a_version_1_host_and_its_death_ends_our_command(
    broker: RunningBroker, tmp_path: Path
) -> None:
    with staged(tmp_path, broker) as stage, v1_host(stage) as (host, log):
        killed = stage.running_job()
        killed.kill()
        wait_for(lambda: "released: completed" in log.read_text())
        assert killed.is_dead()
        orphan = stage.running_job()
        host.kill()
        assert orphan.exits() == ExitStatus.LEASE_LOST
        assert "lease lost" in orphan.said
        assert orphan.is_dead()


# A journal that cannot be written


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path, kib=768) as mounted:
        yield mounted


@pytest.mark.parametrize("broker", [OURS], ids=str, indirect=True)
def test_full_disk_keeps_the_running_lease_and_grants_no_other_until_there_is_space(
    broker: RunningBroker, tmp_path: Path, disk: Path
) -> None:
    with staged(tmp_path, broker) as stage:
        host = stage.host(state_dir=disk)
        job = stage.running_job(status=7)
        filler = fill(disk)
        waiting = stage.waiting_job(status=7)
        stage.holds(host, job.held)
        job.ends_well(7)
        shown = wait_for(lambda: reason_of(stage, host.environment))
        assert "space" in shown or "full" in shown
        time.sleep(SLACK_S)
        assert not waiting.signs
        assert waiting.process.poll() is None
        filler.unlink()
        waiting.begins()
        waiting.ends_well(7)
        host.ended(waiting.lease)
        first, second = (each.generation for each in host.leases if each.reason == "exited")
        assert first == 1 < second  # a grant that failed may have used one up


def reason_of(stage: Stage, environment: str) -> str:
    """Why an environment is not offered, as `testenv status` tells."""
    reason: str = stage.status()[environment]["reason"]
    return reason
