"""systemd's sd_notify(3): one datagram for each thing that the service manager wants to know."""

import os
import socket
import time


class Notifier:
    """Tells the service manager; does nothing where there is none."""

    def __init__(self, address: str | None) -> None:
        """`address` is the variable NOTIFY_SOCKET's: a path, or `@name` in the abstract space."""
        self._address = "\0" + address[1:] if address and address.startswith("@") else address

    @classmethod
    def from_environment(cls) -> "Notifier":
        """As systemd started us."""
        return cls(os.environ.get("NOTIFY_SOCKET"))

    def ready(self, status: str) -> None:
        """We serve (again, after `reloading`)."""
        self._send("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """We read the configuration; `ready` follows."""
        now_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send("RELOADING=1", f"MONOTONIC_USEC={now_us}")

    def stopping(self, status: str) -> None:
        """We are about to end."""
        self._send("STOPPING=1", f"STATUS={status}")

    def alive(self) -> None:
        """Within every `watchdog_s`."""
        self._send("WATCHDOG=1")

    def _send(self, *lines: str) -> None:
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
            out.setblocking(False)
            try:
                out.sendto("\n".join(lines).encode(), self._address)
            except OSError:
                # A service manager that does not listen is no reason not to serve.
                return


def watchdog_s() -> float | None:
    """How often the service manager wants to hear from us; None if it does not."""
    pid = os.environ.get("WATCHDOG_PID", str(os.getpid()))
    wanted = os.environ.get("WATCHDOG_USEC", "")
    return int(wanted) / 1e6 if wanted.isdigit() and pid == str(os.getpid()) else None
