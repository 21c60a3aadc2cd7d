"""A small PKI made by its own commands, and our broker with TLS."""

import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from broker.endpoint import Endpoint
from broker.tls import TlsFiles

BIN = Path(sys.executable).parent
BOUND_S = 20.0


def run(program: str, *arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    """One of our commands, from start to end."""
    return subprocess.run(
        [BIN / program, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=BOUND_S,
        check=False,
    )


def options(files: TlsFiles) -> list[str]:
    """As every command takes them."""
    cert, key, ca = map(str, files)
    return ["--tls-cert", cert, "--tls-key", key, "--tls-ca", ca]


class Fleet:
    """The certificates of a fleet, in `folder`."""

    def __init__(self, folder: Path, *broker_names: str) -> None:
        self.pki = folder / "pki"
        self._out = folder / "out"
        self.command("init", *broker_names)
        self.broker = TlsFiles(
            self.pki / "broker.crt", self.pki / "broker.key", self.pki / "ca.crt"
        )

    def command(self, *arguments: str | Path) -> str:
        """A `pki` command that must succeed: its stdout."""
        done = run("testenv-broker", "pki", *arguments, "--dir", self.pki)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def issue(self, role: str, name: str) -> TlsFiles:
        """A certificate of its own for this call."""
        out = self._out / f"{role}-{name}"
        cert, key, ca = self.command("issue", role, name, "--out", out).split()
        return TlsFiles(Path(cert), Path(key), Path(ca))

    def revoke(self, who: str) -> None:
        """What the broker learns at its next SIGHUP."""
        self.command("revoke", who, "--yes")


class TlsBroker:
    """A testenv-broker that runs."""

    def __init__(self, process: "subprocess.Popen[str]", port: int) -> None:
        self._process = process
        self.port = port

    def at(self, tls: TlsFiles | None, host: str = "127.0.0.1") -> Endpoint:
        """How to reach it with a certificate."""
        return Endpoint(host, self.port, tls)

    def reload(self) -> None:
        """SIGHUP."""
        self._process.send_signal(signal.SIGHUP)

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()
        self._process.wait(BOUND_S)


@contextmanager
def tls_broker(fleet: Fleet) -> Iterator[TlsBroker]:
    """Our broker with the fleet's certificates, on a free port."""
    files = [*options(fleet.broker), "--tls-crl", str(fleet.pki / "crl.pem")]
    with our_broker(files) as running:
        yield running


@contextmanager
def our_broker(arguments: Sequence[str]) -> Iterator[TlsBroker]:
    """Our broker, with these options, on a free port."""
    argv = [str(BIN / "testenv-broker"), "run", "--listen", "127.0.0.1:0", *arguments]
    process = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", "--", *argv], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr
    try:
        line = process.stderr.readline()
        listening = re.fullmatch(r"listening on 127\.0\.0\.1:(\d+)\n", line)
        assert listening, line
        yield TlsBroker(process, int(listening[1]))
    finally:
        process.kill()
        process.communicate(timeout=BOUND_S)
