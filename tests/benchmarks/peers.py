"""A client and an agent that belong together: ours, or toci's version 1 (gear's own sockets)."""

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from broker.endpoint import Endpoint

BIN = Path(sys.executable).parent
V1 = Path(__file__).parents[1] / "functional" / "peers"
TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Peers:
    """`client`: a Python program and its options; what is added is `--` and a command."""

    name: str
    client: Callable[[Endpoint], list[str]]
    agent: Callable[[Endpoint, Path], list[str]]


def _our_client(broker: Endpoint) -> list[str]:
    return [str(BIN / "testenv-client"), "-b", str(broker)]


def _our_agent(broker: Endpoint, folder: Path) -> list[str]:
    serve = [str(BIN / "testenv-host"), "serve", str(folder / "env.json")]
    return [*serve, "-b", str(broker), "--state-dir", str(folder)]


def _v1_client(broker: Endpoint) -> list[str]:
    return [str(V1 / "v1_client.py"), "-b", str(broker)]


def _v1_agent(broker: Endpoint, folder: Path) -> list[str]:
    return [
        sys.executable,
        str(V1 / "v1_worker.py"),
        "-b",
        str(broker),
        str(folder / "env.json"),
    ]


OURS = Peers("testenv", _our_client, _our_agent)
TOCI = Peers("toci v1", _v1_client, _v1_agent)


@contextmanager
def served(broker: Endpoint, peers: Peers, folder: Path) -> Iterator[None]:
    """An environment that `peers`' agent offers, proved by one client."""
    (folder / "env.json").write_text('{"seed-ip": "203.0.113.10"}')
    command = peers.agent(broker, folder)
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as agent:
        try:
            finish([*client_command(peers, broker), "true"])
            yield
        finally:
            agent.kill()


def client_command(peers: Peers, broker: Endpoint) -> list[str]:
    """Run a client; to be followed by what it is to run."""
    return [sys.executable, *peers.client(broker), "--"]


def finish(command: Sequence[str]) -> str:
    """Run it to its good end, and return what it said on stderr."""
    done = subprocess.run(
        command, check=True, timeout=TIMEOUT_S, stdin=subprocess.DEVNULL, capture_output=True
    )
    return done.stderr.decode()
