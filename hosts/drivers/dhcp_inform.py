"""A question to a DHCP server that hands out nothing: DHCPINFORM (RFC 2131, section 4.4.3)."""

import secrets
import socket
import struct
import time
from ipaddress import IPv4Address

SERVER_PORT = 67
_AGAIN_S = 0.5
"""Until the question is asked once more: a datagram may get lost."""
_COOKIE = bytes.fromhex("63825363")
_IS_INFORM = bytes((53, 1, 8))
_END = b"\xff"


def answers(server: IPv4Address, mac: str, *, timeout_s: float) -> bool:
    """Whether the server at `server`, an address of this machine, answers within `timeout_s`.

    It is asked in the name of `mac`, for a server may answer known ones only. It answers to where
    the question came from, so that no client's port is needed. (dnsmasq takes a local question for
    one that came in on the interface that has the address: Linux 4.9 and later says so.)
    """
    transaction = secrets.token_bytes(4)
    question = _question(server, mac, transaction)
    deadline = time.monotonic() + timeout_s
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as wire:
        try:
            wire.bind((str(server), 0))
            while (left_s := deadline - time.monotonic()) > 0:
                wire.sendto(question, (str(server), SERVER_PORT))
                wire.settimeout(min(left_s, _AGAIN_S))
                try:
                    if wire.recv(2048)[4:8] == transaction:
                        return True
                except TimeoutError:
                    continue
        except OSError:
            return False  # nobody listens, or the address is gone
    return False


def _question(address: IPv4Address, mac: str, transaction: bytes) -> bytes:
    """BOOTREQUEST over Ethernet of a client that has `address` already."""
    hardware = bytes.fromhex(mac.replace(":", ""))
    header = struct.pack("!BBBB4s4x4s12x16s192x", 1, 1, 6, 0, transaction, address.packed, hardware)
    return header + _COOKIE + _IS_INFORM + _END
