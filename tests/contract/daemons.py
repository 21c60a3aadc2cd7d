"""Stopping, killing and restarting this lab host's daemons."""

import os
import select
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LIBVIRTD = Path("/run/libvirtd.pid")
OVSDB_SERVER = Path("/run/openvswitch/ovsdb-server.pid")
VSWITCHD = Path("/run/openvswitch/ovs-vswitchd.pid")


@contextmanager
def stopped(daemon: Path) -> Iterator[None]:
    """The daemon with this PID file answers nobody, as if it hung."""
    pid = int(daemon.read_text())
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextmanager
def away(daemon: Path) -> Iterator[None]:
    """The daemon has ended; afterwards it is started again as it was."""
    pid = int(daemon.read_text())
    argv = Path(f"/proc/{pid}/cmdline").read_text().split("\0")[:-1]
    end(pid)
    try:
        yield
    finally:
        # All of them are started detached, and return when they are ready.
        subprocess.run(argv, timeout=30, check=True, capture_output=True)


def restart(daemon: Path) -> None:
    with away(daemon):
        pass


def end(pid: int) -> None:
    """Terminate a process and wait until it is gone. Raises TimeoutError after 20 s."""
    process = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(process, signal.SIGTERM)
        if not select.select([process], [], [], 20)[0]:
            raise TimeoutError(f"process {pid} does not end")
    finally:
        os.close(process)
