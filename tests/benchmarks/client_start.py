"""A CI job's client that starts cold on a free environment: ours and toci's in turn."""

import re
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from broker.endpoint import Endpoint
from tests.benchmarks.figures import Bar, Benchmark, Figure, Key
from tests.benchmarks.peers import OURS, TOCI, Peers, client_command, finish, served
from tests.benchmarks.rivals import OURS as OUR_BROKER
from tests.benchmarks.rivals import running_rival
from tests.benchmarks.stamped import CONNECT, START

_PAUSE_S = 0.05
"""Between two clients: the first one's agent and guard have settled then."""

_SLOWEST = 12
"""So many modules are named."""

_STAMPED = str(Path(__file__).with_name("stamped.py"))

_IMPORT_TIME = re.compile(r"^import time: +(\d+) \| +\d+ \| +(\S+)$", re.MULTILINE)
"""A line of `python -X importtime`: the module's own microseconds, and its name."""

_TO_COMMAND = "cold client, spawn to command"
_PROTOCOL = "cold client, connect to command"
_WALL = "cold client, `-- true`, spawn to exit"


class _Trial:
    """Clients of one environment, again and again."""

    def __init__(self, broker: Endpoint, folder: Path) -> None:
        self._broker = broker
        self._stamps = folder / "stamps"

    def to_command(self, peers: Peers) -> float:
        """Milliseconds from the spawn of a client to its command's first step."""
        script = f"date +%s%N > '{self._stamps}'"
        spawned = time.time_ns()
        finish([*client_command(peers, self._broker), "sh", "-c", script])
        return (int(self._stamps.read_text()) - spawned) / 1e6

    def protocol(self, peers: Peers) -> float:
        """Milliseconds from a client's connect to the spawn of its command."""
        self._stamps.unlink(missing_ok=True)
        watch = [sys.executable, _STAMPED, str(self._stamps)]
        finish([*watch, *peers.client(self._broker), "--", "true"])
        times = dict(line.split() for line in self._stamps.read_text().splitlines())
        return (int(times[START]) - int(times[CONNECT])) / 1e6

    def wall(self, peers: Peers) -> float:
        """Milliseconds from the spawn of a client to its end."""
        start = time.perf_counter()
        finish([*client_command(peers, self._broker), "true"])
        return (time.perf_counter() - start) * 1000

    def imports(self) -> dict[str, float]:
        """Milliseconds that each module of our client takes by itself, the guard's among them."""
        watch = [sys.executable, "-X", "importtime"]
        said = finish([*watch, *OURS.client(self._broker), "--", "true"])
        return {name: int(time_us) / 1000 for time_us, name in _IMPORT_TIME.findall(said)}


def _measure(runs: int) -> Iterator[Figure]:
    with (
        running_rival(OUR_BROKER) as broker,
        TemporaryDirectory(prefix="testenv-bench-") as name,
        served(broker.endpoint, OURS, Path(name)),
    ):
        trial = _Trial(broker.endpoint, Path(name))
        for what, measure in (
            (_TO_COMMAND, trial.to_command),
            (_PROTOCOL, trial.protocol),
            (_WALL, trial.wall),
        ):
            samples: dict[str, list[float]] = defaultdict(list)
            for _ in range(runs):
                # In turn, on one agent, so that a slow moment hits both.
                for peers in (OURS, TOCI):
                    time.sleep(_PAUSE_S)
                    samples[peers.name].append(measure(peers))
            for who, times in samples.items():
                yield Figure.of(what, who, "ms", times)
        yield from _imports([trial.imports() for _ in range(runs)])


def _imports(runs: Sequence[dict[str, float]]) -> Iterator[Figure]:
    samples: dict[str, list[float]] = defaultdict(list)
    for run in runs:
        for module, time_ms in run.items():
            samples[module].append(time_ms)
    totals = [sum(run.values()) for run in runs]
    yield Figure.of(f"import of all {len(samples)} modules", OURS.name, "ms", totals)
    medians = {module: statistics.median(times) for module, times in samples.items()}
    for module in sorted(samples, key=medians.__getitem__, reverse=True)[:_SLOWEST]:
        yield Figure.of(f"import of {module}", OURS.name, "ms", samples[module])


CLIENT_START = Benchmark(
    "client-start",
    "testenv-client and a client of toci's shape (tests/functional/peers/v1_client.py) in turn, on"
    " our broker and one `testenv-host serve`. Imports as `python -X importtime` has them, which"
    " slows them down: each module by itself, the interpreter's own and the guard's among them.",
    OURS.name,
    _measure,
    (
        Bar(Key(_TO_COMMAND, OURS.name), 1.3, relative_to=Key(_TO_COMMAND, TOCI.name)),
        Bar(Key(_PROTOCOL, OURS.name), 3.0),
    ),
)
