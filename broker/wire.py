"""Gearman's binary protocol as bytes: packets, and a reader for them.

Pure: no sockets, no clocks. Protocol: http://gearman.org/protocol
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

from broker.protocol import REQ, RES, Kind

MAX_PACKET = 16 * 1024 * 1024
"""Bytes of packet data accepted from a broker; a data file has a few thousand."""

MAX_DIGITS = 9
"""gearmand relays numbers of no more digits, and nobody sends larger ones."""

_HEADER = struct.Struct("!4sII")
_MAGICS = (RES, REQ)


class MalformedPacket(ValueError):
    """Bytes that are not Gearman's protocol; the connection they came on is of no more use."""


class Packet(NamedTuple):
    """One packet; `kind` is a `Kind`, or a number that we do not know."""

    kind: int
    data: bytes


class PacketReader:
    """Cuts a byte stream into packets, however it is chopped up, in time linear in its length.

    Packets coded REQ are accepted too: geard sends its WORK_FAIL so.
    """

    def __init__(self, max_packet: int = MAX_PACKET) -> None:
        self._max_packet = max_packet
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Packet]:
        """Add `data`; yield every packet that is complete now.

        Raises MalformedPacket, after the good packets before it, as soon as the bytes can't be
        a packet of at most `max_packet` bytes. The iterator must be used up before the next feed.
        """
        self._buffer += data
        start = 0
        try:
            while packet := self._packet_at(start):
                start += _HEADER.size + len(packet.data)
                yield packet
        finally:
            del self._buffer[:start]

    def _packet_at(self, start: int) -> Packet | None:
        magic = bytes(self._buffer[start : start + 4])
        if not any(known.startswith(magic) for known in _MAGICS):
            raise MalformedPacket(f"a packet begins with {magic!r}")
        body = start + _HEADER.size
        if len(self._buffer) < body:
            return None
        _, kind, size = _HEADER.unpack_from(self._buffer, start)
        if size > self._max_packet:
            raise MalformedPacket(f"a packet announces {size} bytes")
        if len(self._buffer) < body + size:
            return None
        return Packet(kind, bytes(self._buffer[body : body + size]))


def request(kind: int, *fields: bytes) -> bytes:
    """A packet to a broker."""
    return _binary(REQ, kind, fields)


def response(kind: int, *fields: bytes) -> bytes:
    """A packet from a broker."""
    return _binary(RES, kind, fields)


def _binary(magic: bytes, kind: int, fields: tuple[bytes, ...]) -> bytes:
    data = b"\0".join(fields)
    return _HEADER.pack(magic, kind, len(data)) + data


def fields(packet: Packet, count: int) -> list[bytes]:
    """The packet's `count` arguments; the last one may contain NULs. Raises MalformedPacket."""
    parts = packet.data.split(b"\0", count - 1)
    if len(parts) != count:
        raise MalformedPacket(f"{kind_name(packet.kind)} with {len(parts)} of {count} arguments")
    return parts


def number(field: bytes) -> int:
    """A decimal field; 0 for anything else, as geard relays whatever a worker put there."""
    return int(field) if field.isdigit() and len(field) <= MAX_DIGITS else 0


def kind_name(kind: int) -> str:
    """The packet type's name in the protocol, for messages."""
    try:
        return Kind(kind).name
    except ValueError:
        return f"packet type {kind}"


def to_wire(text: str) -> bytes:
    """A name or id as a packet argument. Raises ValueError if it contains NUL."""
    if "\0" in text:
        raise ValueError(f"{text!r} contains NUL")
    return text.encode(errors="surrogateescape")


def from_wire(field: bytes) -> str:
    """The inverse of `to_wire`; bytes that are not UTF-8 survive the round trip."""
    return field.decode(errors="surrogateescape")
