"""Brokers, wires, agents and clients, and what the faults do to them."""

import asyncio
import signal
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from broker.endpoint import Endpoint
from hosts.chronicle import Chronicle, read_journal
from hosts.journal_file import JOURNAL_NAME
from schemas.status import EnvState
from tests.chaos.clients import Client, Request, Requests
from tests.chaos.faults import (
    AGENTS,
    BROKERS,
    ENVIRONMENTS,
    SITES,
    Fault,
    Planned,
    Victim,
)
from tests.chaos.processes import Brood, Daemon
from tests.chaos.wire import Wire
from tests.functional.brokers import HOST, BrokerKind, free_port

REOFFERED_S = 30.0
"""After the last fault: ttl, margin, and what brokers and agents take to find each other."""
_ORPHANS_S = 5.0


class Fleet:
    """Everything that runs; use it as a context. `struck` counts the faults that hit."""

    def __init__(self, kind: BrokerKind, seed: str, clients: int, folder: Path) -> None:
        self.struck: Counter[Fault] = Counter()
        self.complaints: list[str] = []
        """What is wrong with the fleet itself."""
        self._folder = folder
        self._faults = folder / "faults.log"
        self._brood = Brood()
        self._stack = AsyncExitStack()
        self._over = asyncio.Event()
        self._late: set[asyncio.Task[None]] = set()
        self._turns: defaultdict[tuple[Victim, int], asyncio.Lock] = defaultdict(asyncio.Lock)
        endpoints = [Endpoint(HOST, free_port()) for _ in range(BROKERS)]
        self.brokers = [self._broker(kind, number, at) for number, at in enumerate(endpoints)]
        self._wires = [Wire(endpoints[number % BROKERS]) for number in range(SITES * BROKERS)]
        self.agents: list[Daemon] = []
        self.clients: list[Client] = []
        self._seed = seed
        self._count = clients

    def _broker(self, kind: BrokerKind, number: int, listen: Endpoint) -> Daemon:
        work = self._folder / f"broker-{number}"
        work.mkdir()
        argv = kind.command(listen, work)
        return Daemon(self._brood, f"broker {number}", argv, self._folder / f"{work.name}.log")

    async def __aenter__(self) -> Self:
        reaping = asyncio.create_task(self._brood.reap())
        self._stack.callback(reaping.cancel)
        for wire in self._wires:
            await self._stack.enter_async_context(wire)
        data = self._folder / "environment.json"
        data.write_text('{"seed-ip": "192.0.2.7", "nodes": []}')
        for number in range(AGENTS):
            self.agents.append(self._agent(number, data))
        for number in range(self._count):
            site = AGENTS + number % (SITES - AGENTS)
            requests = Requests(self._seed, number, self._folder)
            self.clients.append(Client(self._brood, requests, self._at(site), self._folder))
        for daemon in (*self.brokers, *self.agents):
            self._stack.push_async_callback(daemon.kill)
            await daemon.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._late:
            task.cancel()
        await asyncio.gather(*self._late, return_exceptions=True)
        await self._stack.aclose()

    def _agent(self, number: int, data: Path) -> Daemon:
        state_dir = self._folder / f"host-{number}"
        brokers = ",".join(map(str, self._at(number)))
        program = (sys.executable, "-m", "tests.chaos.agent")
        argv = (*program, state_dir.name, str(state_dir), str(data), brokers, str(ENVIRONMENTS))
        return Daemon(self._brood, f"agent {number}", argv, self._folder / f"{state_dir.name}.log")

    def _at(self, site: int) -> list[Endpoint]:
        """Where a site reaches the brokers."""
        return [wire.endpoint for wire in self._wires_of(site)]

    def _wires_of(self, site: int) -> list[Wire]:
        return self._wires[site * BROKERS : (site + 1) * BROKERS]

    async def suffer(self, faults: Iterable[Planned], seconds: float) -> None:
        """Clients at work, and all that is planned, for so long; then all is undone, and the
        clients' last requests end."""
        loop = asyncio.get_running_loop()
        begun = loop.time()
        lives = [asyncio.create_task(client.live(self._over)) for client in self.clients]
        try:
            for planned in faults:
                await asyncio.sleep(begun + planned.at - loop.time())
                self._spawn_fault(planned)
            await asyncio.sleep(begun + seconds - loop.time())
            await asyncio.gather(*self._late)
            self._over.set()
            await asyncio.gather(*lives)
        finally:
            for life in lives:
                life.cancel()
            await asyncio.gather(*lives, return_exceptions=True)

    def _spawn_fault(self, planned: Planned) -> None:
        task = asyncio.create_task(self._strike_in_turn(planned))
        self._late.add(task)
        task.add_done_callback(self._late.discard)

    async def _strike_in_turn(self, planned: Planned) -> None:
        """On a busy machine we may be late: no victim has two faults at a time all the same."""
        async with self._turns[planned.victim, planned.number]:
            await self._strike(planned)

    async def _strike(self, planned: Planned) -> None:
        self._note(str(planned))
        match planned.victim:
            case Victim.CLIENT:
                await self._strike_client(planned)
                return
            case Victim.AGENT | Victim.BROKER:
                daemons = self.agents if planned.victim is Victim.AGENT else self.brokers
                await self._strike_daemon(daemons[planned.number], planned)
            case Victim.SITE | Victim.WIRE:
                await self._strike_wires(planned)
        self.struck[planned.fault] += 1

    async def _strike_client(self, planned: Planned) -> None:
        client = self.clients[planned.number]
        if request := client.strike(planned.fault):
            self._note(f"{planned.fault}: {request.id}")
            self.struck[planned.fault] += 1
            await asyncio.sleep(planned.lasts_s)
            client.resume()

    async def _strike_daemon(self, daemon: Daemon, planned: Planned) -> None:
        self._look_after(daemon)
        if planned.fault in (Fault.STOP_AGENT, Fault.STOP_BROKER):
            daemon.stop()
            await asyncio.sleep(planned.lasts_s)
            daemon.resume()
        else:
            await daemon.kill()
            await asyncio.sleep(planned.lasts_s)
            await daemon.start()

    async def _strike_wires(self, planned: Planned) -> None:
        is_site = planned.victim is Victim.SITE
        wires = self._wires_of(planned.number) if is_site else [self._wires[planned.number]]
        for wire in wires:
            match planned.fault:
                case Fault.RESET:
                    wire.reset()
                case Fault.SLOW:
                    wire.slow(on=True)
                case _:
                    wire.silence()
        await asyncio.sleep(planned.lasts_s)
        for wire in wires:
            match planned.fault:
                case Fault.SLOW:
                    wire.slow(on=False)
                case Fault.SILENCE | Fault.CUT_OFF:
                    wire.heal()

    def _note(self, what: str) -> None:
        """For whoever reads the logs."""
        with self._faults.open("a") as file:
            file.write(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S.%f} {what}\n")

    def _look_after(self, daemon: Daemon) -> None:
        if daemon.crashed:
            self.complaints.append(f"{daemon.name} has ended by itself (see {daemon.log.name})")

    async def settle(self) -> None:
        """See every environment READY, the daemons end as they should, and no orphan left."""
        for daemon in (*self.agents, *self.brokers):
            self._look_after(daemon)
        try:
            async with asyncio.timeout(REOFFERED_S):
                while busy := self._not_ready():
                    await asyncio.sleep(0.2)
        except TimeoutError:
            self.complaints.append(f"{REOFFERED_S:g} s after the last: {', '.join(busy)}")
        for daemon in self.agents:
            if not await daemon.end(signal.SIGTERM):
                self.complaints.append(f"{daemon.name} does not heed SIGTERM")
        for daemon in self.brokers:
            await daemon.kill()
        try:
            async with asyncio.timeout(_ORPHANS_S):
                while orphans := self._brood.orphans():
                    await asyncio.sleep(0.1)
        except TimeoutError:
            self.complaints.append(f"orphans: {', '.join(map(_describe, sorted(orphans)))}")

    def _not_ready(self) -> list[str]:
        environments = [one for chronicle in self.journals() for one in chronicle.environments]
        busy = [f"{one.id} is {one.state}" for one in environments if one.state != EnvState.READY]
        missing = AGENTS * ENVIRONMENTS - len(environments)
        return [*busy, f"{missing} environments are in no journal"] if missing else busy

    def journals(self) -> list[Chronicle]:
        """Of all agents."""
        return [
            read_journal(self._folder / f"host-{number}" / JOURNAL_NAME) for number in range(AGENTS)
        ]

    def requests(self) -> list[Request]:
        """All that have ended."""
        return [request for client in self.clients for request in client.done]


def _describe(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return f"{pid}"
    return f"{pid} ({b' '.join(words).decode(errors='replace').strip()})"
