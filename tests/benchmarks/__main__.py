"""`make bench`: what a CI job feels, beside toci's version 1 in the same run.

    python -m tests.benchmarks [--runs N] [--json FILE]

Prints a table (medians, p95, n, ratio of medians) on stdout; `--json` writes the figures too.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import click
from rich.console import Console
from rich.table import Table

from tests.functional.brokers import OURS, RunningBroker, running_broker

BIN = Path(sys.executable).parent
PEERS = Path(__file__).parents[1] / "functional" / "peers"
STAMP = "echo $(date +%s%N) >>"
WAITING = 5
TIMEOUT_S = 60.0

Client = Callable[[RunningBroker, Sequence[str]], list[str]]
Agent = Callable[[RunningBroker, Path], list[str]]


@dataclass(frozen=True)
class Peers:
    """A client and an agent that belong together."""

    name: str
    client: Client
    agent: Agent


def _our_client(broker: RunningBroker, words: Sequence[str]) -> list[str]:
    return [str(BIN / "testenv-client"), "-b", str(broker.endpoint), "--", *words]


def _our_agent(broker: RunningBroker, folder: Path) -> list[str]:
    serve = [str(BIN / "testenv-host"), "serve", str(folder / "env.json")]
    return [*serve, "-b", str(broker.endpoint), "--state-dir", str(folder)]


def _toci_client(broker: RunningBroker, words: Sequence[str]) -> list[str]:
    return [sys.executable, str(PEERS / "v1_client.py"), "-b", str(broker.endpoint), "--", *words]


def _toci_agent(broker: RunningBroker, folder: Path) -> list[str]:
    worker = [sys.executable, str(PEERS / "v1_worker.py"), "-b", str(broker.endpoint)]
    return [*worker, str(folder / "env.json")]


OUR_PEERS = Peers("testenv", _our_client, _our_agent)
TOCI_PEERS = Peers("toci v1", _toci_client, _toci_agent)


@dataclass(frozen=True)
class Figure:
    """One row: milliseconds of one pair of peers."""

    what: str
    who: str
    n: int
    median_ms: float
    p95_ms: float

    @classmethod
    def of(cls, what: str, who: str, samples: Sequence[float]) -> "Figure":
        p95 = statistics.quantiles(samples, n=20)[-1]
        return cls(what, who, len(samples), statistics.median(samples), p95)


@contextmanager
def served(broker: RunningBroker, peers: Peers, folder: Path) -> Iterator[None]:
    """An environment that `peers`' agent offers, proved by one client."""
    (folder / "env.json").write_text('{"seed-ip": "203.0.113.10"}')
    command = peers.agent(broker, folder)
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as agent:
        try:
            _finish(peers.client(broker, ["true"]))
            yield
        finally:
            agent.kill()


def cold_client(peers: Peers, broker: RunningBroker, folder: Path, runs: int) -> list[float]:
    """From the spawn of a client to its command's first step, ms; the environment is free."""
    samples = []
    for run in range(runs):
        stamps = folder / f"{peers.name}-cold-{run}"
        spawned = time.time_ns()
        _finish(peers.client(broker, ["sh", "-c", f"{STAMP} '{stamps}'"]))
        samples.append((int(stamps.read_text()) - spawned) / 1e6)
        time.sleep(0.05)
    return samples


def hand_over(peers: Peers, broker: RunningBroker, folder: Path, rounds: int) -> list[float]:
    """From a command's last step to the next waiting client's command, ms; five wait."""
    samples = []
    for round_ in range(rounds):
        stamps = folder / f"{peers.name}-{round_}"
        script = f"{STAMP} '{stamps}'; sleep 0.05; {STAMP} '{stamps}'"
        clients = [
            subprocess.Popen(peers.client(broker, ["sh", "-c", script]), stderr=subprocess.DEVNULL)
            for _ in range(WAITING + 1)
        ]
        for client in clients:
            client.wait(timeout=TIMEOUT_S)
        times = [int(line) for line in stamps.read_text().split()]
        ends, starts = times[1:-1:2], times[2::2]
        samples += [(start - end) / 1e6 for end, start in zip(ends, starts, strict=True)]
    return samples


def measure(runs: int) -> list[Figure]:
    figures = []
    with ExitStack() as stack:
        broker = stack.enter_context(running_broker(OURS))
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="testenv-bench-")))
        with served(broker, OUR_PEERS, folder):
            # Both clients in turn on one agent, so that a slow moment hits both.
            for peers in (OUR_PEERS, TOCI_PEERS):
                samples = cold_client(peers, broker, folder, runs)
                figures.append(Figure.of("cold client, spawn to command", peers.name, samples))
            samples = hand_over(OUR_PEERS, broker, folder, max(1, runs // WAITING))
            figures.append(Figure.of("hand-over, 5 waiting", OUR_PEERS.name, samples))
        with served(broker, TOCI_PEERS, folder):
            samples = hand_over(TOCI_PEERS, broker, folder, 1)
            figures.append(Figure.of("hand-over, 5 waiting", TOCI_PEERS.name, samples))
    return figures


def _finish(command: list[str]) -> None:
    subprocess.run(command, check=True, timeout=TIMEOUT_S, capture_output=True)


def _table(figures: Sequence[Figure]) -> Table:
    table = Table("figure", "who", "n", "median ms", "p95 ms", "ratio to toci")
    rivals = {figure.what: figure for figure in figures if figure.who == TOCI_PEERS.name}
    for figure in figures:
        ratio = figure.median_ms / rivals[figure.what].median_ms
        times = (f"{figure.median_ms:.1f}", f"{figure.p95_ms:.1f}", f"{ratio:.3f}")
        table.add_row(figure.what, figure.who, str(figure.n), *times)
    return table


@click.command()
@click.option("--runs", type=click.IntRange(min=5), default=20, show_default=True)
@click.option("--json", "path", type=click.Path(path_type=Path), metavar="FILE")
def main(runs: int, path: Path | None) -> None:
    """Measure, and print a table.

    \b
    Example:
      python -m tests.benchmarks --runs 50 --json bench.json
    """
    figures = measure(runs)
    Console(width=110).print(_table(figures))
    if path:
        path.write_text(json.dumps([asdict(figure) for figure in figures], indent=2) + "\n")


if __name__ == "__main__":
    main()
