"""From one command's end to the next waiting client's command."""

import subprocess
import time
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
_KILLED = "client SIGKILLed, to the next client's command"


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


def _killed(kind: BrokerKind, runs: int) -> Figure:
    """From a client's SIGKILL to the first step of the next one's command."""
    with running_rival(kind) as broker, TemporaryDirectory(prefix="testenv-bench-") as name:
        stamp = Path(name) / "stamp"
        command = [*client_command(OURS, broker.endpoint), "sh", "-c"]
        with served(broker.endpoint, OURS, Path(name)):
            times = [_kill_once(command, stamp) for _ in range(runs)]
    who = OURS.name if kind is OUR_BROKER else f"{OURS.name} on {kind}"
    return Figure.of(_KILLED, who, "ms", times)


def _kill_once(command: list[str], stamp: Path) -> float:
    """The next command looks for the old one, and fails if that is still alive."""
    stamp.unlink(missing_ok=True)
    pid = stamp.with_name("pid")
    pid.unlink(missing_ok=True)
    holder = subprocess.Popen([*command, f"echo $$ > '{pid}'; exec sleep 300"])
    _wait_for(pid)
    after = f"date +%s%N > '{stamp}'; ! kill -0 $(cat '{pid}') 2>/dev/null"
    heir = subprocess.Popen([*command, after])
    time.sleep(_COMMAND_S)
    killed = time.time_ns()
    holder.kill()
    holder.wait(timeout=TIMEOUT_S)
    if heir.wait(timeout=TIMEOUT_S):
        raise RuntimeError("the old command was alive when the next one began")
    return (int(stamp.read_text()) - killed) / 1e6


def _wait_for(path: Path) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not (path.exists() and path.read_text().strip()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"no {path}")
        time.sleep(0.005)


def _measure(runs: int) -> Iterator[Figure]:
    rounds = max(1, 2 * runs // WAITING)
    for kind in RIVALS:
        yield _of(OURS, kind, rounds)
    yield _of(TOCI, OUR_BROKER, 1)
    for kind in RIVALS:
        yield _killed(kind, runs)


HAND_OVER = Benchmark(
    "hand-over",
    "From the last step of a command, or from its client's SIGKILL, to the first step of the next"
    " client's. The environment is `testenv-host serve`d, or toci's worker's; on our broker where"
    " no other is named. A killed client's command is dead before the next one begins.",
    OURS.name,
    _measure,
    (
        Bar(Key(_WHAT, OURS.name), 10.0, "p95"),
        Bar(Key(_KILLED, OURS.name), 100.0),
    ),
)
