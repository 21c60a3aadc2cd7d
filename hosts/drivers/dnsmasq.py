"""Addresses of seeds, told by a dnsmasq of ours (2.80 and later) on the public bridge."""

import os
import select
import shutil
import signal
import threading
from collections.abc import Iterable
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path

from hosts.drivers import dhcp_inform
from hosts.drivers.base import AddressServer, Reservation
from hosts.drivers.command import CommandFailed, run
from schemas.errors import AddressServerError

START_TIMEOUT_S = 15.0
STOP_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 2.0
LEASE_TIME = "1h"
_HOST = "dhcp-host="


class Dnsmasq:
    """DHCP on `bridge` for known MACs only, from this host's own `address` there; no DNS.

    It is a daemon that outlives the agent. What tells it from others is its configuration, which
    is in `state_dir`/dnsmasq, and this network namespace. Thread-safe.
    """

    def __init__(self, bridge: str, address: IPv4Interface, state_dir: Path) -> None:
        self._bridge = bridge
        self._address = address
        self._directory = state_dir / "dnsmasq"
        self._configuration = self._directory / "dnsmasq.conf"
        self._lock = threading.Lock()

    def ensure_reservations(self, reservations: Iterable[Reservation]) -> None:
        """Exactly these are served from when this returns; others get no answer.

        Any change is a restart, which takes 10 ms: dnsmasq is ready when its command returns. It
        never tells so after a SIGHUP, and it would keep an address for the MAC that has leased it
        before. Who renews in between is answered by the next one, which is authoritative.
        """
        text = self._text(reservations)
        with self._lock:
            if self._processes() and self._read() == text:
                return
            self._stop()
            self._write(text)
            self._start()

    def reservations(self) -> tuple[Reservation, ...]:
        """What is served now: nothing if dnsmasq does not run."""
        with self._lock:
            lines = self._read().splitlines() if self._processes() else []
        hosts = (line.removeprefix(_HOST) for line in lines if line.startswith(_HOST))
        return tuple(_parse_host(host) for host in hosts)

    def answers(self) -> bool:
        """Whether it runs with the configuration that we wrote, and answers for the first in it."""
        served = self.reservations()
        if not served:
            return bool(self._processes()) or not self._read()
        return dhcp_inform.answers(self._address.ip, served[0].mac, timeout_s=ANSWER_TIMEOUT_S)

    def remove(self) -> None:
        with self._lock:
            self._stop()
            shutil.rmtree(self._directory, ignore_errors=True)

    def _text(self, reservations: Iterable[Reservation]) -> str:
        network = self._address.network
        lines = (
            "port=0",
            f"interface={self._bridge}",
            "except-interface=lo",
            # Other dnsmasqs (libvirt's networks) serve other bridges of this host.
            "bind-dynamic",
            f"dhcp-range={network.network_address},static,{network.netmask},{LEASE_TIME}",
            "dhcp-ignore=tag:!known",
            "dhcp-authoritative",
            f"dhcp-leasefile={self._directory / 'leases'}",
            f"pid-file={self._directory / 'pid'}",
            # In here and not in a dhcp-hostsfile, which is read without root's rights.
            *(f"{_HOST}{each.mac},{each.address},{each.name}" for each in reservations),
        )
        return "".join(f"{line}\n" for line in lines)

    def _read(self) -> str:
        try:
            return self._configuration.read_text()
        except FileNotFoundError:
            return ""

    def _write(self, text: str) -> None:
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            (self._directory / "leases").unlink(missing_ok=True)
            self._configuration.write_text(text)
        except OSError as exc:
            raise self._error(f"cannot write {exc.filename}: {exc.strerror}") from exc

    def _start(self) -> None:
        try:
            run(["dnsmasq", self._argument], timeout_s=START_TIMEOUT_S)
        except CommandFailed as exc:
            remedy = "" if shutil.which("dnsmasq") else "install dnsmasq-base"
            raise self._error(str(exc), remedy=remedy) from exc

    def _stop(self) -> None:
        for pid in self._processes():
            with suppress(ProcessLookupError):
                self._end(pid)

    def _end(self, pid: int) -> None:
        process = os.pidfd_open(pid)
        try:
            # Looked at again: from here on the number cannot come to mean another process.
            if not self._is_ours(pid):
                return
            ended = select.poll()
            ended.register(process, select.POLLIN)
            for number in (signal.SIGTERM, signal.SIGKILL):
                signal.pidfd_send_signal(process, number)
                if ended.poll(STOP_TIMEOUT_S * 1000):
                    return
            raise self._error(f"process {pid} does not end")
        finally:
            os.close(process)

    def _processes(self) -> list[int]:
        """Our dnsmasq: looked for, because a file with its number may be old, or gone."""
        pids = (int(each.name) for each in Path("/proc").iterdir() if each.name.isdigit())
        return [pid for pid in pids if self._is_ours(pid)]

    def _is_ours(self, pid: int) -> bool:
        process = Path(f"/proc/{pid}")
        try:
            argv = (process / "cmdline").read_bytes().split(b"\0")
            return (
                os.fsencode(self._argument) in argv
                and (process / "ns/net").readlink() == Path("/proc/self/ns/net").readlink()
            )
        except OSError:
            return False  # it has ended, or is somebody's whose processes we may not look at

    @property
    def _argument(self) -> str:
        return f"--conf-file={self._configuration}"

    def _error(self, why: str, *, remedy: str = "") -> AddressServerError:
        return AddressServerError(f"dnsmasq on {self._bridge}", why, remedy=remedy)


class StaticAddresses:
    """Reservations that somebody else serves: they are only recorded.

    `former` is our own server, which may run still from before the configuration changed; it goes.
    """

    def __init__(self, former: AddressServer) -> None:
        self._former = former
        self._reservations: tuple[Reservation, ...] = ()

    def ensure_reservations(self, reservations: Iterable[Reservation]) -> None:
        self._former.remove()
        self._reservations = tuple(reservations)

    def reservations(self) -> tuple[Reservation, ...]:
        return self._reservations

    def answers(self) -> bool:
        """Whether they do is not ours to know."""
        return True

    def remove(self) -> None:
        self._former.remove()
        self._reservations = ()


def _parse_host(line: str) -> Reservation:
    mac, address, name = line.split(",")
    return Reservation(mac=mac, address=IPv4Address(address), name=name)
