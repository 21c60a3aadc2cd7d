"""Clients that ask for an environment again and again, and note what became of it."""

import asyncio
import os
import random
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from broker.endpoint import Endpoint
from testenv.guard import boottime
from tests.chaos import command
from tests.chaos.faults import Fault
from tests.chaos.processes import Brood

REQUEST_S = 150.0
"""A request that takes longer hangs."""

_CLIENT = str(Path(sys.executable).with_name("testenv-client"))
_KILL_AFTER_S = 0.5
_OVERLONG_S = 60.0
_PAUSE_S = 0.3


@dataclass
class Request:
    """One testenv-client, from its start to its end."""

    id: str
    manner: str
    seconds: float
    status: int
    timeout_s: int
    log: Path
    started: float = field(default_factory=boottime)
    ended: float = 0.0
    exited: int | None = None
    killed: float | None = None
    """When its client was killed, in boottime's seconds."""
    killed_at: float | None = None
    """The same, in the wall clock's."""
    faults: list[Fault] = field(default_factory=list)
    hung: bool = False


class Requests:
    """What client `number` asks for, one after the other: the seed decides."""

    def __init__(self, seed: str, number: int, logs: Path) -> None:
        self._dice = random.Random(f"client {number} {seed}")  # noqa: S311 - reproducible
        self._number = number
        self._logs = logs
        self._count = 0

    def next(self) -> Request:
        """The next."""
        self._count += 1
        dice = self._dice
        name = f"chaos-{self._number}-{self._count}"
        manner = dice.choices(("plain", "family", "stubborn", "overlong"), (5, 3, 2, 1))[0]
        overlong = manner == "overlong"
        seconds = _OVERLONG_S if overlong else dice.choice((0.05, 0.3, 1.0, 2.0, 4.0, 9.0))
        return Request(
            name,
            manner,
            seconds,
            status=dice.randrange(20),
            timeout_s=dice.randrange(1, 5) if overlong else 60,
            log=self._logs / f"{name}.err",
        )


class Client:
    """One after the other, until told that it is over."""

    def __init__(
        self, brood: Brood, requests: Requests, brokers: Sequence[Endpoint], folder: Path
    ) -> None:
        self.done: list[Request] = []
        self._brood = brood
        self._requests = requests
        self._brokers = ",".join(map(str, brokers))
        self._folder = folder
        self._request: Request | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._stopped: list[int] = []

    async def live(self, over: asyncio.Event) -> None:
        """Until `over`, and the last request's end."""
        while not over.is_set():
            request = self._requests.next()
            await self._ask(request)
            self.done.append(request)
            with suppress(TimeoutError):
                async with asyncio.timeout(_PAUSE_S):
                    await over.wait()

    async def _ask(self, request: Request) -> None:
        with request.log.open("wb") as log:
            process = await self._brood.start(
                *_argv(request, self._brokers, self._folder),
                log=log.fileno(),
                env={**os.environ, "TMPDIR": str(self._folder)},
            )
        self._request, self._process = request, process
        try:
            async with asyncio.timeout(REQUEST_S):
                await process.wait()
        except TimeoutError:
            request.hung = True
        finally:
            self._request = self._process = None
            self.resume()
            if process.returncode is None:
                process.kill()
                await process.wait()
            self._brood.ended(process)
        request.ended = boottime()
        request.exited = process.returncode

    def strike(self, fault: Fault) -> Request | None:
        """Do it to the client that runs now; None if there is none, or no guard."""
        request, process = self._request, self._process
        if request is None or process is None:
            return None
        pids = _victims(fault, process.pid)
        if None in pids:
            return None
        stops = fault in (Fault.STOP_CLIENT, Fault.STOP_GUARD)
        for pid in filter(None, pids):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP if stops else signal.SIGKILL)
            if stops:
                self._stopped.append(pid)
        request.faults.append(fault)
        if fault in (Fault.KILL_CLIENT, Fault.KILL_BOTH):
            request.killed, request.killed_at = boottime(), time.time()
        return request

    def resume(self) -> None:
        """SIGCONT to what was stopped."""
        for pid in self._stopped:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        self._stopped.clear()


def _argv(request: Request, brokers: str, folder: Path) -> Sequence[str]:
    options = ("-b", brokers, "-n", request.id, "-t", str(request.timeout_s))
    patience = ("--kill-after", str(_KILL_AFTER_S), "--connect-timeout", str(REQUEST_S))
    work = (str(request.seconds), str(request.status), request.manner)
    python = (sys.executable, "-I", "-S", command.__file__, str(folder), request.id)
    return (_CLIENT, *options, *patience, "--", *python, *work)


def _victims(fault: Fault, client: int) -> Sequence[int | None]:
    match fault:
        case Fault.KILL_CLIENT | Fault.STOP_CLIENT:
            return (client,)
        case Fault.KILL_BOTH:
            return (client, _guard_of(client))
    return (_guard_of(client),)


def _guard_of(client: int) -> int | None:
    """Its guard's pid, if it has one now."""
    with suppress(OSError):
        children = Path(f"/proc/{client}/task/{client}/children").read_text().split()
        for pid in children:
            if Path(f"/proc/{pid}/comm").read_text().strip() == "testenv-guard":
                return int(pid)
    return None
