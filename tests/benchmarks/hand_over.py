"""From one command's end to the next waiting client's command."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from broker.endpoint import Endpoint
from tests.benchmarks.figures import Bar, Benchmark, Figure, Key
from tests.benchmarks.peers import OURS, TIMEOUT_S, TOCI, Peers, client_command, served
from tests.benchmarks.rivals import OURS as OUR_BROKER
from tests.benchmarks.rivals import RIVALS, running_rival
from tests.functional.brokers import BrokerKind

WAITING = 5
_COMMAND_S = 0.3
"""Long enough for the others to start and queue up while the first command runs."""

_WHAT = f"hand-over, {WAITING} waiting"


def _round(peers: Peers, broker: Endpoint, folder: Path) -> list[float]:
    """Milliseconds of each hand-over of one row of clients."""
    stamps = folder / "stamps"
    stamp = f"date +%s%N >> '{stamps}'"
    script = f"{stamp}; sleep {_COMMAND_S}; {stamp}"
    command = [*client_command(peers, broker), "sh", "-c", script]
    # A session each: toci's client kills its own process group when it loses.
    clients = [
        subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
        for _ in range(WAITING + 1)
    ]
    for client in clients:
        client.wait(timeout=TIMEOUT_S)
    times = [int(line) for line in stamps.read_text().split()]
    stamps.unlink()
    ends, starts = times[1:-1:2], times[2::2]
    return [(start - end) / 1e6 for end, start in zip(ends, starts, strict=True)]


def _of(peers: Peers, kind: BrokerKind, rounds: int) -> Figure:
    with running_rival(kind) as broker, TemporaryDirectory(prefix="testenv-bench-") as name:
        folder = Path(name)
        with served(broker.endpoint, peers, folder):
            rounds_ms = [_round(peers, broker.endpoint, folder) for _ in range(rounds)]
    who = peers.name if kind is OUR_BROKER else f"{peers.name} on {kind}"
    return Figure.of(_WHAT, who, "ms", [each for round_ in rounds_ms for each in round_])


def _measure(runs: int) -> Iterator[Figure]:
    rounds = max(1, 2 * runs // WAITING)
    for kind in RIVALS:
        yield _of(OURS, kind, rounds)
    yield _of(TOCI, OUR_BROKER, 1)


HAND_OVER = Benchmark(
    "hand-over",
    "From the last step of a command to the first of the next client's. The environment is"
    " `testenv-host serve`d, or toci's worker's; on our broker where no other is named.",
    OURS.name,
    _measure,
    (Bar(Key(_WHAT, OURS.name), 10.0, "p95"),),
)
