"""Frames as a guest sends and hears them, through the guest's end of a tap."""

import fcntl
import os
import select
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address

from tests.contract.rigs import ADDRESS

EXPERIMENT = 0x88B5
"""The EtherType that IEEE 802 sets aside for local experiments."""


def hears(bridge: str, tap: str, timeout: float = 5) -> bool:
    """Whether a frame that a guest sends into `tap` comes out of the bridge's own port."""
    frame = b"\xff" * 6 + bytes.fromhex("525400aabbcc") + EXPERIMENT.to_bytes(2, "big") + bytes(46)
    with (
        opened_tap(tap) as guest,
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(EXPERIMENT)) as host,
    ):
        host.bind((bridge, EXPERIMENT))
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            os.write(guest, frame)
            if select.select([host], [], [], 0.1)[0]:
                return True
    return False


def arp_answers(tap: str, seconds: float = 1) -> set[str]:
    """The MACs that answer a guest behind `tap` when it asks for this host's own address."""
    mac, guest_ip = bytes.fromhex("525400aabbcc"), IPv4Address("203.0.113.50")
    request = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1)
    request += mac + guest_ip.packed + bytes(6) + ADDRESS.ip.packed
    frame = b"\xff" * 6 + mac + b"\x08\x06" + request
    answers: set[str] = set()
    with opened_tap(tap) as guest:
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            os.write(guest, frame)
            if select.select([guest], [], [], min(left, 0.1))[0]:
                answer = os.read(guest, 2048)
                if answer[12:14] == b"\x08\x06" and answer[20:22] == b"\x00\x02":
                    answers.add(answer[22:28].hex(":"))
    return answers


@contextmanager
def opened_tap(name: str) -> Iterator[int]:
    """The guest's end of a tap, as QEMU has it (linux/if_tun.h)."""
    set_interface, tap_without_header = 0x400454CA, 0x0002 | 0x1000
    guest = os.open("/dev/net/tun", os.O_RDWR)
    try:
        fcntl.ioctl(guest, set_interface, struct.pack("16sH22x", name.encode(), tap_without_header))
        yield guest
    finally:
        os.close(guest)
