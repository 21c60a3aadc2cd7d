"""What the client's tests stand on: a stub of an agent, and testenv-client as a real process."""

import asyncio
import json
import os
import re
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from broker.client import JobResult, SubmittedJob, submit
from broker.endpoint import Endpoint
from broker.link import Link
from broker.links import OneLink
from broker.worker import Assignment, Worker
from schemas.lock import LockRequest
from tests.functional.brokers import OURS

BOUND_S = 15.0
"""No wait of a test is longer; what is awaited takes milliseconds."""

CLIENT = str(Path(sys.executable).with_name("testenv-client"))
PEERS = Path(__file__).with_name("peers")

on_one_broker = pytest.mark.parametrize("broker", [OURS], ids=str, indirect=True)
"""For what a broker has no part in, and takes seconds."""

DATA: dict[str, Any] = {
    "seed-ip": "192.0.2.7",
    "nodes": [],
    "testenv": {"lease": {"id": "lease-1", "environment": "te1/3"}},
}
OFFER = json.dumps(DATA).encode()


class Grant:
    """A lock request that the stub has taken, and its callback."""

    def __init__(self, lock: Assignment, callback: SubmittedJob) -> None:
        self.lock = lock
        self.callback = callback

    async def returned(self) -> JobResult:
        """Wait until the client has answered the callback, and end the lock then."""
        async with asyncio.timeout(BOUND_S):
            result = await self.callback.result()
        self.lock.complete()
        return result


class StubAgent:
    """One environment's worker, one step at a time, so that a test decides what happens."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self._worker = Worker(OneLink(link), ["lockenv"])

    async def asked(self) -> Assignment:
        """Be registered until a lock request comes."""
        async with asyncio.timeout(BOUND_S):
            lock = await self._worker.take()
        assert lock is not None
        return lock

    async def call(self, lock: Assignment, data: bytes) -> SubmittedJob:
        """Submit the callback that a request names."""
        request = LockRequest.parse(lock.arguments)
        return await submit(self.link, request.callback, data, unique=os.urandom(8).hex())

    async def grant(self, data: bytes = OFFER) -> Grant:
        """Give the environment to the next who asks."""
        lock = await self.asked()
        return Grant(lock, await self.call(lock, data))


@asynccontextmanager
async def stub_agent(broker: Endpoint) -> AsyncIterator[StubAgent]:
    """A stub on a connection of its own."""
    async with await Link.open(broker, client_id="stub") as link:
        yield StubAgent(link)


class Client:
    """A testenv-client that runs. Its output is collected, and can be waited for."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.out = ""
        self.err = ""
        self._heard = asyncio.Condition()
        self._readers = (
            asyncio.create_task(self._read(process.stdout, "out")),
            asyncio.create_task(self._read(process.stderr, "err")),
        )

    async def _read(self, stream: asyncio.StreamReader | None, name: str) -> None:
        assert stream is not None
        while chunk := await stream.read(65536):
            setattr(self, name, getattr(self, name) + chunk.decode())
            async with self._heard:
                self._heard.notify_all()

    async def hears(self, pattern: str, stream: str = "out") -> re.Match[str]:
        """Wait until what it has written on `stream` matches."""
        async with asyncio.timeout(BOUND_S), self._heard:
            while not (match := re.search(pattern, getattr(self, stream), re.MULTILINE)):
                await self._heard.wait()
        return match

    async def exits(self) -> int:
        """Wait for its end, and for the end of its output: nobody holds that open any more."""
        async with asyncio.timeout(BOUND_S):
            await asyncio.gather(*self._readers)
            return await self.process.wait()

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    @property
    def guard(self) -> int:
        """The pid of its guard."""
        return children_of(self.process.pid)[0]


@asynccontextmanager
async def client(
    *arguments: str | Path, broker: Endpoint | None = None, env: dict[str, str] | None = None
) -> AsyncIterator[Client]:
    """A testenv-client, killed at the end if it still runs."""
    place = ["-b", str(broker)] if broker else []
    async with client_by((CLIENT, *place, *map(str, arguments)), env) as running:
        yield running


@asynccontextmanager
async def client_by(
    program: Sequence[str | Path], env: dict[str, str] | None = None
) -> AsyncIterator[Client]:
    """The same by its whole command line, which may be a shell's that becomes the client."""
    # A client that is killed together with its guard leaves its workspace behind.
    with tempfile.TemporaryDirectory(prefix="testenv-client-") as folder:
        process = await asyncio.create_subprocess_exec(
            *program,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "TESTENV_BROKER": "", "TMPDIR": folder, **(env or {})},
        )
        running = Client(process)
        try:
            yield running
        finally:
            if process.returncode is None:
                running.signal(signal.SIGKILL)
                await running.exits()


async def run_client(
    *arguments: str | Path, broker: Endpoint | None = None, env: dict[str, str] | None = None
) -> tuple[int, Client]:
    """One that nobody answers, from start to end: its status, and what it said."""
    async with client(*arguments, broker=broker, env=env) as running:
        return await running.exits(), running


def shell(script: str) -> tuple[str, ...]:
    """The command line's end that runs a script."""
    return ("--", "sh", "-c", script)


def children_of(pid: int) -> list[int]:
    """Direct children, now."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_alive(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def names_in(folder: Path) -> list[str]:
    """What is in a folder."""
    return sorted(path.name for path in folder.iterdir())


def exists(path: Path) -> bool:
    """Whether there is such a file or folder."""
    return path.exists()


def process_name(pid: int) -> str:
    """As ps(1) shows it."""
    return Path(f"/proc/{pid}/comm").read_text().strip()


async def eventually(truth: Callable[[], object]) -> None:
    """Wait for something that sends no event."""
    async with asyncio.timeout(BOUND_S):
        while not truth():
            await asyncio.sleep(0.005)
