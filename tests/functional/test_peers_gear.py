"""gear's own Client and Worker on our broker: the scenarios of gear's functional tests, and more.

The worker is driven step by step, as in gear's tests: a job comes when `getJob` returns.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import gear
import pytest

from broker.endpoint import Endpoint
from tests.functional.brokers import OURS, running_broker
from tests.functional.tls_rig import Fleet, tls_broker
from tests.functional.wire_peers import BOUND_S, until

FUNCTION = "lease_test"
"""One that a job may ask for and a host may do, for the runs with certificates."""

pytestmark = [
    # gear 0.16 makes its TLS contexts as Python 3.6 did.
    pytest.mark.filterwarnings("ignore:ssl.PROTOCOL_TLS is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:ssl.OP_NO_SSL.*:DeprecationWarning"),
]


class Peers:
    """Where a client and a worker of gear's may connect to."""

    def __init__(self, client_at: Endpoint, worker_at: Endpoint) -> None:
        self._client_at = client_at
        self._worker_at = worker_at

    def client(self) -> gear.Client:
        """One that is connected."""
        return _connect(gear.Client("client"), self._client_at)

    def worker(self, make: Callable[[str], gear.Worker] = gear.Worker) -> gear.Worker:
        """One that is connected and offers nothing yet."""
        return _connect(make("worker"), self._worker_at)


def _connect(peer: gear.BaseClient, to: Endpoint) -> gear.BaseClient:
    tls = to.tls
    files = (str(tls.key), str(tls.cert), str(tls.ca)) if tls else ()
    peer.addServer(to.host, to.port, *files)
    peer.waitForServer(timeout=BOUND_S)
    return peer


@contextmanager
def plain_peers(_: Path) -> Iterator[Peers]:
    with running_broker(OURS) as broker:
        yield Peers(broker.endpoint, broker.endpoint)


@contextmanager
def tls_peers(folder: Path) -> Iterator[Peers]:
    fleet = Fleet(folder, "127.0.0.1")
    with tls_broker(fleet) as broker:
        client_at, worker_at = fleet.issue("job", "client"), fleet.issue("host", "worker")
        yield Peers(broker.at(client_at), broker.at(worker_at))


@pytest.fixture(scope="module", params=[plain_peers, tls_peers], ids=["plain", "tls"])
def peers(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Peers]:
    with request.param(tmp_path_factory.mktemp("pki")) as peers:
        yield peers


@pytest.fixture
def client(peers: Peers) -> Iterator[gear.Client]:
    with _stopped_at_the_end(peers.client()) as client:
        yield client


@pytest.fixture
def worker(peers: Peers) -> Iterator[gear.Worker]:
    with _stopped_at_the_end(peers.worker()) as worker:
        worker.registerFunction(FUNCTION)
        yield worker


@contextmanager
def _stopped_at_the_end(peer: gear.BaseClient) -> Iterator[gear.BaseClient]:
    try:
        yield peer
    finally:
        peer.shutdown()


def submitted(
    client: gear.Client, arguments: bytes = b"", *, function: str = FUNCTION, **how: object
) -> gear.Job:
    """A job that the broker has."""
    job = gear.Job(function.encode(), arguments)
    client.submitJob(job, timeout=BOUND_S, **how)
    assert job.handle
    return job


def until_complete(job: gear.Job) -> None:
    """Wait for its end, good or bad."""
    until(lambda: job.complete)


def test_data_and_completion_reach_the_client(client: gear.Client, worker: gear.Worker) -> None:
    for _ in range(2):
        job = submitted(client, b"testdata")
        taken = worker.getJob()
        assert (taken.handle, taken.arguments) == (job.handle, b"testdata")
        taken.sendWorkData(b"workdata")
        taken.sendWorkComplete()
        until_complete(job)
        assert (job.data, job.failure) == ([b"workdata"], False)


def test_status_and_warnings_reach_the_client(client: gear.Client, worker: gear.Worker) -> None:
    job = submitted(client)
    taken = worker.getJob()
    taken.sendWorkStatus(3, 7)
    taken.sendWorkWarning(b"hot")
    taken.sendWorkComplete(b"done")
    until_complete(job)
    assert (job.numerator, job.denominator, job.fraction_complete) == (b"3", b"7", 3 / 7)
    assert job.warning
    assert job.data == [b"hot", b"done"]


def test_failure_reaches_the_client(client: gear.Client, worker: gear.Worker) -> None:
    job = submitted(client)
    worker.getJob().sendWorkFail()
    until_complete(job)
    assert job.failure


def test_exception_reaches_a_client_that_asked_for_exceptions(
    client: gear.Client, worker: gear.Worker
) -> None:
    client.setOption("exceptions")
    job = submitted(client)
    worker.getJob().sendWorkException(b"work failed")
    until_complete(job)
    assert (job.exception, job.failure) == (b"work failed", True)


def test_exception_is_a_failure_to_a_client_that_did_not_ask(
    client: gear.Client, worker: gear.Worker
) -> None:
    """Passed on in any case, as geard does, pygearman would wait on, and C's gearman exit 0."""
    job = submitted(client)
    worker.getJob().sendWorkException(b"work failed")
    until_complete(job)
    assert (job.exception, job.failure) == (None, True)


def test_background_job_outlives_its_client() -> None:
    with running_broker(OURS) as broker:
        peers = Peers(broker.endpoint, broker.endpoint)
        with _stopped_at_the_end(peers.client()) as client:
            job = submitted(client, b"testdata", function="test", background=True)
        with _stopped_at_the_end(peers.worker()) as worker:
            worker.registerFunction("test")
            taken = worker.getJob()
            assert (taken.handle, taken.arguments) == (job.handle, b"testdata")
            taken.sendWorkData(b"for nobody")
            taken.sendWorkComplete()


def test_background_job_of_our_functions_is_refused(
    client: gear.Client, worker: gear.Worker
) -> None:
    with pytest.raises(gear.GearmanError):
        submitted(client, background=True)
    job = submitted(client)
    assert worker.getJob().handle == job.handle


def test_urgent_jobs_come_first_and_others_in_their_order(
    client: gear.Client, worker: gear.Worker
) -> None:
    for name, precedence in [
        (b"low", gear.PRECEDENCE_LOW),
        (b"first", gear.PRECEDENCE_NORMAL),
        (b"second", gear.PRECEDENCE_NORMAL),
        (b"high", gear.PRECEDENCE_HIGH),
    ]:
        submitted(client, name, precedence=precedence)
    done = []
    for _ in range(4):
        job = worker.getJob()
        done.append(job.arguments)
        job.sendWorkComplete()
    assert done == [b"high", b"first", b"second", b"low"]


def test_worker_stops_waiting_when_told(worker: gear.Worker) -> None:
    with _waiting_for(worker) as waiter:
        worker.stopWaitingForJobs()
        waiter.join(BOUND_S)
        assert not waiter.is_alive()


def test_registering_wakes_a_worker_for_a_job_that_waits(peers: Peers, client: gear.Client) -> None:
    job = submitted(client)
    with (
        _stopped_at_the_end(peers.worker()) as worker,
        _waiting_for(worker, lambda job: job.sendWorkComplete()),
    ):
        until(lambda: worker.active_connections[0].state == "SLEEP")
        assert not job.complete
        worker.registerFunction(FUNCTION)
        until_complete(job)
        worker.stopWaitingForJobs()


def test_function_taken_back_is_not_served(
    peers: Peers, client: gear.Client, worker: gear.Worker
) -> None:
    worker.unRegisterFunction(FUNCTION)
    job = submitted(client, b"for another")
    with _stopped_at_the_end(peers.worker()) as other:
        other.registerFunction(FUNCTION)
        taken = other.getJob()
        assert (taken.handle, taken.arguments) == (job.handle, b"for another")
        taken.sendWorkComplete()
        until_complete(job)


def test_job_fails_when_its_worker_takes_longer_than_it_said(
    peers: Peers, client: gear.Client
) -> None:
    job = submitted(client)
    with _stopped_at_the_end(peers.worker()) as worker:
        worker.registerFunction(FUNCTION, timeout=b"1")
        worker.getJob()
        until_complete(job)
    assert job.failure


def test_death_of_the_worker_fails_its_job(peers: Peers, client: gear.Client) -> None:
    job = submitted(client)
    with _stopped_at_the_end(peers.worker()) as worker:
        worker.registerFunction(FUNCTION)
        worker.getJob()
    until_complete(job)
    assert job.failure


def test_texts_are_passed_on_with_their_unique_ids(peers: Peers, client: gear.Client) -> None:
    with _stopped_at_the_end(peers.worker(gear.TextWorker)) as worker:
        worker.registerFunction(FUNCTION)
        job = gear.TextJob(FUNCTION, "Prüfdaten", unique="eins")
        client.submitJob(job, timeout=BOUND_S)
        taken = worker.getJob()
        assert (taken.name, taken.arguments, taken.unique) == (FUNCTION, "Prüfdaten", "eins")
        taken.sendWorkData("Ergebnis")
        taken.sendWorkComplete()
        until_complete(job)
        assert (job.data, job.unique) == (["Ergebnis"], "eins")


def test_jobs_with_one_unique_id_are_one_job(client: gear.Client, worker: gear.Worker) -> None:
    """Two jobs in gear's eyes; it keeps the last one it was given a handle for."""
    first, second = (gear.TextJob(FUNCTION, "", unique="same") for _ in range(2))
    client.submitJob(first, timeout=BOUND_S)
    client.submitJob(second, timeout=BOUND_S)
    assert first.handle == second.handle
    worker.getJob().sendWorkComplete(b"once")
    until_complete(second)
    assert second.data == ["once"]


def test_client_is_told_how_its_job_is(client: gear.Client, worker: gear.Worker) -> None:
    jobs = [submitted(client), submitted(client)]
    connection = jobs[1].connection
    connection.sendPacket(
        gear.Packet(gear.constants.REQ, gear.constants.GET_STATUS, jobs[1].handle)
    )
    until(lambda: jobs[1].denominator)
    assert (jobs[1].known, jobs[1].running) == (True, False)
    assert (jobs[1].numerator, jobs[1].denominator) == (b"2", b"2")
    for _ in jobs:
        worker.getJob().sendWorkComplete()


def test_admin_requests_of_gear_are_answered() -> None:
    with (
        running_broker(OURS) as broker,
        _stopped_at_the_end(_connect(gear.Client("client"), broker.endpoint)) as client,
    ):
        [connection] = client.active_connections
        ask = partial(_ask, connection)
        job = submitted(client)
        handle = job.handle.decode()
        assert ask(gear.StatusAdminRequest()) == f"{FUNCTION}\t1\t0\t0\n.\n"
        assert ask(gear.ShowJobsAdminRequest()) == f"{handle}\t0\t0\t1\n.\n"
        assert ask(gear.ShowUniqueJobsAdminRequest()) == ".\n"
        assert " 127.0.0.1 - : \n" in ask(gear.WorkersAdminRequest())
        assert ask(gear.VersionAdminRequest()).startswith("OK ")
        assert ask(gear.CancelJobAdminRequest(job.handle)) == "OK\n"
        until_complete(job)
        assert job.failure
        assert ask(gear.CancelJobAdminRequest(job.handle)).startswith("ERR UNKNOWN_JOB")


def _ask(connection: gear.Connection, request: gear.AdminRequest) -> str:
    connection.sendAdminRequest(request, timeout=BOUND_S)
    answer: bytes = request.response
    return answer.decode()


@contextmanager
def _waiting_for(
    worker: gear.Worker, act: Callable[[gear.WorkerJob], None] | None = None
) -> Iterator[threading.Thread]:
    """The worker waits for a job in a thread of its own, which ends after that job."""

    def work() -> None:
        try:
            job = worker.getJob()
        except gear.InterruptedError:
            return
        assert act
        act(job)

    with ExitStack() as stack:
        thread = threading.Thread(target=work)
        thread.start()
        stack.callback(thread.join, BOUND_S)
        yield thread
