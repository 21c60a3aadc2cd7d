"""The wires: two plain bridges in the CI namespace, and every host's two NICs on them.

No interface is ever made in the machine's own network namespace.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.lab.errors import LabError

if TYPE_CHECKING:
    from tests.lab.namespace import Namespace


@dataclass(frozen=True)
class Segment:
    """A lab bridge, the CI side's address on it, and the NIC that each host has on it."""

    bridge: str
    address: str
    nic: str

    def port(self, host: str) -> str:
        return f"{host}-{self.nic}"


MANAGEMENT = Segment("br-mgmt", "198.51.100.1/24", "eth0")
PUBLIC = Segment("br-public", "203.0.113.2/24", "eth1")
SEGMENTS = (MANAGEMENT, PUBLIC)
CI_ADDRESS = MANAGEMENT.address.partition("/")[0]


class Network:
    def __init__(self, ci: Namespace) -> None:
        self._ci = ci

    def create_bridges(self) -> None:
        for segment in SEGMENTS:
            self._ip("link", "add", segment.bridge, "type", "bridge")
            self._ip("addr", "add", segment.address, "dev", segment.bridge)
            self._ip("link", "set", segment.bridge, "up")

    def plug_in(self, host: Namespace) -> None:
        """Give a started host its NICs: eth0 (management) and eth1 (public), without address."""
        for segment in SEGMENTS:
            port = segment.port(host.name)
            peer = ("peer", "name", segment.nic, "netns", str(host.pid))
            self._ip("link", "add", port, "type", "veth", *peer)
            # What a NIC does, a veth leaves out: fill in checksums and cut segments. OVS's
            # userspace datapath would hand such packets to guests as they are.
            self._in_net("ethtool", "-K", port, "tx", "off")
            self._ip("link", "set", port, "master", segment.bridge, "up")
            host.run(["ip", "link", "set", segment.nic, "up"])

    def unplug(self, host: str) -> None:
        """Remove the wires of a stopped host, if any.

        The kernel would do it in its own time, and answer pings to the dead host until then.
        """
        for segment in SEGMENTS:
            self._ip("link", "del", segment.port(host), check=False)

    def set_links(self, host: str, state: str) -> None:
        """Set the switch's side of both wires of the host `up` or `down`."""
        for segment in SEGMENTS:
            self._ip("link", "set", segment.port(host), state)

    def _ip(self, *arguments: str, check: bool = True) -> None:
        self._in_net("ip", *arguments, check=check)

    def _in_net(self, *argv: str, check: bool = True) -> None:
        # Only the network namespace is entered, so that `netns <pid>` means a pid of ours.
        command = ["nsenter", f"--net=/proc/{self._ci.pid}/ns/net", *argv]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
        if check and done.returncode:
            raise LabError(f"`{' '.join(argv)}` failed in the lab: {done.stderr.strip()}")
