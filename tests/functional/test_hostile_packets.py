"""Peers that do not speak the protocol: each is told why and sent away, and nobody else notices."""

import struct
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from broker.protocol import RES, Kind
from broker.wire import request, response
from tests.functional.brokers import RunningBroker, ours_with, running_broker
from tests.functional.hostile_rig import Fleet, RawPeer, fleet, refused, stranger, unharmed

NARROW = """
[access]
unverified = ["job", "host"]
"""

PACKET_LIMIT = 1024 * 1024


@pytest.fixture(scope="module")
def broker() -> Iterator[RunningBroker]:
    """Open to jobs and hosts without certificates, and to no operator."""
    with running_broker(ours_with(NARROW)) as running:
        yield running


@pytest.fixture(scope="module")
def served(broker: RunningBroker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with fleet(tmp_path_factory.mktemp("agent"), broker.endpoint, broker.endpoint) as running:
        yield running


@pytest.fixture(autouse=True)
def nobody_is_harmed(broker: RunningBroker, served: Fleet) -> Iterator[None]:
    with unharmed(broker, served):
        yield


def header(kind: int, size: int, magic: bytes = b"\0REQ") -> bytes:
    return magic + struct.pack("!II", kind, size)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (header(Kind.ECHO_REQ, 0, b"\0BAD"), "BAD_PACKET"),
        (header(Kind.ECHO_REQ, 0, b"\0REX"), "BAD_PACKET"),
        (response(Kind.ECHO_RES, b"coded as an answer"), "BAD_PACKET"),
        (header(Kind.ECHO_REQ, 0, RES), "BAD_PACKET"),
        (b"\xff" * 64, "BAD_PACKET"),
        (b"\0" * PACKET_LIMIT, "BAD_PACKET"),
        (header(Kind.ECHO_REQ, PACKET_LIMIT + 1), "LIMIT_EXCEEDED"),
        (header(Kind.ECHO_REQ, 2**32 - 12), "LIMIT_EXCEEDED"),
        (header(Kind.ECHO_REQ, 2**31), "LIMIT_EXCEEDED"),
        (header(2**31, 2**32 - 1), "LIMIT_EXCEEDED"),
        (b"status" * PACKET_LIMIT, "LIMIT_EXCEEDED"),
    ],
    ids=[
        "unknown magic", "nearly the magic", "an answer", "an answer's header", "no text either",
        "NULs", "oversized", "length of -12", "lowest negative length", "nothing but high bits",
        "an endless line",
    ],
)  # fmt: skip
def test_what_is_not_the_protocol_ends_the_connection(
    broker: RunningBroker, data: bytes, code: str
) -> None:
    assert refused(broker.endpoint, data) == code


@pytest.mark.parametrize("kind", [0, 5, 43, 255, 70_000, 2**31, 2**32 - 1])
def test_unknown_packet_type_ends_the_connection(broker: RunningBroker, kind: int) -> None:
    assert refused(broker.endpoint, header(kind, 1) + b"x") == "BAD_PACKET"


@pytest.mark.parametrize(
    "kind",
    [
        Kind.NOOP, Kind.JOB_CREATED, Kind.NO_JOB, Kind.JOB_ASSIGN, Kind.ECHO_RES, Kind.ERROR,
        Kind.STATUS_RES, Kind.OPTION_RES, Kind.JOB_ASSIGN_UNIQ, Kind.JOB_ASSIGN_ALL,
        Kind.STATUS_RES_UNIQUE,
    ],
    ids=lambda kind: kind.name,
)  # fmt: skip
def test_packet_for_a_client_or_worker_ends_the_connection(
    broker: RunningBroker, kind: Kind
) -> None:
    assert refused(broker.endpoint, request(kind, b"x")) == "BAD_PACKET"


@pytest.mark.parametrize(
    "packet",
    [
        request(Kind.SUBMIT_JOB),
        request(Kind.SUBMIT_JOB, b"lockenv", b"no arguments"),
        request(Kind.SUBMIT_JOB, b"", b"", b""),
        request(Kind.SUBMIT_JOB, b"lockenv\nlockenv", b"", b""),
        request(Kind.CAN_DO, b""),
        request(Kind.CAN_DO, b"lockenv\0lease_1"),
        request(Kind.CAN_DO, b"lease_" + b"x" * 1024),
        request(Kind.CAN_DO, b"lease_\n.\n"),
        request(Kind.CAN_DO_TIMEOUT, b"lease_1"),
        request(Kind.CAN_DO_TIMEOUT, b"lease_1", b"-1"),
        request(Kind.CAN_DO_TIMEOUT, b"lease_1", b"9" * 400),
        request(Kind.CAN_DO, b"lease_a b"),
        request(Kind.CAN_DO, b"lease_\xc2\x9b2J"),
        request(Kind.WORK_STATUS, b"H:nobody:1", b"1"),
        request(Kind.WORK_STATUS, b"H:nobody:1", b"1", b"2" * 400),
    ],
    ids=lambda packet: repr(packet[4:40]),
)
def test_packet_with_bad_fields_ends_the_connection(broker: RunningBroker, packet: bytes) -> None:
    assert refused(broker.endpoint, packet) == "BAD_PACKET"


def test_good_requests_before_a_bad_one_are_answered(broker: RunningBroker) -> None:
    with stranger(broker.endpoint) as peer:
        peer.say(request(Kind.ECHO_REQ, b"good") + header(0, 0))
        assert peer.hears(Kind.ECHO_RES) == b"good"
        assert peer.hears(Kind.ERROR).startswith(b"BAD_PACKET\0")
        assert peer.hears_the_end() == b""


@pytest.mark.parametrize("cut", [1, 4, 11, 12, 13, 100])
def test_truncated_packet_is_waited_for_and_forgotten(broker: RunningBroker, cut: int) -> None:
    packet = request(Kind.SUBMIT_JOB, b"lockenv", b"", b"x" * 1000)[:cut]
    with stranger(broker.endpoint) as peer:
        peer.say(packet)
    with stranger(broker.endpoint) as peer:
        peer.say(packet)
        peer.reset()


def test_hundreds_that_stop_in_the_middle_of_a_large_packet(broker: RunningBroker) -> None:
    with ExitStack() as open_ones:
        for _ in range(300):
            peer = open_ones.enter_context(stranger(broker.endpoint))
            peer.say(header(Kind.ECHO_REQ, PACKET_LIMIT) + b"x" * 4096)


def test_packet_that_comes_byte_by_byte_is_understood(broker: RunningBroker) -> None:
    with stranger(broker.endpoint) as peer:
        for byte in request(Kind.ECHO_REQ, b"slowly"):
            peer.say(bytes([byte]))
        assert peer.hears(Kind.ECHO_RES) == b"slowly"


def test_largest_packet_allowed_is_answered(broker: RunningBroker) -> None:
    with stranger(broker.endpoint) as peer:
        peer.ask(Kind.ECHO_REQ, b"x" * PACKET_LIMIT)
        assert len(peer.hears(Kind.ECHO_RES)) == PACKET_LIMIT


def test_tls_on_a_plain_port_is_told_so(broker: RunningBroker) -> None:
    with stranger(broker.endpoint) as peer:
        peer.say(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x5a" * 506)
        assert b"TLS_ON_PLAIN_PORT" in peer.hears_the_end()


def test_web_browser_on_the_port_is_sent_away(broker: RunningBroker) -> None:
    """Its lines are answered as admin commands, which it may not use."""
    with stranger(broker.endpoint) as peer:
        peer.say(b"GET /status HTTP/1.1\r\nHost: broker\r\n\r\n")
        assert peer.socket.recv(65536).startswith(b"ERR UNKNOWN_COMMAND")


def test_each_ended_connection_has_a_line_in_the_log(broker: RunningBroker) -> None:
    before = broker.log.count("\n")
    peer = RawPeer(broker.endpoint)
    peer.say(b"\0BAD")
    peer.hears_the_end()
    peer.close()
    [line] = broker.log.splitlines()[before:]
    assert "BAD_PACKET" in line
    assert "127.0.0.66" in line
