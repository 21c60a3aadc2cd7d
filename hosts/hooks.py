"""An admin's own commands, run before an environment is offered and after its leases."""

import asyncio
import contextlib
import logging
import os
import signal
import tempfile
from asyncio.subprocess import DEVNULL
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from schemas.errors import HookError

log = logging.getLogger(__name__)

TAIL_BYTES = 2000
"""So much of a hook's output goes into the log; its last line is the reason why it failed."""
_DEATH_S = 0.5
"""How long a killed hook gets to be seen dead, and its output to be read to the end."""


@dataclass(frozen=True)
class Hooks:
    """Commands as lists of words, run without a shell; an empty one is none.

    Each runs as the agent does, in a process group of its own, of which nothing is left when the
    command ends or `timeout_s` is over. What it is told is in its environment: TE_ENV (the id),
    TE_DATAFILE (the environment's data file, without any lease or secret), TE_LEASE (after_lease
    only, the id).
    """

    before_offer: tuple[str, ...] = ()
    after_lease: tuple[str, ...] = ()
    timeout_s: float = 60.0

    async def run_before_offer(self, env_id: str, data: bytes) -> None:
        """Raises HookError."""
        await self._run("before_offer", self.before_offer, data, {"TE_ENV": env_id})

    async def run_after_lease(self, env_id: str, data: bytes, lease: str) -> None:
        """Raises HookError."""
        told = {"TE_ENV": env_id, "TE_LEASE": lease}
        await self._run("after_lease", self.after_lease, data, told)

    async def _run(
        self, name: str, argv: Sequence[str], data: bytes, told: Mapping[str, str]
    ) -> None:
        if not argv:
            return
        try:
            with _data_file(data) as path:
                said = await _output(argv, {**told, "TE_DATAFILE": str(path)}, self.timeout_s)
        except OSError as exc:
            raise HookError(name, argv[0], f"cannot be run: {exc.strerror}") from exc
        for line in said.lines:
            log.info("%s: %s: %s", told["TE_ENV"], name, line)
        if said.status != 0:
            raise HookError(name, argv[0], said.why(self.timeout_s))


@dataclass(frozen=True)
class _Said:
    """How a hook ended, and its last lines; without `status` its time was over."""

    status: int | None
    lines: tuple[str, ...]

    def why(self, timeout_s: float) -> str:
        if self.status is None:
            ended = f"was not done within {timeout_s:g} s"
        elif self.status < 0:
            ended = f"ended by signal {-self.status}"
        else:
            ended = f"exit status {self.status}"
        return ": ".join((ended, *self.lines[-1:]))


@contextlib.contextmanager
def _data_file(data: bytes) -> Iterator[Path]:
    """A private file that goes with the hook."""
    with tempfile.NamedTemporaryFile(prefix="testenv-hook-", suffix=".json") as file:
        file.write(data)
        file.flush()
        yield Path(file.name)


async def _output(argv: Sequence[str], told: Mapping[str, str], timeout_s: float) -> _Said:
    """Run `argv` to its end, or to that of its time. Raises OSError."""
    async with _tail() as (end, tail):
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=DEVNULL,
            stdout=end,
            stderr=end,
            start_new_session=True,
            env=os.environ | told,
        )
        status = None
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    status = await process.wait()
        finally:
            # Also what it has left behind, which may hold a disk, or a bridge.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await asyncio.wait([asyncio.ensure_future(process.wait())], timeout=_DEATH_S)
    lines = tail.decode(errors="replace").splitlines()
    return _Said(status, tuple(line.strip() for line in lines if line.strip()))


@contextlib.asynccontextmanager
async def _tail() -> AsyncIterator[tuple[int, bytearray]]:
    """A descriptor to write to, and the last TAIL_BYTES of what is written, complete at the end.

    A pipe of our own: asyncio would wait for whoever has inherited its one, not for the process.
    """
    tail = bytearray()
    reading, writing = os.pipe()
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(
        partial(asyncio.StreamReaderProtocol, reader), os.fdopen(reading, "rb", buffering=0)
    )
    keeping = asyncio.ensure_future(_keep_tail(reader, tail))
    try:
        yield writing, tail
    finally:
        os.close(writing)
        await asyncio.wait([keeping], timeout=_DEATH_S)
        keeping.cancel()
        transport.close()


async def _keep_tail(reader: asyncio.StreamReader, tail: bytearray) -> None:
    while chunk := await reader.read(TAIL_BYTES):
        tail += chunk
        del tail[:-TAIL_BYTES]
