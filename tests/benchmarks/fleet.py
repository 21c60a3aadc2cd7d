"""A whole fleet at work: 1,000 environments on 50 agents, and 500 clients that never pause."""

import asyncio
import io
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

from broker import admin
from broker.endpoint import Endpoint
from schemas.errors import TestenvError
from schemas.legs import Result
from schemas.lock import LockRequest
from schemas.names import LOCK_FUNCTION, callback_function
from testenv.acquire import Acquisition, Wish
from testenv.line import Message
from testenv.talk import Talk
from tests.benchmarks.figures import Benchmark, Figure
from tests.benchmarks.rivals import OURS, RIVALS, cpu_s, running_rival
from tests.functional.brokers import BrokerKind, RunningBroker

AGENTS, ENVIRONMENTS_EACH, AGENT_PROCESSES = 50, 20, 2
CLIENTS = 500
COMMAND_S = 0.05
READY_S = 60.0
WARM_UP_S = 2.0
MEASURED_S = 8.0
GIVE_UP_S = 10.0
"""A client that has no environment by then counts as a failure, and asks anew."""

_LEASES, _WAIT = "fleet: leases a second", "fleet: request to environment"
_BROKER_CPU, _AGENT_CPU = "fleet: broker CPU a lease", "fleet: agent CPU a lease"


@contextmanager
def _agents(broker: RunningBroker, folder: Path) -> Iterator[list[int]]:
    """All agents, with all environments on offer; their processes."""
    datafile = folder / "env.json"
    datafile.write_text('{"seed-ip": "203.0.113.10"}')
    share = AGENTS // AGENT_PROCESSES
    program = [sys.executable, "-m", "tests.benchmarks.fleet_agents", str(broker.endpoint)]
    with ExitStack() as stack:
        processes = []
        for first in range(0, AGENTS, share):
            what = [str(first), str(share), str(ENVIRONMENTS_EACH), str(datafile)]
            process = stack.enter_context(
                subprocess.Popen([*program, *what], stderr=subprocess.DEVNULL)
            )
            stack.callback(process.kill)
            processes.append(process.pid)
        yield processes


async def _all_ready(broker: Endpoint) -> bool:
    """Wait until every environment is on offer; False if that takes longer than READY_S."""
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        try:
            rows = await admin.status(broker, timeout=READY_S)
        except TestenvError:
            return False
        if any(r.name == LOCK_FUNCTION and r.workers == AGENTS * ENVIRONMENTS_EACH for r in rows):
            return True
        await asyncio.sleep(0.2)
    return False


class _Clients:
    """CI jobs by the client's library: connect, ask, get, hold, give back; and again."""

    def __init__(self, broker: Endpoint) -> None:
        self._broker = broker
        self.waits_ms: list[float] = []
        self.failures = 0

    async def run(self) -> None:
        """All of them, until cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(CLIENTS):
                group.create_task(self._live())

    async def _live(self) -> None:
        while True:
            start = time.perf_counter()
            try:
                async with asyncio.timeout(GIVE_UP_S):
                    await self._one_job(start)
            except (TestenvError, TimeoutError):
                self.failures += 1

    async def _one_job(self, start: float) -> None:
        name = uuid4().hex
        request = LockRequest(callback_function(name), timeout_s=60, holder=name, version=2)
        wish = Wish([self._broker], f"client-{name}", LOCK_FUNCTION, request, name, GIVE_UP_S)
        inbox = asyncio.Queue[Message]()
        async with AsyncExitStack() as stack:
            waiting = Acquisition(wish, inbox, stack, 1.0, Talk(io.StringIO()))
            acquired = await waiting.acquired()
            self.waits_ms.append((time.perf_counter() - start) * 1000)
            await asyncio.sleep(COMMAND_S)
            acquired.call.complete(Result("exited", 0).dump())
            await acquired.job.result()


async def _measured(kind: BrokerKind, broker: RunningBroker, agents: list[int]) -> list[Figure]:
    who = str(kind)
    if not await _all_ready(broker.endpoint):
        return [Figure(_LEASES, who, "1/s", note=f"not all on offer after {READY_S:g} s")]
    clients = _Clients(broker.endpoint)
    working = asyncio.create_task(clients.run())
    try:
        await asyncio.sleep(WARM_UP_S)
        clients.waits_ms.clear()
        clients.failures = 0
        before = cpu_s(broker.pid), sum(map(cpu_s, agents)), time.perf_counter()
        await asyncio.sleep(MEASURED_S)
        after = cpu_s(broker.pid), sum(map(cpu_s, agents)), time.perf_counter()
    finally:
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
    broker_s, agents_s, took_s = (end - start for start, end in zip(before, after, strict=True))
    leases = len(clients.waits_ms)
    note = f"{clients.failures} gave up" if clients.failures else ""
    if leases < 2:
        return [Figure(_LEASES, who, "1/s", note=note)]
    return [
        Figure.single(_LEASES, who, "1/s", leases / took_s, leases, note),
        Figure.of(_WAIT, who, "ms", clients.waits_ms),
        Figure.single(_BROKER_CPU, who, "ms", broker_s / leases * 1000, leases),
        Figure.single(_AGENT_CPU, who, "ms", agents_s / leases * 1000, leases),
        Figure.single("fleet: broker CPU", who, "% of a core", broker_s / took_s * 100),
        Figure.single("fleet: agents' CPU", who, "% of a core", agents_s / took_s * 100),
    ]


def _measure(_: int) -> Iterator[Figure]:
    for kind in RIVALS:
        with (
            running_rival(kind) as broker,
            TemporaryDirectory(prefix="testenv-bench-") as name,
            _agents(broker, Path(name)) as agents,
        ):
            yield from asyncio.run(_measured(kind, broker, agents))


FLEET = Benchmark(
    "fleet",
    f"{AGENTS * ENVIRONMENTS_EACH:,} environments on {AGENTS} agents, {CLIENTS} clients, each"
    f" lease {COMMAND_S * 1000:g} ms long; {MEASURED_S:g} s. The agents are real, but share"
    f" {AGENT_PROCESSES} processes, and their environments are mere data files. The clients are the"
    " client's library in one process, connecting anew for every lease; 500 processes would measure"
    " the machine. All share the machine's cores, so a second's leases tell how much work one is.",
    OURS.name,
    _measure,
)
