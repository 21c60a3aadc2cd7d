"""Libraries that share no code with gear or gearmand: Perl's Gearman, and pygearman."""

import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import gearman

from broker.endpoint import Endpoint
from tests.functional.brokers import OURS, RunningBroker, running_broker
from tests.functional.tls_rig import Fleet, tls_broker
from tests.functional.wire_peers import BOUND_S, until

T = TypeVar("T", gearman.GearmanClient, gearman.GearmanAdminClient)

PEERS = Path(__file__).with_name("peers")

# Perl


def perl(script: str, at: Endpoint) -> list[str]:
    """The command that runs one of the Perl peers."""
    where = [at.host, str(at.port), *map(str, at.tls or ())]
    return ["setpriv", "--pdeathsig", "KILL", "perl", str(PEERS / script), *where]


@contextmanager
def perl_worker(at: Endpoint) -> Iterator[None]:
    with subprocess.Popen(perl("worker.pl", at)) as worker:
        try:
            yield
        finally:
            worker.kill()


def perl_client(at: Endpoint) -> str:
    """What it says."""
    command = perl("client.pl", at)
    return subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=BOUND_S
    ).stdout


PLAIN = """\
status 1 2
complete cba
status 1 2
exception nothing to do
background known 1 running 0 same 1
"""

OVER_TLS = """\
complete cba
exception nothing to do
"""


def test_perl_client_and_worker_work(broker: RunningBroker) -> None:
    with perl_worker(broker.endpoint):
        assert perl_client(broker.endpoint) == PLAIN


def test_perl_client_and_worker_work_over_tls(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, "127.0.0.1")
    with (
        tls_broker(fleet) as broker,
        perl_worker(broker.at(fleet.issue("host", "worker"))),
    ):
        said = perl_client(broker.at(fleet.issue("job", "client")))
    assert said == OVER_TLS


# pygearman


@contextmanager
def connected(kind: type[T], at: Endpoint) -> Iterator[T]:
    """One of its clients, whose connections are closed at the end."""
    client = kind([str(at)])
    try:
        yield client
    finally:
        client.shutdown()


@contextmanager
def pygearman_worker(
    at: Endpoint,
    function: str,
    act: Callable[[gearman.GearmanWorker, gearman.job.GearmanJob], bytes],
) -> Iterator[None]:
    """Does `act` for each job, in a thread of its own."""
    stop = threading.Event()

    class Worker(gearman.GearmanWorker):  # type: ignore[misc]  # pygearman has no type hints
        def after_poll(self, any_activity: bool) -> bool:  # noqa: ARG002 - pygearman's name
            return not stop.is_set()

    worker = Worker([str(at)])
    worker.set_client_id("pygearman/1")
    # It compares what the broker sends, bytes, with its function's name as given here.
    worker.register_task(function.encode(), act)
    thread = threading.Thread(target=worker.work, kwargs={"poll_timeout": 0.02})
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(BOUND_S)


def test_pygearman_client_gets_all_that_its_worker_sends(broker: RunningBroker) -> None:
    def act(worker: gearman.GearmanWorker, job: gearman.job.GearmanJob) -> bytes:
        worker.send_job_status(job, 1, 2)
        worker.send_job_data(job, "part")
        worker.send_job_warning(job, "hot")
        return bytes(job.data[::-1])

    at = broker.endpoint
    with connected(gearman.GearmanClient, at) as client, pygearman_worker(at, "f", act):
        job = client.submit_job("f", "abc", poll_timeout=BOUND_S)
    assert (job.state, job.result) == (gearman.JOB_COMPLETE, b"cba")
    assert (list(job.data_updates), list(job.warning_updates)) == ([b"part"], [b"hot"])
    assert (job.status["numerator"], job.status["denominator"]) == (1, 2)


def test_pygearman_client_learns_that_its_job_failed(broker: RunningBroker) -> None:
    def act(_worker: gearman.GearmanWorker, _job: gearman.job.GearmanJob) -> bytes:
        raise ValueError("nothing to do")

    at = broker.endpoint
    with connected(gearman.GearmanClient, at) as client, pygearman_worker(at, "f", act):
        job = client.submit_job("f", "abc", poll_timeout=BOUND_S)
    assert job.state == gearman.JOB_FAILED


def test_pygearman_client_is_told_how_its_job_is(broker: RunningBroker) -> None:
    with connected(gearman.GearmanClient, broker.endpoint) as client:
        job = client.submit_job("nobody", "", wait_until_complete=False, poll_timeout=BOUND_S)
        status = client.get_job_status(job, poll_timeout=BOUND_S).status
    assert (status["known"], status["running"]) == (True, False)


def test_pygearman_admin_client_is_answered(broker: RunningBroker) -> None:
    at = broker.endpoint
    with (
        connected(gearman.GearmanAdminClient, at) as admin,
        connected(gearman.GearmanClient, at) as client,
    ):
        client.submit_job("f", "", unique="one", background=True, poll_timeout=BOUND_S)
        with pygearman_worker(at, "g", lambda _worker, _job: b""):
            until(lambda: ("pygearman/1", ("g",)) in workers(admin))
            assert sorted(admin.get_status(), key=lambda row: str(row["task"])) == [
                {"task": "f", "queued": 1, "running": 0, "workers": 0},
                {"task": "g", "queued": 0, "running": 0, "workers": 1},
            ]
        assert admin.ping_server() < BOUND_S
        assert admin.get_version().startswith("OK ")
        assert admin.get_pid() == f"OK {broker.pid}"
        [job] = admin.get_jobs()
        assert admin.get_unique_jobs() == ({"unique": ["one"]},)
        assert admin.cancel_job(job["handle"]).strip() == "OK"


def workers(admin: gearman.GearmanAdminClient) -> list[tuple[str, tuple[str, ...]]]:
    """Names and functions of all connections."""
    return [(row["client_id"], row["tasks"]) for row in admin.get_workers()]


def test_pygearman_admin_client_limits_a_queue_and_shuts_the_broker_down() -> None:
    """gearmand's lines end in a carriage return, which pygearman takes for a part of the answer."""
    with (
        running_broker(OURS) as broker,
        connected(gearman.GearmanAdminClient, broker.endpoint) as admin,
    ):
        assert admin.send_maxqueue("f", 1) == "OK"
        admin.send_shutdown(graceful=True)
        until(broker.has_ended)
