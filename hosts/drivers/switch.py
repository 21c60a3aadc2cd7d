"""Bridges and ports of Open vSwitch."""

import hashlib
import socket
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from hosts.drivers.base import BridgeInfo, PortInfo
from hosts.drivers.command import CommandFailed, run
from hosts.drivers.network import set_up
from hosts.drivers.ovsdb import CALL_TIMEOUT_S, Database, Draft, Ovsdb, OvsdbError, Row
from schemas.errors import BridgeError, ForeignObject, NetworkError

MARK = "testenv-host"
"""Key in `external_ids` of what we create; its value is the owning host's name."""

_IFINDEX = "testenv-ifindex"
"""Key in a port's `external_ids`: the index of the device that it was made for."""

_DEVICES = Path("/sys/class/net")
_IFF_UP = 0x1


def detect_datapath_type() -> Literal["system", "netdev"]:
    """`system` where this kernel has Open vSwitch's datapath, or can load it; else `netdev`.

    Open vSwitch itself does not tell: it lists `system` everywhere.
    """
    if Path("/sys/module/openvswitch").exists():
        return "system"
    try:
        run(["modprobe", "--dry-run", "--quiet", "openvswitch"], timeout_s=10)
    except CommandFailed:
        return "netdev"
    return "system"


class OvsSwitch:
    """`host`'s bridges at `remote` (such as `unix:/run/openvswitch/db.sock`). Thread-safe.

    `datapath_type` is system (the kernel's) or netdev (userspace).
    """

    def __init__(
        self, remote: str, host: str, datapath_type: str, *, timeout_s: float = CALL_TIMEOUT_S
    ) -> None:
        self._ovsdb = Ovsdb(remote, timeout_s)
        self._host = host
        self._datapath_type = datapath_type

    def ensure_bridge(self, name: str) -> None:
        """`name` is a bridge of ours on the right datapath, and its MAC does not change.

        Open vSwitch would take the lowest MAC of its ports, and so change the host's own MAC on
        the bridge whenever a guest's port comes or goes.
        """
        # Looked at before the database: a bridge of ours is there before its device is.
        taken = _device_exists(name)

        def write(draft: Draft) -> None:
            bridge = self._bridge(draft, name)
            if bridge is None:
                if taken:
                    raise ForeignObject("network device", name)
                bridge = self._insert_bridge(draft, name)
            bridge.datapath_type = self._datapath_type

        with self._naming(name):
            self._ovsdb.change(write)
            self._require_no_error(name)

    def ensure_port(self, bridge: str, port: str) -> None:
        """The device `port` is on `bridge`, with neither tag nor trunks, and has no error.

        A port that was made for an earlier device of this name is made anew: the userspace
        datapath (measured with 3.1) would go on using a socket of the old one and say nothing.
        """
        with self._naming(port):
            ifindex = _ifindex(port)
            if self._ovsdb.read(lambda database: self._is_stale(database, bridge, port, ifindex)):
                # A change of its own: removed and added in one, it would keep the old socket.
                self._ovsdb.change(lambda draft: self._take_port(draft, port))
            self._ovsdb.change(lambda draft: self._put_port(draft, bridge, port, ifindex))
            self._require_no_error(port)
            _bring_up(port)

    def remove_ports(self, bridge: str, ports: AbstractSet[str]) -> None:
        """None of `ports` is on `bridge`; nothing if there is no such port or bridge."""

        def write(draft: Draft) -> None:
            row = self._bridge(draft, bridge)
            there = {port.name for port in row.ports} if row is not None else set()
            for port in ports & there:
                self._take_port(draft, port)

        with self._naming(", ".join(sorted(ports))):
            self._ovsdb.change(write)

    def remove_bridge(self, name: str) -> None:
        """There is no bridge `name`, and none of its ports."""

        def write(draft: Draft) -> None:
            bridge = self._bridge(draft, name)
            if bridge is not None:
                draft.root.delvalue("bridges", bridge)

        with self._naming(name):
            self._ovsdb.change(write)

    def bridges(self) -> tuple[BridgeInfo, ...]:
        with self._naming(self._ovsdb.remote):
            return self._ovsdb.read(lambda database: tuple(self._infos(database)))

    def version(self) -> str:
        """Open vSwitch's version; "" if its start script never told. Raises BridgeError."""
        with self._naming(self._ovsdb.remote):
            return self._ovsdb.read(lambda database: "".join(database.root.ovs_version))

    def close(self) -> None:
        self._ovsdb.close()

    def _infos(self, database: Database) -> Iterator[BridgeInfo]:
        for bridge in database.rows("Bridge"):
            if bridge.external_ids.get(MARK) == self._host:
                ports = (self._info(port) for port in bridge.ports if port.name != bridge.name)
                yield BridgeInfo(bridge.name, {port.name: port for port in ports})

    def _info(self, port: Row) -> PortInfo:
        errors = (error for interface in port.interfaces for error in interface.error)
        return PortInfo(
            name=port.name,
            tag=next(iter(port.tag), None),
            trunks=tuple(sorted(port.trunks)),
            error="; ".join(errors),
            ours=port.external_ids.get(MARK) == self._host,
        )

    def _bridge(self, database: Database, name: str) -> Row | None:
        """Our bridge `name`, if there is one."""
        bridge = database.find("Bridge", name)
        if bridge is not None:
            self._refuse_foreign("bridge", bridge, name)
        return bridge

    def _insert_bridge(self, draft: Draft, name: str) -> Row:
        marks = {MARK: self._host}
        internal = draft.insert("Interface", name=name, type="internal")
        port = draft.insert("Port", name=name, interfaces=[internal], external_ids=marks)
        bridge = draft.insert("Bridge", name=name, ports=[port], external_ids=marks)
        bridge.other_config = {"hwaddr": _own_mac(self._host, name)}
        draft.root.addvalue("bridges", bridge)
        return bridge

    def _is_stale(self, database: Database, bridge: str, port: str, ifindex: int) -> bool:
        """Whether `port` exists on another bridge of ours, or for an earlier device."""
        home = self._home_of(database, port)
        if home is None:
            return False
        row: Row = _port_of(home, port)
        return bool(home.name != bridge or row.external_ids.get(_IFINDEX) != str(ifindex))

    def _take_port(self, draft: Draft, port: str) -> None:
        home = self._home_of(draft, port)
        if home is not None:
            home.delvalue("ports", _port_of(home, port))
            if home.other_config.get("hwaddr") == _device_mac(port):
                home.setkey("other_config", "hwaddr", _own_mac(self._host, home.name))

    def _put_port(self, draft: Draft, bridge: str, port: str, ifindex: int) -> None:
        home = self._bridge(draft, bridge)
        if home is None:
            raise BridgeError(bridge, "there is no such bridge", remedy="rebuild its environment")
        row = _port_of(home, port)
        if row is None:
            interface = draft.insert("Interface", name=port)
            row = draft.insert("Port", name=port, interfaces=[interface])
            home.addvalue("ports", row)
        row.external_ids = {MARK: self._host, _IFINDEX: str(ifindex)}
        row.tag, row.trunks, row.vlan_mode = [], [], []
        if not _is_tap(port):
            # A network that checks MACs (a cloud's) lets only the physical NIC's own pass.
            home.setkey("other_config", "hwaddr", _device_mac(port))

    def _home_of(self, database: Database, port: str) -> Row | None:
        """The bridge that `port` is on, if any. Raises ForeignObject if it is not ours."""
        for bridge in database.rows("Bridge"):
            if _port_of(bridge, port) is not None:
                self._refuse_foreign("port", bridge, port)
                return bridge
        return None

    def _refuse_foreign(self, kind: str, bridge: Row, name: str) -> None:
        owner = bridge.external_ids.get(MARK, "")
        if owner != self._host:
            raise ForeignObject(kind, name, owner=owner)

    def _require_no_error(self, name: str) -> None:
        interface = self._ovsdb.read(lambda database: _errors_of(database, name))
        if interface:
            raise BridgeError(name, f"Open vSwitch cannot use it: {interface}")

    @contextmanager
    def _naming(self, name: str) -> Iterator[None]:
        """What the database does not do inside is a BridgeError about `name`."""
        try:
            yield
        except OvsdbError as exc:
            remedy = f"is Open vSwitch at {self._ovsdb.remote} running? Try: ovs-vsctl show"
            raise BridgeError(name, str(exc), remedy=remedy) from exc


def _port_of(bridge: Row, name: str) -> Row | None:
    return next((port for port in bridge.ports if port.name == name), None)


def _errors_of(database: Database, name: str) -> str:
    interface = database.find("Interface", name)
    return "it is gone" if interface is None else "; ".join(interface.error)


def _device_exists(name: str) -> bool:
    return any(device == name for _index, device in socket.if_nameindex())


def _ifindex(device: str) -> int:
    """The kernel's number of a device, never used again once it is gone."""
    try:
        return socket.if_nametoindex(device)
    except OSError as exc:
        raise BridgeError(device, "there is no such device to make a port of") from exc


def _bring_up(device: str) -> None:
    """Set `device` up, should Open vSwitch have set it down.

    It adopts a new device of a known name at once and writes back the flags that it read, perhaps
    from just before somebody set the device up (measured with 3.1 after a reboot).
    """
    try:
        if not int((_DEVICES / device / "flags").read_text(), 16) & _IFF_UP:
            set_up(device)
    except (OSError, NetworkError) as exc:
        raise BridgeError(device, f"cannot be set up: {exc}") from exc


def _is_tap(device: str) -> bool:
    return (_DEVICES / device / "tun_flags").exists()


def _device_mac(device: str) -> str:
    """The MAC of a device of this host, "" if there is none."""
    try:
        return (_DEVICES / device / "address").read_text().strip()
    except OSError:
        return ""


def _own_mac(host: str, bridge: str) -> str:
    """A MAC for the bridge itself, unicast and locally administered, always the same."""
    digest = hashlib.sha256(f"{host}/{bridge}".encode()).digest()
    return ":".join(f"{byte:02x}" for byte in (0x02, *digest[:5]))
