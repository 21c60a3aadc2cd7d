"""Ten thousand connections that do nothing: what they cost a broker."""

import time
from collections.abc import Iterator

from broker.protocol import Kind
from broker.wire import request
from tests.benchmarks.figures import Bar, Benchmark, Figure, Key
from tests.benchmarks.raw import Crowd, Peer
from tests.benchmarks.rivals import OURS, RIVALS, cpu_s, resident_kb, running_rival
from tests.functional.brokers import BrokerKind, RunningBroker

CONNECTIONS = 10_000
IDLE_S = 10.0

_MEMORY = "memory per idle connection"
_WORKER_MEMORY = "memory per sleeping worker"
_CPU = f"CPU with {CONNECTIONS:,} idle connections"


def _measure(_: int) -> Iterator[Figure]:
    for kind in RIVALS:
        with running_rival(kind) as broker, Crowd() as crowd:
            yield from _of(kind, broker, crowd)


def _of(kind: BrokerKind, broker: RunningBroker, crowd: Crowd) -> Iterator[Figure]:
    before = resident_kb(broker.pid)
    for _ in range(CONNECTIONS):
        crowd.add(Peer(broker.endpoint))
    yield _memory(_MEMORY, kind, resident_kb(broker.pid) - before)
    crowd.run_until_quiet()
    cpu, start = cpu_s(broker.pid), time.monotonic()
    time.sleep(IDLE_S)
    share = (cpu_s(broker.pid) - cpu) / (time.monotonic() - start) * 100
    yield Figure.single(_CPU, str(kind), "% of a core", share)
    for peer in crowd.peers.values():
        peer.ask(request(Kind.CAN_DO, b"lockenv"), request(Kind.GRAB_JOB_UNIQ))
        peer.send(request(Kind.PRE_SLEEP))
    crowd.run_until_quiet()
    yield _memory(_WORKER_MEMORY, kind, resident_kb(broker.pid) - before)


def _memory(what: str, kind: BrokerKind, kb: int) -> Figure:
    return Figure.single(what, str(kind), "kB", kb / CONNECTIONS, CONNECTIONS)


IDLE = Benchmark(
    "idle",
    f"What the broker's resident memory grows by; connections opened one after the other, each"
    f" answered once, then silent. CPU over {IDLE_S:g} s. The kernel's socket buffers are in no"
    " figure.",
    OURS.name,
    _measure,
    (Bar(Key(_MEMORY, OURS.name), 12.0), Bar(Key(_CPU, OURS.name), 1.0)),
)
