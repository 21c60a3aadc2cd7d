"""One job, and N workers that sleep: what a growing fleet costs a lock request."""

import time
from collections.abc import Iterator

from tests.benchmarks.figures import Bar, Benchmark, Figure, Key
from tests.benchmarks.raw import Crowd, RawClient, RawWorker
from tests.benchmarks.rivals import OURS, RIVALS, cpu_s, running_rival
from tests.functional.brokers import BrokerKind, RunningBroker

SLEEPERS = (10, 100, 1_000, 10_000)
FUNCTION = b"lockenv"


class _Fleet:
    """A client and ever more sleeping workers at one broker."""

    def __init__(self, broker: RunningBroker, crowd: Crowd) -> None:
        self._broker = broker
        self._crowd = crowd
        self._sleepers = 0
        self._assigned_at = 0.0
        self._ended = False
        self._client = RawClient(broker.endpoint, FUNCTION, self._end)
        crowd.add(self._client.peer)

    def grow(self, sleepers: int) -> None:
        """Have so many workers asleep."""
        while self._sleepers < sleepers:
            self._crowd.add(RawWorker(self._broker.endpoint, FUNCTION, self._assign).peer)
            self._sleepers += 1
        self._crowd.run_until_quiet()

    def dispatch(self) -> float | None:
        """Seconds from a job's submission to its worker; None if it gets none in time.

        Returns when all who were woken are asleep again.
        """
        self._ended = False
        start = time.perf_counter()
        self._client.submit()
        in_time = self._crowd.run_until(lambda: self._ended)
        self._crowd.run_until_quiet()
        return self._assigned_at - start if in_time else None

    def _assign(self) -> None:
        self._assigned_at = time.perf_counter()

    def _end(self) -> None:
        self._ended = True


def _measure(runs: int) -> Iterator[Figure]:
    for kind in RIVALS:
        with running_rival(kind) as broker, Crowd() as crowd:
            fleet = _Fleet(broker, crowd)
            for sleepers in SLEEPERS:
                yield from _dispatches(kind, broker, fleet, sleepers, runs)


def _dispatches(
    kind: BrokerKind, broker: RunningBroker, fleet: _Fleet, sleepers: int, runs: int
) -> Iterator[Figure]:
    fleet.grow(sleepers)
    fleet.dispatch()
    cpu = cpu_s(broker.pid)
    samples = [fleet.dispatch() for _ in range(runs)]
    cpu = cpu_s(broker.pid) - cpu
    in_time = [sample * 1000 for sample in samples if sample is not None]
    what = _what(sleepers)
    if len(in_time) < runs:
        note = f"{runs - len(in_time)} of {runs} jobs got no worker"
        yield Figure(what, str(kind), "ms", note=note)
    else:
        yield Figure.of(what, str(kind), "ms", in_time)
    yield Figure.single(f"{what}: broker CPU", str(kind), "ms", cpu / runs * 1000, runs)


def _what(sleepers: int) -> str:
    return f"job to {sleepers:,} sleeping workers"


_FEW, _MANY = Key(_what(SLEEPERS[0]), OURS.name), Key(_what(SLEEPERS[-1]), OURS.name)

DISPATCH = Benchmark(
    "dispatch",
    "Time from SUBMIT_JOB to the JOB_ASSIGN of a worker that slept. All peers are raw sockets in"
    " one process; whoever is woken grabs, as worker libraries do. The broker's CPU is per job and"
    " includes what the woken workers cost.",
    OURS.name,
    _measure,
    (Bar(_MANY, 1.0), Bar(_MANY, 2.0, relative_to=_FEW)),
)
