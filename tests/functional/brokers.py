"""Real Gearman brokers on free loopback ports, as subprocesses.

with running_broker(GEARMAND) as broker:
    broker.endpoint
    broker.kill()
    broker.restart()      # same port
"""

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from broker.endpoint import Endpoint
from broker.protocol import Kind
from broker.wire import request

READY_WITHIN_S = 20.0
HOST = "127.0.0.1"

PORTS = range(20_000, 32_000)
"""Below Linux's ephemeral ports. In those, a client that reconnects to a dead broker's port can
be given that very port as its own, connect to itself, and keep the broker from coming back."""


@dataclass(frozen=True)
class BrokerKind:
    """A Gearman server that can be started; `command` takes where to listen and a work folder."""

    name: str
    command: Callable[[Endpoint, Path], list[str]]

    def __str__(self) -> str:
        return self.name


def _ours(listen: Endpoint, _: Path) -> list[str]:
    return [_in_venv("testenv-broker"), "run", "--listen", str(listen)]


def ours_with(config: str) -> BrokerKind:
    """Our broker with a configuration (TOML)."""

    def command(listen: Endpoint, folder: Path) -> list[str]:
        file = folder / "broker.toml"
        file.write_text(config)
        return [*_ours(listen, folder), "--config", str(file)]

    return BrokerKind("testenv-broker", command)


def _geard(listen: Endpoint, _: Path) -> list[str]:
    return [_in_venv("geard"), "-d", "-p", str(listen.port), "--listen-address", listen.host]


def _gearmand(*flags: str) -> Callable[[Endpoint, Path], list[str]]:
    def command(listen: Endpoint, folder: Path) -> list[str]:
        where = ["-L", listen.host, "-p", str(listen.port)]
        files = ["-l", str(folder / "gearmand.log"), "-P", str(folder / "gearmand.pid")]
        return [_gearmand_program(), *where, *files, *flags]

    return command


def _in_venv(program: str) -> str:
    return str(Path(sys.executable).with_name(program))


def _gearmand_program() -> str:
    found = shutil.which("gearmand") or shutil.which("gearmand", path="/usr/sbin")
    if not found:
        raise FileNotFoundError("gearmand is not installed (Debian: gearman-job-server)")
    return found


OURS = BrokerKind("testenv-broker", _ours)
GEARD = BrokerKind("geard", _geard)
GEARMAND = BrokerKind("gearmand", _gearmand())
GEARMAND_TUNED = BrokerKind(
    "gearmand-tuned",
    _gearmand(
        "--job-retries=1", "--backlog=1024", "--worker-wakeup=2", "--job-handle-prefix=H:boot1"
    ),
)

BROKERS = [OURS, GEARD, GEARMAND, GEARMAND_TUNED]


class RunningBroker:
    """A broker's process. All of it is gone when the `running_broker` context is left."""

    def __init__(self, kind: BrokerKind, folder: Path, endpoint: Endpoint) -> None:
        self.kind = kind
        self.endpoint = endpoint
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Of the process that runs, or ran last."""
        assert self._process
        return self._process.pid

    @property
    def log(self) -> str:
        """What all its processes so far wrote to stderr."""
        return (self._folder / "stderr").read_text(errors="replace")

    def has_ended(self) -> bool:
        """Whether its process is gone."""
        return self._process is not None and self._process.poll() is not None

    @property
    def memory_kib(self) -> int:
        """What of it is in memory now."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0])

    def start(self) -> None:
        """Start it and wait until it answers. Raises RuntimeError with its log if it does not."""
        command = self.kind.command(self.endpoint, self._folder)
        with (self._folder / "stderr").open("ab") as stderr:
            # setpriv: no broker outlives a test run that is itself killed.
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "--", *command],
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
            )
        deadline = time.monotonic() + READY_WITHIN_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"{self.kind} does not answer at {self.endpoint}:\n{self.log}")
            time.sleep(0.01)

    def kill(self) -> None:
        """SIGKILL: no goodbye, the kernel closes its connections."""
        if self._process:
            self._process.kill()
            self._process.wait(timeout=10)

    def restart(self) -> None:
        """Kill it if it runs, and start it anew on the same port, with its memory lost."""
        self.kill()
        self.start()

    def pause(self) -> None:
        """SIGSTOP, and wait until it has stopped: it hangs, its connections stay open."""
        os.kill(self.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED)

    def resume(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    def _answers(self) -> bool:
        try:
            with socket.create_connection(
                (self.endpoint.host, self.endpoint.port), timeout=1
            ) as probe:
                # A packet, not a text command: gear's server answers those a moment earlier.
                probe.sendall(request(Kind.GET_STATUS, b"any"))
                return bool(probe.recv(4096))
        except OSError:
            return False


@contextmanager
def running_broker(kind: BrokerKind) -> Iterator[RunningBroker]:
    """A broker that answers, on a port of its own."""
    with tempfile.TemporaryDirectory(prefix="testenv-broker-") as folder:
        broker = _started(kind, Path(folder))
        try:
            yield broker
        finally:
            broker.kill()


def _started(kind: BrokerKind, folder: Path, attempts: int = 3) -> RunningBroker:
    """Another test run may take the port between our look and the broker's bind: try again."""
    while True:
        broker = RunningBroker(kind, folder, Endpoint(HOST, free_port()))
        try:
            broker.start()
        except RuntimeError:
            attempts -= 1
            if not attempts:
                raise
        else:
            return broker


def free_port() -> int:
    """A loopback port that nobody listened on just now."""
    for port in random.sample(PORTS, 100):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port
    raise RuntimeError("no free loopback port")
