"""Cuts what a peer sends into binary requests and lines of admin commands; they may alternate.

Pure. A request begins with a NUL byte and a line never does, which is how gear and gearmand tell
them apart.
"""

import struct
from collections.abc import Iterator

from broker.protocol import REQ
from broker.server.refusal import Breach
from broker.wire import Packet, kind_name

MAX_LINE = 4096
"""Bytes of an admin command; the longest names a function."""

_HEADER = struct.Struct("!4sII")
_TLS_HANDSHAKE = 0x16


class RequestReader:
    """In time and memory linear in what was sent; holds one unfinished packet at most."""

    __slots__ = ("_buffer", "_max_packet")

    def __init__(self, max_packet: int) -> None:
        self._max_packet = max_packet
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Packet | bytes]:
        """Add `data`; yield each Packet, and each line without its end, that is complete now.

        Raises Breach, after all that was good before it, as soon as the bytes can't become
        either. The iterator must be used up before the next feed.
        """
        self._buffer += data
        start = 0
        try:
            while start < len(self._buffer):
                item, end = self._packet(start) if self._buffer[start] == 0 else self._line(start)
                if item is None:
                    return
                start = end
                yield item
        finally:
            del self._buffer[:start]

    def _packet(self, start: int) -> tuple[Packet | None, int]:
        magic = self._buffer[start : start + len(REQ)]
        if not REQ.startswith(magic):
            raise Breach("BAD_PACKET", f"A request begins with {bytes(magic)!r}")
        body = start + _HEADER.size
        if len(self._buffer) < body:
            return None, start
        _, kind, size = _HEADER.unpack_from(self._buffer, start)
        if size > self._max_packet:
            what = f"{kind_name(kind)} announces {size} bytes, of at most {self._max_packet}"
            raise Breach("LIMIT_EXCEEDED", what)
        if len(self._buffer) < body + size:
            return None, start
        return Packet(kind, bytes(self._buffer[body : body + size])), body + size

    def _line(self, start: int) -> tuple[bytes | None, int]:
        first = self._buffer[start]
        if first == _TLS_HANDSHAKE:
            raise Breach("TLS_ON_PLAIN_PORT", "This port speaks plain Gearman, not TLS")
        if first >= 0x80 or (first < 0x20 and first not in b"\r\n\t"):
            raise Breach("BAD_PACKET", f"Neither a request nor an admin command: {first:#04x}")
        end = self._buffer.find(b"\n", start, start + MAX_LINE + 1)
        if end >= 0:
            return bytes(self._buffer[start:end]).rstrip(b"\r"), end + 1
        if len(self._buffer) - start > MAX_LINE:
            raise Breach("LIMIT_EXCEEDED", f"An admin command of more than {MAX_LINE} bytes")
        return None, start
