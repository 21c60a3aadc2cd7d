"""Gearman's binary protocol as bytes: gear's Packet and constants, and a reader without its faults.

Pure: no sockets, no clocks. Protocol: http://gearman.org/protocol
"""

import struct
from collections.abc import Iterator

from gear import Packet, constants

MAX_PACKET = 16 * 1024 * 1024
"""Bytes of packet data accepted from a broker; a data file has a few thousand."""

MAX_DIGITS = 18
"""More than any broker sends; gearmand relays numbers of at most 9 digits."""

_HEADER = struct.Struct("!4sII")
_MAGICS = (bytes(constants.RES), bytes(constants.REQ))


class MalformedPacket(ValueError):
    """Bytes that are not Gearman's protocol; the connection they came on is of no more use."""


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
        code, kind, size = _HEADER.unpack_from(self._buffer, start)
        if size > self._max_packet:
            raise MalformedPacket(f"a packet announces {size} bytes")
        if len(self._buffer) < body + size:
            return None
        return Packet(code, kind, bytes(self._buffer[body : body + size]))


def request(kind: int, *fields: bytes) -> bytes:
    """A packet to a broker, of type `kind` (a gear constant)."""
    return bytes(Packet(constants.REQ, kind, b"\0".join(fields)).toBinary())


def fields(packet: Packet, count: int) -> list[bytes]:
    """The packet's `count` arguments; the last one may contain NULs. Raises MalformedPacket."""
    parts = bytes(packet.data).split(b"\0", count - 1)
    if len(parts) != count:
        raise MalformedPacket(f"{kind_name(packet.ptype)} with {len(parts)} of {count} arguments")
    return parts


def number(field: bytes) -> int:
    """A decimal field; 0 for anything else, as geard relays whatever a worker put there."""
    return int(field) if field.isdigit() and len(field) <= MAX_DIGITS else 0


def kind_name(kind: int) -> str:
    """The packet type's name in the protocol, for messages."""
    return str(constants.types.get(kind, f"packet type {kind}"))


def to_wire(text: str) -> bytes:
    """A name or id as a packet argument. Raises ValueError if it contains NUL."""
    if "\0" in text:
        raise ValueError(f"{text!r} contains NUL")
    return text.encode(errors="surrogateescape")


def from_wire(field: bytes) -> str:
    """The inverse of `to_wire`; bytes that are not UTF-8 survive the round trip."""
    return field.decode(errors="surrogateescape")
