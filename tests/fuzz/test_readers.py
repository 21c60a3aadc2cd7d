"""Any bytes, chopped up in any way: a reader yields packets, or says that they are none."""

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from broker.protocol import REQ, RES
from broker.server.framing import MAX_LINE, RequestReader
from broker.server.refusal import Breach
from broker.wire import MalformedPacket, Packet, PacketReader
from tests.fuzz.budget import ROUND, fuzz

MAX_PACKET = 64
"""So small that many examples reach it."""

HEADER = 12

numbers = st.sampled_from(
    [0, 1, 7, 16, 42, 43, 63, 64, 65, 2**31 - 1, 2**31, 2**32 - 12, 2**32 - 1]
)
words = st.one_of(numbers, st.integers(0, 2**32 - 1)).map(lambda number: number.to_bytes(4, "big"))
headers = st.builds(
    lambda magic, kind, size: magic + kind + size,
    st.sampled_from([REQ, RES, b"\0REX", b"\0re"]),
    words,
    words,
)
packets = st.builds(
    lambda magic, kind, data: magic + kind + len(data).to_bytes(4, "big") + data,
    st.sampled_from([REQ, REQ, REQ, RES]),
    words,
    st.binary(max_size=MAX_PACKET + 1),
)
lines = st.one_of(
    st.sampled_from([b"status\n", b"\n", b"\r\n", b"cancel job H:x\r\n", b"stat", b"a\0b\n"]),
    st.integers(MAX_LINE - 2, MAX_LINE + 2).map(lambda size: b"a" * size),
    st.binary(max_size=40).map(lambda data: data + b"\n"),
)
streams = st.lists(st.one_of(packets, packets, headers, lines, st.binary(max_size=40)), max_size=8)


chances = st.randoms(use_true_random=False)

Reader = RequestReader | PacketReader

Reading = tuple[list[Packet | bytes], str]
"""What came out, and how it ended."""


def read(reader: Reader, pieces: list[bytes]) -> Reading:
    """Feed it all, or until it refuses."""
    items: list[Packet | bytes] = []
    held = 0
    for piece in pieces:
        try:
            items += reader.feed(piece)
        except (Breach, MalformedPacket) as exc:
            return items, getattr(exc, "code", "MALFORMED")
        held = len(reader._buffer)
        assert held < HEADER + MAX_PACKET or held <= MAX_LINE
    return items, f"{held} bytes wait"


def chopped(data: bytes, chance: Random) -> list[bytes]:
    """The same bytes in pieces of any length, at the beginning often of one."""
    pieces = []
    while data:
        length = chance.choice([1, 1, 2, 11, 12, 13, 4096])
        pieces.append(data[:length])
        data = data[length:]
    return pieces


def check(make: type[Reader], data: bytes, chance: Random) -> None:
    """In one piece or in many: the same comes out, and not more than went in."""
    items, end = read(make(MAX_PACKET), [data])
    again, end_again = read(make(MAX_PACKET), chopped(data, chance))
    assert again == items
    assert sum(_length(item) for item in items) <= len(data)
    assert end_again == end


def _length(item: Packet | bytes) -> int:
    return HEADER + len(item.data) if isinstance(item, Packet) else len(item) + 1


def test_request_reader_survives_anything() -> None:
    @ROUND
    @given(streams.map(b"".join), chances)
    def target(data: bytes, chance: Random) -> None:
        check(RequestReader, data, chance)

    fuzz("RequestReader", target, share=0.2)


def test_packet_reader_survives_anything() -> None:
    @ROUND
    @given(streams.map(b"".join), chances)
    def target(data: bytes, chance: Random) -> None:
        check(PacketReader, data, chance)

    fuzz("PacketReader", target, share=0.2)
