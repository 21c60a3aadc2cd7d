"""Peers that reach for what is another's: jobs, functions, handles."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest

from broker.endpoint import Endpoint
from broker.protocol import Kind
from broker.wire import request, response
from tests.functional.brokers import ours_with, running_broker
from tests.functional.hostile_rig import (
    BYSTANDER,
    SERVED_WITHIN_S,
    Fleet,
    RawPeer,
    fleet,
    stranger,
)
from tests.functional.test_hostile_packets import NARROW
from tests.functional.tls_rig import Fleet as Certificates
from tests.functional.tls_rig import tls_broker


class Place(NamedTuple):
    """One broker as its different peers reach it."""

    host: Endpoint
    job: Endpoint
    other_host: Endpoint
    other_job: Endpoint


@contextmanager
def plain(_: Path) -> Iterator[Place]:
    with running_broker(ours_with(NARROW)) as broker:
        yield Place(*[broker.endpoint] * 4)


@contextmanager
def with_certificates(folder: Path) -> Iterator[Place]:
    certificates = Certificates(folder, "127.0.0.1")
    # The agent's name is this machine's, with what it is served as.
    own = f"{socket.gethostname().partition('.')[0]}-1"
    with tls_broker(certificates) as broker:
        yield Place(
            broker.at(certificates.issue("host", own)),
            broker.at(certificates.issue("job", "ci-1")),
            broker.at(certificates.issue("host", "other")),
            broker.at(certificates.issue("job", "ci-2")),
        )


@pytest.fixture(scope="module", params=[plain, with_certificates], ids=["plain", "tls"])
def place(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    with request.param(tmp_path_factory.mktemp("pki")) as place:
        yield place


@pytest.fixture(scope="module")
def served(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with fleet(tmp_path_factory.mktemp("agent"), place.host, place.job) as running:
        yield running


@pytest.fixture(autouse=True)
def clients_are_served_afterwards(served: Fleet) -> Iterator[None]:
    before = served.connections
    yield
    assert served.serves() <= SERVED_WITHIN_S
    assert served.connections == before


class Scene:
    """A client's job of `lease_scene`, and the worker that has it or will have it."""

    def __init__(self, place: Place, stack: ExitStack) -> None:
        connect = partial(RawPeer, address=BYSTANDER)
        self.client = stack.enter_context(closing(connect(place.job, tls=place.job.tls)))
        self.worker = stack.enter_context(closing(connect(place.host, tls=place.host.tls)))
        self.client.ask(Kind.SUBMIT_JOB, b"lease_scene", b"unique", b"")
        self.handle = self.client.hears(Kind.JOB_CREATED)

    def begin(self) -> None:
        """The worker takes the job."""
        self.worker.say(request(Kind.CAN_DO, b"lease_scene") + request(Kind.GRAB_JOB))
        self.worker.hears(Kind.JOB_ASSIGN)

    def ends_well(self) -> None:
        """The worker completes the job; that is the first that the client hears of it."""
        self.worker.ask(Kind.WORK_COMPLETE, self.handle, b"genuine")
        assert self.client.hears_first() == (Kind.WORK_COMPLETE, self.handle + b"\0genuine")


@pytest.fixture
def scene(place: Place) -> Iterator[Scene]:
    with ExitStack() as stack:
        yield Scene(place, stack)


WORK = [
    (Kind.WORK_COMPLETE, (b"forged",)),
    (Kind.WORK_FAIL, ()),
    (Kind.WORK_EXCEPTION, (b"forged",)),
    (Kind.WORK_DATA, (b"forged",)),
    (Kind.WORK_WARNING, (b"forged",)),
    (Kind.WORK_STATUS, (b"1", b"2")),
]


@pytest.mark.parametrize("side", ["other_host", "other_job", "job"])
def test_only_its_worker_reports_on_a_job_or_ends_it(place: Place, scene: Scene, side: str) -> None:
    scene.begin()
    at: Endpoint = getattr(place, side)
    with stranger(at, at.tls) as forger:
        for kind, rest in WORK:
            forger.ask(kind, scene.handle, *rest)
            assert forger.hears(Kind.ERROR).startswith(b"JOB_NOT_FOUND\0")
        assert forger.is_heard()
    scene.ends_well()


def test_nobody_ends_a_job_that_still_waits(place: Place, scene: Scene) -> None:
    with stranger(place.other_host, place.other_host.tls) as forger:
        forger.ask(Kind.WORK_COMPLETE, scene.handle, b"forged")
        assert forger.hears(Kind.ERROR).startswith(b"JOB_NOT_FOUND\0")
    scene.begin()
    scene.ends_well()


def test_nobody_reports_on_a_job_that_is_over(place: Place, scene: Scene) -> None:
    scene.begin()
    scene.ends_well()
    with stranger(place.other_host, place.other_host.tls) as late:
        late.ask(Kind.WORK_COMPLETE, scene.handle, b"forged")
        assert late.hears(Kind.ERROR).startswith(b"JOB_NOT_FOUND\0")
    assert scene.client.is_heard()


def test_only_its_submitter_is_told_of_a_job(place: Place, scene: Scene) -> None:
    scene.client.ask(Kind.GET_STATUS, scene.handle)
    assert scene.client.hears(Kind.STATUS_RES) == scene.handle + b"\0001\0000\0001\0001"
    with stranger(place.other_job, place.other_job.tls) as curious:
        curious.ask(Kind.GET_STATUS, scene.handle)
        assert curious.hears(Kind.STATUS_RES) == scene.handle + b"\0000\0000\0000\0000"
        curious.ask(Kind.GET_STATUS_UNIQUE, b"unique")
        assert curious.hears(Kind.STATUS_RES_UNIQUE) == b"unique\0000\0000\0000\0000\0000"
    scene.begin()
    scene.ends_well()


def test_only_its_submitter_cancels_a_job(place: Place, scene: Scene) -> None:
    with stranger(place.other_job, place.other_job.tls) as vandal:
        vandal.say(b"cancel job " + scene.handle + b"\n")
        assert vandal.hears_line().startswith("ERR UNKNOWN_JOB")
    scene.begin()
    scene.ends_well()


def test_its_submitter_does_cancel_a_job(scene: Scene) -> None:
    said = scene.client.answers_to(b"cancel job " + scene.handle + b"\n")
    assert said == response(Kind.WORK_FAIL, scene.handle) + b"OK\n"


def test_handles_do_not_tell_the_next_one(place: Place) -> None:
    """Neither counted nor timed: no two share more than the prefix and the subject."""
    with stranger(place.job, place.job.tls) as client:
        handles = []
        for _ in range(500):
            client.ask(Kind.SUBMIT_JOB, b"lease_many", b"", b"")
            handles.append(client.hears(Kind.JOB_CREATED))
    randoms = {handle.split(b":")[1] for handle in handles}
    assert len(randoms) == 500
    assert {len(random) for random in randoms} == {16}
    assert len({random[:4] for random in randoms}) > 450


def test_guessed_handles_are_of_no_use(place: Place, scene: Scene) -> None:
    scene.begin()
    mark, random, subject = scene.handle.split(b":")
    with stranger(place.other_host, place.other_host.tls) as guesser:
        for place_of_change in range(len(random)):
            guess = bytearray(random)
            guess[place_of_change] ^= 1
            handle = b":".join((mark, bytes(guess), subject))
            guesser.ask(Kind.WORK_FAIL, handle)
            assert guesser.hears(Kind.ERROR).startswith(b"JOB_NOT_FOUND\0")
    scene.ends_well()


ADMIN = [
    b"status", b"workers", b"show jobs", b"show unique jobs", b"prioritystatus", b"getpid",
    b"maxqueue lockenv 0", b"create function f", b"drop function lockenv", b"shutdown",
    b"shutdown graceful",
]  # fmt: skip


@pytest.mark.parametrize("line", ADMIN, ids=bytes.decode)
@pytest.mark.parametrize("side", ["other_host", "other_job"])
def test_admin_commands_are_for_operators(place: Place, side: str, line: bytes) -> None:
    at: Endpoint = getattr(place, side)
    with stranger(at, at.tls) as nobody:
        nobody.say(line + b"\n")
        assert nobody.hears_line().startswith("ERR NOT_PERMITTED")
        assert nobody.is_heard()


# What only certificates protect


only_with_certificates = pytest.mark.parametrize(
    "place", [with_certificates], ids=["tls"], indirect=True, scope="module"
)


@only_with_certificates
@pytest.mark.parametrize(
    "function", [b"lockenv", b"lockenv:a+b", b"lease_1", b"host.other", b"host.ci-2", b"f"]
)
def test_job_registers_no_hosts_function(place: Place, function: bytes) -> None:
    assert refused_to_register(place.other_job, function)


@only_with_certificates
@pytest.mark.parametrize("function", [b"callback_1", b"host.another", b"host.other2", b"f"])
def test_host_registers_no_jobs_or_other_hosts_function(place: Place, function: bytes) -> None:
    assert refused_to_register(place.other_host, function)


@only_with_certificates
def test_host_cannot_pose_as_another(place: Place) -> None:
    own = place.host.tls
    assert own
    name = own.cert.stem.removeprefix("host-").encode()
    assert refused_to_register(place.other_host, b"host." + name)


@only_with_certificates
@pytest.mark.parametrize(
    ("kind", "function"), [("job", b"callback_victim"), ("host", b"lease_victim")]
)
def test_registered_function_is_its_owners_alone(place: Place, kind: str, function: bytes) -> None:
    owner: Endpoint = getattr(place, kind)
    other: Endpoint = getattr(place, f"other_{kind}")
    with stranger(owner, owner.tls) as victim:
        victim.ask(Kind.CAN_DO, function)
        assert victim.is_heard()
        assert refused_to_register(other, function)
        with stranger(owner, owner.tls) as second_connection:
            second_connection.ask(Kind.CAN_DO, function)
            assert second_connection.is_heard()


@only_with_certificates
@pytest.mark.parametrize(
    ("side", "function"),
    [
        ("other_job", b"callback_1"),
        ("other_job", b"host.other"),
        ("other_host", b"lockenv"),
        ("other_host", b"lease_1"),
        ("other_host", b"host.other"),
    ],
)
def test_only_who_may_ask_for_a_function_does(place: Place, side: str, function: bytes) -> None:
    at: Endpoint = getattr(place, side)
    with stranger(at, at.tls) as peer:
        peer.ask(Kind.SUBMIT_JOB, function, b"", b"")
        assert peer.hears(Kind.ERROR).startswith(b"NOT_PERMITTED\0")
        assert peer.is_heard()


@only_with_certificates
def test_same_unique_id_does_not_join_anothers_job(place: Place, scene: Scene) -> None:
    with stranger(place.other_job, place.other_job.tls) as copycat:
        copycat.ask(Kind.SUBMIT_JOB, b"lease_scene", b"unique", b"")
        assert copycat.hears(Kind.JOB_CREATED) != scene.handle
    scene.begin()
    scene.ends_well()


def refused_to_register(at: Endpoint, function: bytes) -> bool:
    """Whether the broker ends the connection of who tries."""
    with stranger(at, at.tls) as peer:
        peer.ask(Kind.CAN_DO, function)
        told = peer.hears(Kind.ERROR).startswith(b"REGISTER_REFUSED\0")
        return told and peer.hears_the_end() == b""


# The TLS port


@only_with_certificates
def test_half_open_handshakes_keep_nobody_waiting(place: Place, served: Fleet) -> None:
    hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
    with ExitStack() as open_ones:
        for number in range(300):
            peer = open_ones.enter_context(stranger(place.host))
            peer.say((b"", hello[:1], hello, hello + b"\x5a" * 100)[number % 4])
        for _ in range(3):
            assert served.serves() <= SERVED_WITHIN_S


@only_with_certificates
@pytest.mark.parametrize(
    "data", [b"status\n", request(Kind.ECHO_REQ, b"x"), b"\0" * 4096, b"GET / HTTP/1.1\r\n\r\n"]
)
def test_plain_text_on_the_tls_port_is_told_so(place: Place, data: bytes) -> None:
    with stranger(place.host) as peer:
        peer.say(data)
        assert b"PLAIN_ON_TLS_PORT" in peer.hears_the_end()


@only_with_certificates
def test_broken_handshake_ends_the_connection(place: Place) -> None:
    with stranger(place.host) as peer:
        peer.say(b"\x16\x03\x01\x00\x40" + b"\xff" * 64)
        peer.hears_the_end()


@only_with_certificates
def test_connection_dropped_in_the_middle_of_a_tls_record(place: Place) -> None:
    with stranger(place.job, place.job.tls) as peer:
        assert peer.is_heard()
        raw = socket.socket(fileno=peer.socket.detach())
    with closing(raw):
        raw.sendall(b"\x17\x03\x03\x40\x00" + b"garbage")
