"""An operator's own program: what it says, line by line, its end, or how it is ended."""

import asyncio
import os
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress

from schemas.errors import HostError

GRACE_S = 10.0
"""From SIGTERM to SIGKILL."""

_REST_S = 1.0
"""A program that has ended may have left another behind, which holds its output open."""

_CHUNK = 64 * 1024
_LONGEST = 4096
"""Bytes of a line; what is longer becomes several."""


async def run_tool(argv: Sequence[str], hear: Callable[[str], None]) -> int:
    """Run it to its end: its exit status, or -n where signal n has ended it.

    It has no input, and no terminal; `hear` is told each line of its output. Cancelled, this sends
    SIGTERM to it and its children, and SIGKILL if it has not ended GRACE_S later. Raises HostError
    if it can't be started.
    """
    reading, writing = os.pipe()
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=writing,
            stderr=writing,
            # Ctrl-C is for us: we tell it to end, and wait for that.
            start_new_session=True,
        )
    except OSError as exc:
        os.close(reading)
        raise HostError(f"{argv[0]} can't be started: {exc.strerror}") from exc
    finally:
        os.close(writing)
    listening = asyncio.create_task(_listen(reading, hear))
    try:
        status = await process.wait()
        await asyncio.wait([listening], timeout=_REST_S)
        return status
    finally:
        await _end(process)
        listening.cancel()
        await asyncio.wait([listening])


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    try:
        _signal(process, signal.SIGTERM)
        with suppress(TimeoutError):
            async with asyncio.timeout(GRACE_S):
                await process.wait()
    finally:
        _signal(process, signal.SIGKILL)
        with suppress(TimeoutError):
            async with asyncio.timeout(_REST_S):
                await process.wait()


def _signal(process: asyncio.subprocess.Process, number: int) -> None:
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)


async def _listen(reading: int, hear: Callable[[str], None]) -> None:
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(reading, "rb", buffering=0)
    )
    unfinished = b""
    try:
        while chunk := await reader.read(_CHUNK):
            *lines, unfinished = (unfinished + chunk).split(b"\n")
            for line in lines:
                hear(_shown(line))
            while len(unfinished) > _LONGEST:
                hear(_shown(unfinished[:_LONGEST]))
                unfinished = unfinished[_LONGEST:]
    finally:
        if unfinished:
            hear(_shown(unfinished))
        transport.close()


def _shown(line: bytes) -> str:
    """It must not steer a terminal. Of a line that was redrawn, the last state counts."""
    text = line.decode(errors="replace").rstrip("\r").rpartition("\r")[2]
    return "".join(char if char.isprintable() or char == "\t" else "?" for char in text)
