"""A DHCP client of a few lines (RFC 2131), so that an address server has somebody to answer."""

import select
import socket
import struct
import time
from ipaddress import IPv4Address

DISCOVER, OFFER, REQUEST, ACK = 1, 2, 3, 5
COOKIE = bytes.fromhex("63825363")
ETHERTYPE_IPV4 = 0x0800


def lease(device: str, mac: str, timeout: float = 5) -> IPv4Address | None:
    """The address that somebody with this MAC gets over `device`; None if nobody answers."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETHERTYPE_IPV4)) as wire:
        wire.bind((device, 0))
        offer = _ask(wire, mac, DISCOVER, {}, timeout)
        if offer is None:
            return None
        address, server = offer
        wanted = {50: address.packed, 54: server.packed}
        answer = _ask(wire, mac, REQUEST, wanted, timeout)
        return answer[0] if answer else None


def _ask(
    wire: socket.socket, mac: str, kind: int, options: dict[int, bytes], timeout: float
) -> tuple[IPv4Address, IPv4Address] | None:
    """The offered address and the server's, sending again each second as clients do."""
    expected = {DISCOVER: OFFER, REQUEST: ACK}[kind]
    transaction = hash((mac, kind)) & 0xFFFFFFFF
    deadline = time.monotonic() + timeout
    while (now := time.monotonic()) < deadline:
        wire.send(_frame(mac, transaction, {53: bytes([kind]), **options}))
        again = min(deadline, now + 1)
        while (left := again - time.monotonic()) > 0:
            if not select.select([wire], [], [], left)[0]:
                break
            answer = _parse(wire.recv(2048), transaction, expected)
            if answer:
                return answer
    return None


def _frame(mac: str, transaction: int, options: dict[int, bytes]) -> bytes:
    hardware = bytes.fromhex(mac.replace(":", ""))
    # Broadcast flag set: who has no address yet hears only broadcasts.
    message = struct.pack("!BBBBIHH16x16s192x", 1, 1, 6, 0, transaction, 0, 0x8000, hardware)
    message += COOKIE
    message += b"".join(bytes([code, len(value)]) + value for code, value in options.items())
    message += b"\xff"
    udp = struct.pack("!HHHH", 68, 67, 8 + len(message), 0) + message
    header = struct.pack(
        "!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0, bytes(4), b"\xff" * 4
    )
    words = struct.unpack("!10H", header)
    total = sum(words)
    total = (total & 0xFFFF) + (total >> 16)
    header = header[:10] + struct.pack("!H", ~total & 0xFFFF) + header[12:]
    return b"\xff" * 6 + hardware + ETHERTYPE_IPV4.to_bytes(2, "big") + header + udp


def _parse(frame: bytes, transaction: int, expected: int) -> tuple[IPv4Address, IPv4Address] | None:
    message = frame[14 + 20 + 8 :]
    if frame[23] != socket.IPPROTO_UDP or len(message) < 240 or message[236:240] != COOKIE:
        return None
    if message[0] != 2 or message[4:8] != transaction.to_bytes(4, "big"):
        return None
    options: dict[int, bytes] = {}
    rest = message[240:]
    while rest and rest[0] != 0xFF:
        if rest[0] == 0:
            rest = rest[1:]
            continue
        options[rest[0]] = rest[2 : 2 + rest[1]]
        rest = rest[2 + rest[1] :]
    if options.get(53) != bytes([expected]):
        return None
    return IPv4Address(message[16:20]), IPv4Address(options[54])
