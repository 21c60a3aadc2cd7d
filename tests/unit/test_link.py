"""The link's pure parts: Gearman's packets as bytes, and the pauses between attempts."""

import itertools
import struct
import time

import gear
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.backoff import backoff
from broker.protocol import REQ, RES, Kind
from broker.wire import (
    MalformedPacket,
    Packet,
    PacketReader,
    fields,
    from_wire,
    number,
    request,
    response,
    to_wire,
)

packets = st.builds(Packet, st.sampled_from(Kind), st.binary(max_size=300))


def test_packet_types_are_those_of_gear() -> None:
    known = dict(gear.constants.types)
    assert {kind.value: kind.name for kind in Kind if kind.value in known} == known
    assert (REQ, RES) == (gear.constants.REQ, gear.constants.RES)


def read_all(reader: PacketReader, chunks: list[bytes]) -> list[Packet]:
    return [packet for chunk in chunks for packet in reader.feed(chunk)]


def chopped(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


@given(st.lists(packets, max_size=8), st.lists(st.integers(min_value=0), max_size=30))
def test_packets_survive_any_chopping(sent: list[Packet], cuts: list[int]) -> None:
    stream = b"".join(response(packet.kind, packet.data) for packet in sent)
    assert read_all(PacketReader(), chopped(stream, cuts)) == sent


def test_packet_in_single_bytes_comes_with_its_last_byte() -> None:
    reader = PacketReader()
    data = request(Kind.WORK_COMPLETE, b"H:a:1", b"result")
    *before, last = (list(reader.feed(bytes([byte]))) for byte in data)
    assert not any(before)
    assert [packet.data for packet in last] == [b"H:a:1\0result"]


def test_geards_work_fail_is_read_although_it_is_coded_as_a_request() -> None:
    geards = request(Kind.WORK_FAIL, b"H:a:1")
    assert list(PacketReader().feed(geards)) == [Packet(Kind.WORK_FAIL, b"H:a:1")]


@given(st.binary(min_size=1, max_size=200))
def test_garbage_is_refused_at_once_or_awaited_as_a_packet(data: bytes) -> None:
    reader = PacketReader(max_packet=50)
    try:
        list(reader.feed(data))
    except MalformedPacket:
        return
    assert data.startswith((b"\0", b"\0R", b"\0RE"))


@pytest.mark.parametrize("banner", [b"H", b"SSH-2.0-", b"HTTP/1.1 400", b"\0REX", b"\x16\x03\x01"])
def test_other_protocols_are_recognised_by_their_first_bytes(banner: bytes) -> None:
    with pytest.raises(MalformedPacket):
        list(PacketReader().feed(banner))


def test_good_packets_before_garbage_are_delivered() -> None:
    noop = request(Kind.NOOP)
    arrived = PacketReader().feed(noop + noop + b"garbage")
    assert [next(arrived).kind, next(arrived).kind] == [Kind.NOOP] * 2
    with pytest.raises(MalformedPacket):
        next(arrived)


@pytest.mark.parametrize("size", [101, 2**31, 2**32 - 12])
def test_oversize_is_refused_before_it_is_buffered(size: int) -> None:
    header = struct.pack("!4sII", RES, Kind.WORK_DATA, size)
    with pytest.raises(MalformedPacket, match=str(size)):
        list(PacketReader(max_packet=100).feed(header))


def test_reading_time_is_linear() -> None:
    """gear reads 40 MB in 4 kB pieces in 72 s; ten times the pieces may cost ten times as much."""

    def seconds(size: int) -> float:
        data = request(Kind.WORK_DATA, b"H:a:1", bytes(size))
        pieces = [data[start : start + 4096] for start in range(0, len(data), 4096)]
        start = time.process_time()
        assert len(read_all(PacketReader(max_packet=2 * size), pieces)) == 1
        return time.process_time() - start

    assert min(seconds(40_000_000) for _ in range(3)) < 2.0


def test_only_the_last_field_may_contain_nul() -> None:
    packet = Packet(Kind.JOB_ASSIGN_UNIQ, b"H:a:1\0f\0u\0x\0y")
    assert fields(packet, 4) == [b"H:a:1", b"f", b"u", b"x\0y"]
    with pytest.raises(MalformedPacket, match="JOB_ASSIGN_UNIQ with 2 of 4"):
        fields(Packet(Kind.JOB_ASSIGN_UNIQ, b"H:a:1\0f"), 4)


@pytest.mark.parametrize(
    ("field", "value"), [(b"17", 17), (b"", 0), (b"-1", 0), (b"half", 0), (b"9" * 5000, 0)]
)
def test_numbers_that_a_worker_made_up_count_as_0(field: bytes, value: int) -> None:
    assert number(field) == value


@given(st.binary().filter(lambda data: b"\0" not in data))
def test_names_that_are_not_utf8_survive(name: bytes) -> None:
    assert to_wire(from_wire(name)) == name


def test_nul_in_a_name_is_refused() -> None:
    with pytest.raises(ValueError, match="NUL"):
        to_wire("a\0b")


def test_backoff_starts_quick_and_is_capped_and_jittered() -> None:
    pauses = list(itertools.islice(backoff(first=0.05, cap=5.0), 200))
    assert 0.025 <= pauses[0] <= 0.05
    assert all(2.5 <= pause <= 5.0 for pause in pauses[10:])
    assert len(set(pauses[10:])) > 100
