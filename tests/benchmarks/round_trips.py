"""A trivial job, there and back, over connections that last."""

import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import gear

from broker.endpoint import Endpoint
from tests.benchmarks.figures import Bar, Benchmark, Figure, Key
from tests.benchmarks.raw import BOUND_S, Crowd, RawClient, RawWorker
from tests.benchmarks.rivals import OURS, RIVALS, running_rival
from tests.functional.brokers import GEARMAND, RunningBroker
from tests.functional.wire_peers import gear_worker

FUNCTION = "trivial"
JOBS_EACH = {1: 25, 50: 5}
"""By the number of pairs: how many jobs each client submits in a run, one after the other."""

GEAR_JOBS = 100
STALL_MS = 40.0
"""What Nagle's algorithm and delayed ACKs cost together, when they cost anything."""


class _Submitter:
    """Submits its jobs one after the other, and notes how long each took."""

    def __init__(self, endpoint: Endpoint, crowd: Crowd) -> None:
        self._client = RawClient(endpoint, FUNCTION.encode(), self._ended)
        self._sent_at = 0.0
        self._left = 0
        self.times_ms: list[float] = []
        crowd.add(self._client.peer)

    @property
    def is_done(self) -> bool:
        return self._left == 0

    def start(self, jobs: int) -> None:
        self._left = jobs
        self._submit()

    def _submit(self) -> None:
        self._sent_at = time.perf_counter()
        self._client.submit()

    def _ended(self) -> None:
        self.times_ms.append((time.perf_counter() - self._sent_at) * 1000)
        self._left -= 1
        if self._left:
            self._submit()


def _raw(broker: Endpoint, pairs: int) -> tuple[list[float], float]:
    """A run on new connections: each job's milliseconds, and jobs a second."""
    each = JOBS_EACH[pairs]
    with Crowd() as crowd:
        for _ in range(pairs):
            crowd.add(RawWorker(broker, FUNCTION.encode(), lambda: None).peer)
        submitters = [_Submitter(broker, crowd) for _ in range(pairs)]
        start = time.perf_counter()
        for submitter in submitters:
            submitter.start(each)
        if not crowd.run_until(lambda: all(one.is_done for one in submitters)):
            raise TimeoutError(f"{broker} did not do {each} jobs each in {BOUND_S:g} s")
        took = time.perf_counter() - start
    times_ms = [time_ms for submitter in submitters for time_ms in submitter.times_ms]
    return times_ms, pairs * each / took


class _GearClient(gear.Client):  # type: ignore[misc]  # gear has no type hints
    """gear's own, which tells when a job has ended."""

    def __init__(self) -> None:
        super().__init__()
        self.ended = threading.Event()

    def handleWorkComplete(self, packet: gear.Packet) -> None:  # noqa: N802 - gear's name
        super().handleWorkComplete(packet)
        self.ended.set()


def _gear(broker: Endpoint) -> list[float]:
    """Each job's milliseconds, with gear's own Client and Worker: Nagle's algorithm is on."""
    times_ms = []
    client = _GearClient()
    client.addServer(broker.host, broker.port)
    client.waitForServer(timeout=BOUND_S)
    with gear_worker(broker, FUNCTION, lambda job: job.sendWorkComplete()):
        for _ in range(GEAR_JOBS):
            client.ended.clear()
            start = time.perf_counter()
            client.submitJob(gear.Job(FUNCTION.encode(), b""), timeout=BOUND_S)
            if not client.ended.wait(BOUND_S):
                raise TimeoutError(f"{broker} did not do a job of gear's in {BOUND_S:g} s")
            times_ms.append((time.perf_counter() - start) * 1000)
    client.shutdown()
    return times_ms


def _measure(runs: int) -> Iterator[Figure]:
    with ExitStack() as stack:
        brokers = [stack.enter_context(running_rival(kind)) for kind in RIVALS]
        for pairs in JOBS_EACH:
            yield from _pairs_at_all(brokers, pairs, runs)
        for broker in brokers:
            yield Figure.of(_GEARS_OWN, str(broker.kind), "ms", _gear(broker.endpoint))


def _pairs_at_all(brokers: Sequence[RunningBroker], pairs: int, runs: int) -> Iterator[Figure]:
    """In turn: which core a broker's threads are on makes runs fast or slow as a whole."""
    times_ms: dict[str, list[float]] = defaultdict(list)
    rates: dict[str, list[float]] = defaultdict(list)
    for _ in range(runs):
        for broker in brokers:
            times, rate = _raw(broker.endpoint, pairs)
            times_ms[str(broker.kind)] += times
            rates[str(broker.kind)].append(rate)
    for who, samples in times_ms.items():
        yield Figure.of(_one_job(pairs), who, "ms", samples)
    for who, samples in rates.items():
        yield Figure.rate(f"jobs a second, {_pairs(pairs)}", who, samples)


def _pairs(count: int) -> str:
    return "1 pair" if count == 1 else f"{count} pairs"


def _one_job(pairs: int) -> str:
    return f"round trip of a job, {_pairs(pairs)}"


_GEARS_OWN = "round trip of a job, gear's Client and Worker"

ROUND_TRIPS = Benchmark(
    "round-trips",
    "Time from a foreground job's submission to its WORK_COMPLETE. Pairs are raw sockets in one"
    " process, each client with one job at a time; new connections for each run. C gearmand's runs"
    " are fast or slow as a whole, with the cores that the kernel gives its threads.",
    OURS.name,
    _measure,
    (
        Bar(Key(_one_job(1), OURS.name), 1.5, relative_to=Key(_one_job(1), GEARMAND.name)),
        Bar(Key(_one_job(1), OURS.name), STALL_MS, "worst"),
        Bar(Key(_GEARS_OWN, OURS.name), STALL_MS, "worst"),
    ),
)
