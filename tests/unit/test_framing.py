"""What a peer sends, cut into requests and admin lines."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.protocol import Kind
from broker.server.framing import MAX_LINE, RequestReader
from broker.server.refusal import Breach
from broker.wire import Packet, request, response

packets = st.builds(Packet, st.sampled_from(Kind), st.binary(max_size=100))
lines = st.from_regex(rb"[a-z ]{1,30}", fullmatch=True)


def stream_of(item: Packet | bytes) -> bytes:
    return request(item.kind, item.data) if isinstance(item, Packet) else item + b"\r\n"


@given(st.lists(packets | lines, max_size=8), st.integers(min_value=1, max_value=50))
def test_requests_and_lines_alternate_however_chopped(
    items: list[Packet | bytes], size: int
) -> None:
    stream = b"".join(map(stream_of, items))
    reader = RequestReader(1000)
    pieces = [stream[start : start + size] for start in range(0, len(stream), size)]
    assert [item for piece in pieces for item in reader.feed(piece)] == items


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\0BAD", "BAD_PACKET"),
        (response(Kind.NOOP), "BAD_PACKET"),
        (b"\xff\xff", "BAD_PACKET"),
        (b"\x01", "BAD_PACKET"),
        (b"\x16\x03\x01\x02\x00", "TLS_ON_PLAIN_PORT"),
        (b"\0REQ\0\0\0\x07\xff\xff\xff\xf4", "LIMIT_EXCEEDED"),
        (b"\0REQ\0\0\0\x07\x00\x00\x03\xe9", "LIMIT_EXCEEDED"),
        (b"x" * (MAX_LINE + 1), "LIMIT_EXCEEDED"),
    ],
)
def test_what_can_be_neither_is_a_breach_at_once(data: bytes, code: str) -> None:
    reader = RequestReader(1000)
    good = reader.feed(request(Kind.ECHO_REQ, b"before") + data)
    assert next(good) == Packet(Kind.ECHO_REQ, b"before")
    with pytest.raises(Breach) as breach:
        list(good)
    assert breach.value.code == code


def test_largest_packet_and_longest_line_pass() -> None:
    reader = RequestReader(1000)
    packet, line = Packet(Kind.ECHO_REQ, b"x" * 1000), b"y" * MAX_LINE
    assert list(reader.feed(stream_of(packet) + line + b"\n")) == [packet, line]
