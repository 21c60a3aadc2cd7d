"""Tap devices and addresses of this host, through iproute2's `ip`."""

import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path
from typing import Any

from hosts.drivers.command import CommandFailed, run
from schemas.errors import ForeignObject, NetworkError

COMMAND_TIMEOUT_S = 15.0
_SYSCTLS = Path("/proc/sys/net")
_MARK = "testenv:"
"""Our mark is the device's alias (`ip link set alias`): this, and the owning host's name."""


class LinuxNetwork:
    """`host`'s taps, and addresses, in this process's network namespace. Thread-safe.

    `qemu_uid` may open the taps; it is the user that libvirt runs QEMU as.
    """

    def __init__(self, host: str, qemu_uid: int) -> None:
        self._host = host
        self._qemu_uid = qemu_uid

    def ensure_tap(self, name: str) -> None:
        """A persistent tap `name` that QEMU's user may open is there and up."""
        link = _link(name)
        if link is None:
            # One process makes and marks it, which goes on should this one be killed: an unmarked
            # tap would be refused ever after.
            _batch(
                name,
                f"tuntap add dev {name} mode tap user {self._qemu_uid}",
                f"link set dev {name} alias {_MARK}{self._host} up",
            )
            _hide_host_behind(name)
            return
        self._refuse_foreign(link)
        if not link.is_tap:
            raise NetworkError(name, "a device of ours has this name, but it is not a tap")
        _hide_host_behind(name)
        if not link.is_up:
            set_up(name)

    def remove_tap(self, name: str) -> None:
        """There is no tap `name`; a guest that has it open loses its network."""
        link = _link(name)
        if link is not None:
            self._refuse_foreign(link)
            _ip(name, "link", "delete", "dev", name)

    def taps(self) -> tuple[str, ...]:
        links = (_Link.parse(each) for each in _query("taps", "-details", "link", "show"))
        return tuple(link.name for link in links if link.is_tap and link.owner == self._host)

    def ensure_address(self, interface: str, address: IPv4Interface) -> None:
        """`interface` is up and has `address`; another interface that has it loses it.

        The routes of that other interface come along, as when a bridge takes over a NIC.
        """
        holders = _holders(address)
        others = [each for each in holders if each != (interface, address)]
        routes = [route for device, held in others for route in _routes_by(device, held)]
        commands = [f"link set dev {interface} up"]
        commands += [f"address delete {held} dev {device}" for device, held in others]
        if (interface, address) not in holders:
            commands.append(f"address add {address} brd + dev {interface}")
        commands += [f"route replace {route} dev {interface}" for route in routes]
        # One process, which goes on when the connection that it was started over breaks.
        _batch(interface, *commands)

    def addresses(self, interface: str) -> tuple[IPv4Interface, ...]:
        """All IPv4 addresses of `interface`, which must be there."""
        links = _query(interface, "-4", "address", "show", "dev", interface)
        return tuple(address for link in links for address in _addresses(link))

    def ensure_up(self, interface: str) -> None:
        set_up(interface)

    def _refuse_foreign(self, link: "_Link") -> None:
        if link.owner != self._host:
            raise ForeignObject("interface", link.name, owner=link.owner)


def _hide_host_behind(tap: str) -> None:
    """Let the host itself not be found by a guest through its tap.

    With Open vSwitch's userspace datapath a guest's frames reach the kernel's own stack as well,
    which would answer for any address of the host, also on a private bridge.
    """
    for path, value in (
        (_SYSCTLS / "ipv4/conf" / tap / "arp_ignore", "8"),  # answer for no local address
        (_SYSCTLS / "ipv6/conf" / tap / "disable_ipv6", "1"),
    ):
        if not path.parent.exists():
            continue  # a kernel without IPv6
        try:
            path.write_text(value)
        except OSError as exc:
            raise NetworkError(tap, f"cannot set {path}: {exc.strerror}") from exc


def set_up(device: str) -> None:
    """Set `device` administratively up. Raises NetworkError."""
    _ip(device, "link", "set", "dev", device, "up")


@dataclass(frozen=True)
class _Link:
    """What `ip -json -details link show` says of a device, as far as it matters here."""

    name: str
    is_tap: bool
    is_up: bool
    owner: str

    @classmethod
    def parse(cls, link: dict[str, Any]) -> "_Link":
        alias = str(link.get("ifalias", ""))
        return cls(
            name=link["ifname"],
            is_tap=link.get("linkinfo", {}).get("info_kind") == "tun",
            is_up="UP" in link.get("flags", ()),
            owner=alias.removeprefix(_MARK) if alias.startswith(_MARK) else "",
        )


def _link(name: str) -> _Link | None:
    try:
        socket.if_nametoindex(name)
    except OSError:
        return None
    (link,) = _query(name, "-details", "link", "show", "dev", name)
    return _Link.parse(link)


def _holders(address: IPv4Interface) -> list[tuple[str, IPv4Interface]]:
    """Every device that has `address`, with the prefix length that it has there."""
    links = _query(str(address.ip), "-4", "address", "show", "to", f"{address.ip}/32")
    return [(link["ifname"], held) for link in links for held in _addresses(link)]


def _addresses(link: dict[str, Any]) -> Iterator[IPv4Interface]:
    """What `ip -json address show` says that `link` has."""
    for info in link.get("addr_info", ()):
        # iproute2 6.1 leaves an empty object for each address that it filtered out.
        if "local" in info:
            yield IPv4Interface(f"{info['local']}/{info['prefixlen']}")


def _routes_by(device: str, address: IPv4Interface) -> list[str]:
    """The routes through `device` that work by virtue of `address`, as `ip route` reads them."""
    return [
        _route_words(route)
        for route in _query(device, "-4", "route", "show", "dev", device)
        if route.get("protocol") != "kernel"
        and (
            IPv4Address(route.get("gateway", "0.0.0.0")) in address.network  # noqa: S104 - no bind
            or route.get("prefsrc") == str(address.ip)
        )
    ]


def _route_words(route: dict[str, Any]) -> str:
    words = [str(route["dst"])]
    for key, word in (("gateway", "via"), ("prefsrc", "src"), ("metric", "metric")):
        if key in route:
            words += [word, str(route[key])]
    return " ".join(words)


def _query(name: str, *arguments: str) -> list[dict[str, Any]]:
    """What `ip` shows, of which `name` is the subject."""
    shown = _ip(name, "-json", *arguments)
    return [each for each in json.loads(shown or "[]") if each]


def _batch(name: str, *commands: str) -> None:
    _ip(name, "-batch", "-", text="\n".join(commands))


def _ip(name: str, *arguments: str, text: str = "") -> str:
    """Run `ip`; what it cannot do is a NetworkError about `name`."""
    try:
        return run(["ip", *arguments], text=text, timeout_s=COMMAND_TIMEOUT_S)
    except CommandFailed as exc:
        raise NetworkError(name, f"{exc} (ip {' '.join(arguments)} {text})".rstrip()) from exc
