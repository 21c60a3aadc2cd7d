"""Peers that want too much: of functions, connections, memory, or the broker's time."""

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from broker.protocol import Kind
from broker.wire import PacketReader, request
from tests.functional.brokers import RunningBroker, ours_with, running_broker
from tests.functional.hostile_rig import (
    SERVED_WITHIN_S,
    Fleet,
    RawPeer,
    admin_says,
    fleet,
    refused,
    stranger,
    unharmed,
)
from tests.functional.wire_peers import BOUND_S, until

LIMITS = """
[limits]
queued_per_subject = 1000
job_bytes_per_subject = 16777216
"""

MEGABYTE = 1024 * 1024

FLOODED_WITHIN_S = 10.0
"""While a flood lasts. Flooders, broker and client share the processors with each other and with
whatever else runs; without a fair turn, a client would wait until the flood ends."""


@pytest.fixture(scope="module")
def broker() -> Iterator[RunningBroker]:
    """Without access control: whoever is there may do everything."""
    with running_broker(ours_with(LIMITS)) as running:
        yield running


@pytest.fixture(scope="module")
def served(broker: RunningBroker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with fleet(tmp_path_factory.mktemp("agent"), broker.endpoint, broker.endpoint) as running:
        yield running


@pytest.fixture(autouse=True)
def nobody_is_harmed(broker: RunningBroker, served: Fleet) -> Iterator[None]:
    with unharmed(broker, served):
        yield


def functions(broker: RunningBroker) -> set[str]:
    """All that the broker knows."""
    rows = admin_says(broker.endpoint, b"status\n").splitlines()
    return {row.split("\t")[0] for row in rows} - {"."}


def only_the_usual(broker: RunningBroker) -> bool:
    """Whether it knows no function but the agent's and the bystanders'."""
    return all(name.startswith(("lockenv", "host.", "lease_bys")) for name in functions(broker))


# Functions


def test_10_000_functions_on_one_connection_are_too_many(broker: RunningBroker) -> None:
    flood = b"".join(request(Kind.CAN_DO, b"flood-%d" % number) for number in range(10_000))
    assert refused(broker.endpoint, flood) == "LIMIT_EXCEEDED"
    assert only_the_usual(broker)


def test_function_names_used_once_are_forgotten(broker: RunningBroker) -> None:
    with stranger(broker.endpoint) as peer:
        for number in range(5_000):
            name = b"once-%d" % number
            peer.say(request(Kind.CAN_DO, name) + request(Kind.CANT_DO, name))
        assert peer.is_heard()
        assert only_the_usual(broker)


def test_names_of_jobs_that_nobody_did_are_forgotten(broker: RunningBroker) -> None:
    with stranger(broker.endpoint) as peer:
        peer.say(
            b"".join(request(Kind.SUBMIT_JOB, b"once-%d" % job, b"", b"") for job in range(900))
        )
        assert peer.is_heard()
        assert len(functions(broker)) >= 900
    until(lambda: only_the_usual(broker))


# Queues


def test_client_with_too_many_queued_jobs_is_refused_those_too_many(broker: RunningBroker) -> None:
    with stranger(broker.endpoint) as peer:
        for number in range(2_000):
            peer.ask(Kind.SUBMIT_JOB, b"nobody", b"", b"%d" % number)
        kinds = [peer.hears_first().kind for _ in range(2_000)]
        assert kinds == [Kind.JOB_CREATED] * 1_000 + [Kind.ERROR] * 1_000
        assert peer.is_heard()
        with stranger(broker.endpoint) as neighbour:
            neighbour.ask(Kind.SUBMIT_JOB, b"nobody", b"", b"")
            assert neighbour.hears(Kind.ERROR).startswith(b"QUEUE_LIMIT\0")
            assert neighbour.is_heard()
    until(lambda: only_the_usual(broker))


def test_client_with_large_jobs_is_refused_those_too_many(broker: RunningBroker) -> None:
    with stranger(broker.endpoint) as peer:
        for _ in range(200):
            peer.ask(Kind.SUBMIT_JOB, b"nobody", b"", b"x" * (MEGABYTE - 1024))
        kinds = [peer.hears_first().kind for _ in range(200)]
        assert 10 < kinds.count(Kind.JOB_CREATED) < 20
        assert peer.is_heard()


def test_one_job_for_countless_submissions_is_not_told_to_each(broker: RunningBroker) -> None:
    with stranger(broker.endpoint) as client, stranger(broker.endpoint) as worker:
        client.say(request(Kind.SUBMIT_JOB, b"lease_f", b"same", b"") * 5_000)
        assert client.is_heard()
        worker.say(request(Kind.CAN_DO, b"lease_f") + request(Kind.GRAB_JOB))
        handle = worker.hears(Kind.JOB_ASSIGN).split(b"\0")[0]
        worker.ask(Kind.WORK_COMPLETE, handle, b"done")
        assert worker.is_heard()
        client.ask(Kind.ECHO_REQ, b"that was all")
        ends = 0
        while (kind := client.hears_first().kind) != Kind.ECHO_RES:
            ends += kind == Kind.WORK_COMPLETE
        assert ends == 1_000


def test_background_jobs_of_our_functions_do_not_stay(broker: RunningBroker) -> None:
    with stranger(broker.endpoint) as peer:
        peer.ask(Kind.SUBMIT_JOB_BG, b"lease_nobody", b"", b"")
        assert peer.hears_first().data.startswith(b"NO_BACKGROUND\0")
    assert only_the_usual(broker)


def test_clients_that_submit_and_vanish_leave_no_jobs(broker: RunningBroker) -> None:
    for number in range(200):
        with stranger(broker.endpoint) as peer:
            for _ in range(10):
                peer.ask(Kind.SUBMIT_JOB, b"lockenv-not", b"", b"")
            if number % 2:
                peer.reset()
    until(lambda: only_the_usual(broker))


def test_lock_requests_of_clients_that_vanish_are_given_to_nobody(broker: RunningBroker) -> None:
    with holder(broker):
        for number in range(100):
            with stranger(broker.endpoint) as peer:
                callback = b'{"callback_name": "callback_%d"}' % number
                peer.ask(Kind.SUBMIT_JOB, b"lockenv", b"", callback)
                peer.hears(Kind.JOB_CREATED)
        until(lambda: "lockenv\t1\t1\t1" in admin_says(broker.endpoint, b"status\n"))


@contextmanager
def holder(broker: RunningBroker) -> Iterator[None]:
    """A well-behaved client of version 1, which holds the environment meanwhile."""
    with stranger(broker.endpoint) as client:
        client.ask(Kind.CAN_DO, b"callback_holder")
        client.ask(Kind.SUBMIT_JOB, b"lockenv", b"", b'{"callback_name": "callback_holder"}')
        client.ask(Kind.PRE_SLEEP)
        client.hears(Kind.NOOP)
        client.ask(Kind.GRAB_JOB)
        callback = client.hears(Kind.JOB_ASSIGN).split(b"\0")[0]
        yield
        client.ask(Kind.WORK_COMPLETE, callback, b"")
        client.hears(Kind.WORK_COMPLETE)


def test_workers_that_grab_and_vanish_fail_the_job_at_once(broker: RunningBroker) -> None:
    with stranger(broker.endpoint) as client:
        for _ in range(50):
            client.ask(Kind.SUBMIT_JOB, b"lease_f", b"", b"")
            handle = client.hears(Kind.JOB_CREATED)
            with stranger(broker.endpoint) as worker:
                worker.say(request(Kind.CAN_DO, b"lease_f") + request(Kind.GRAB_JOB))
                worker.hears(Kind.JOB_ASSIGN)
            assert client.hears(Kind.WORK_FAIL) == handle


# Sleepers


def test_sleepers_that_never_grab_are_passed_over(broker: RunningBroker, served: Fleet) -> None:
    with ExitStack() as open_ones:
        for _ in range(20):
            peer = open_ones.enter_context(stranger(broker.endpoint))
            peer.say(request(Kind.CAN_DO, b"lockenv") + request(Kind.PRE_SLEEP))
            assert peer.is_heard()
        for _ in range(5):
            assert served.serves() <= SERVED_WITHIN_S


def test_next_worker_is_woken_when_one_does_not_grab(broker: RunningBroker) -> None:
    offer = request(Kind.CAN_DO, b"lease_slow") + request(Kind.PRE_SLEEP)
    with (
        stranger(broker.endpoint) as first,
        stranger(broker.endpoint) as second,
        stranger(broker.endpoint) as client,
    ):
        for worker in (first, second):
            worker.say(offer)
            assert worker.is_heard()
        client.ask(Kind.SUBMIT_JOB, b"lease_slow", b"", b"")
        first.hears(Kind.NOOP)
        second.hears(Kind.NOOP)
        second.ask(Kind.GRAB_JOB)
        second.hears(Kind.JOB_ASSIGN)


def test_peer_that_never_stops_grabbing_and_sleeping(broker: RunningBroker, served: Fleet) -> None:
    with busy(broker, request(Kind.GRAB_JOB) + request(Kind.PRE_SLEEP)):
        assert served.serves() <= FLOODED_WITHIN_S


# Slow readers


def test_peer_that_does_not_read_its_echoes_is_cut_off(broker: RunningBroker) -> None:
    with stranger(broker.endpoint) as peer, cut_off(broker):
        for _ in range(50):
            peer.ask(Kind.ECHO_REQ, b"x" * MEGABYTE)


def test_peer_that_does_not_read_admin_answers_is_cut_off(broker: RunningBroker) -> None:
    with stranger(broker.endpoint) as crowd, stranger(broker.endpoint) as peer:
        for number in range(900):
            crowd.ask(Kind.SUBMIT_JOB, b"lease_%d" % number + b"x" * 400, b"", b"")
        assert crowd.is_heard()
        with cut_off(broker):
            peer.say(b"status\n" * 1_000)


def test_client_that_does_not_read_its_jobs_data_is_cut_off(broker: RunningBroker) -> None:
    with stranger(broker.endpoint) as client, stranger(broker.endpoint) as worker:
        client.ask(Kind.SUBMIT_JOB, b"lease_f", b"", b"")
        worker.say(request(Kind.CAN_DO, b"lease_f") + request(Kind.GRAB_JOB))
        handle = worker.hears(Kind.JOB_ASSIGN).split(b"\0")[0]
        with cut_off(broker):
            for _ in range(50):
                worker.ask(Kind.WORK_DATA, handle, b"x" * (MEGABYTE - 100))
        worker.ask(Kind.WORK_COMPLETE, handle, b"")
        assert worker.is_heard()


@contextmanager
def cut_off(broker: RunningBroker) -> Iterator[None]:
    """What is done within ends one connection, whose peer does not read."""

    def count() -> int:
        return broker.log.count("does not read")

    before = count()
    yield
    until(lambda: count() == before + 1)


# Connections


def test_5_000_connections_opened_and_dropped(broker: RunningBroker) -> None:
    for number in range(5_000):
        with stranger(broker.endpoint) as peer:
            if number % 3 == 0:
                peer.ask(Kind.SET_CLIENT_ID, b"passing-by")
            if number % 5 == 0:
                peer.reset()


def test_5_000_connections_at_once_from_one_address_are_too_many(broker: RunningBroker) -> None:
    """The others still get in; those too many are told why."""
    with ExitStack() as open_ones:
        peers = [open_ones.enter_context(stranger(broker.endpoint)) for _ in range(5_000)]
        *_, last = PacketReader().feed(peers[-1].hears_the_end())
        assert last.data.startswith(b"LIMIT_EXCEEDED\0")
        assert peers[0].is_heard()


# Floods


@contextmanager
def busy(broker: RunningBroker, data: bytes) -> Iterator[None]:
    """Two peers say it all the time, and read what is answered."""
    stop = threading.Event()

    def read(peer: RawPeer) -> None:
        peer.hears_the_end()

    def say(peer: RawPeer) -> None:
        while not stop.is_set():
            peer.say(data * 200)
        peer.socket.shutdown(socket.SHUT_RDWR)

    with ExitStack() as stack:
        for _ in range(2):
            peer = stack.enter_context(stranger(broker.endpoint))
            for act in (read, say):
                thread = threading.Thread(target=act, args=(peer,))
                thread.start()
                stack.callback(thread.join, BOUND_S)
        stack.callback(stop.set)
        yield


@pytest.mark.parametrize(
    "line",
    [
        b"maxqueue", b"maxqueue f x", b"maxqueue f 1 2", b"maxqueue f " + b"9" * 400,
        b"create function", b"create function a b", b"drop function", b"cancel job", b"show",
        b"show nothing", b"", b" ", b"sta\0tus", b"sta\xfftus", b"status" + b" " * 4000,
    ],
    ids=lambda line: repr(line[:20]),
)  # fmt: skip
def test_odd_admin_command_is_answered_with_a_line(broker: RunningBroker, line: bytes) -> None:
    with stranger(broker.endpoint) as peer:
        said = peer.answers_to(b"nonsense\n" + line + b"\n")
        assert said.startswith(b"ERR UNKNOWN_COMMAND")
        assert said.endswith(b"\n")
        assert said.count(b"\n") >= 2


@pytest.mark.parametrize(
    "data",
    [
        request(Kind.ECHO_REQ, b"x" * 100),
        request(Kind.GET_STATUS, b"H:guess:1"),
        request(Kind.WORK_COMPLETE, b"H:guess:1", b""),
        request(Kind.SUBMIT_JOB, b"lease_f", b"same", b""),
        request(Kind.CAN_DO, b"f") + request(Kind.RESET_ABILITIES),
        b"status\n",
        b"no such command\n",
        b"\n",
    ],
    ids=["echo", "status of", "complete", "submit", "register", "status", "unknown", "empty"],
)
def test_clients_are_served_while_others_flood_the_broker(
    broker: RunningBroker, served: Fleet, data: bytes
) -> None:
    with busy(broker, data):
        assert served.serves() <= FLOODED_WITHIN_S
