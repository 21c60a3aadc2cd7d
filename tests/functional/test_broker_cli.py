"""The command testenv-broker, as a shell or a supervisor sees it."""

import asyncio
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from broker import admin
from broker.client import Outcome, submit
from broker.endpoint import Endpoint, parse_endpoint
from broker.link import Link
from broker.links import Links, OneLink
from broker.protocol import Kind
from broker.wire import PacketReader, request
from broker.worker import Worker, serve
from tests.functional.wire_peers import BOUND_S

PROGRAM = str(Path(sys.executable).with_name("testenv-broker"))


@contextmanager
def started(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], Endpoint]]:
    """The running command and where it says that it listens."""
    with subprocess.Popen(
        [PROGRAM, "run", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stderr
            # With --debug it is not the first line.
            lines = iter(process.stderr.readline, "")
            ready = next(line for line in lines if line.startswith("listening on "))
            yield process, parse_endpoint(ready.removeprefix("listening on "), "ready line")
        finally:
            process.kill()


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PROGRAM, *arguments], capture_output=True, text=True, timeout=BOUND_S, check=False
    )


async def test_port_0_picks_a_port_that_serves() -> None:
    with started("--listen", "127.0.0.1:0") as (_, endpoint):
        assert endpoint.port
        assert await admin.status(endpoint) == []


@pytest.mark.parametrize(
    ("signals", "options"),
    [
        ([signal.SIGINT], []),
        ([signal.SIGTERM, signal.SIGTERM], []),
        ([signal.SIGTERM], ["--drain-timeout", "0"]),
    ],
    ids=["SIGINT", "second SIGTERM", "drain of no time"],
)
async def test_signal_ends_it_cleanly_under_connections(
    signals: list[signal.Signals], options: list[str]
) -> None:
    with started("--listen", "127.0.0.1:0", *options) as (process, endpoint):
        async with (
            await Link.open(endpoint, client_id="client") as here,
            await Link.open(endpoint, client_id="worker") as there,
        ):
            job = await submit(here, "f", b"")
            async with asyncio.timeout(BOUND_S):
                assert await Worker(OneLink(there), ["f"]).take()
            for number in signals[:-1]:
                process.send_signal(number)
                # Two of a kind that are pending are one: wait until the first is noticed.
                assert process.stderr
                assert "draining" in await asyncio.to_thread(process.stderr.readline)
            process.send_signal(signals[-1])
            out, _ = await asyncio.to_thread(process.communicate, timeout=BOUND_S)
            async with asyncio.timeout(BOUND_S):
                await here.lost()
        assert (process.returncode, out) == (0, "")
        assert job.is_over


async def test_client_that_breaks_the_protocol_costs_nobody_else() -> None:
    with started("--listen", "127.0.0.1:0") as (_, endpoint):
        async with await Link.open(endpoint, client_id="client") as here:
            for nonsense in (b"\0BAD", b"\xff" * 100, b"bogus command\n", b"\0REQ\0\0\0\x07"):
                with socket.create_connection((endpoint.host, endpoint.port)) as rude:
                    rude.sendall(nonsense)
            async with asyncio.timeout(BOUND_S):
                worker = Worker(OneLink(here), ["f"])
                job = await submit(here, "f", b"")
                assignment = await worker.take()
                assert assignment
                assignment.complete()
                assert (await job.result()).outcome is Outcome.COMPLETE


async def test_hundreds_of_connections_at_once_are_all_answered() -> None:
    """gear's own backlog of 1 leaves many of them waiting for seconds, or for ever."""
    with started("--listen", "127.0.0.1:0") as (_, endpoint):
        links = await asyncio.gather(
            *(Link.open(endpoint, client_id=f"c{i}", timeout=BOUND_S) for i in range(400))
        )
        assert not any(link.is_lost for link in links)
        for link in links:
            link.abort("enough")


async def test_plain_client_does_not_wait_for_delayed_acks() -> None:
    """With Nagle's algorithm on, the second of two packets waits 44 ms for the first's ACK."""

    async def answer(_: bytes) -> bytes:
        return b""

    async def job(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> float:
        started = time.perf_counter()
        writer.write(request(Kind.SUBMIT_JOB, b"f", b"", b""))
        replies = PacketReader()
        while True:
            kinds = [packet.kind for packet in replies.feed(await reader.read(4096))]
            if Kind.WORK_COMPLETE in kinds:
                return time.perf_counter() - started

    with started("--listen", "127.0.0.1:0") as (_, endpoint):
        async with Links([endpoint], "worker") as links, asyncio.timeout(BOUND_S):
            serving = asyncio.create_task(serve(links, "f", answer))
            reader, writer = await asyncio.open_connection(endpoint.host, endpoint.port)
            seconds = [await job(reader, writer) for _ in range(60)]
            writer.transport.abort()
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)
    # The kernel acknowledges the first few at once in any case.
    assert statistics.median(seconds[30:]) < 0.02


def test_port_in_use_is_one_line_and_exit_1() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = run("run", "--listen", address)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"testenv-broker: cannot listen on {address}: Address already in use; "
        "choose another address with --listen\n"
    )


@pytest.mark.parametrize("address", ["203.0.113.1:4730", "nowhere.invalid:4730"])
def test_foreign_address_is_one_line_and_exit_1(address: str) -> None:
    done = run("run", "--listen", address)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert address in done.stderr


@pytest.mark.parametrize("address", ["127.0.0.1:x", "", "::1", "127.0.0.1:70000"])
def test_bad_address_is_one_line_and_exit_2(address: str) -> None:
    done = run("run", "--listen", address)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert "--listen" in done.stderr


def test_help_has_an_example() -> None:
    assert "testenv-broker run" in run("run", "--help").stdout
    assert "run" in run("--help").stdout


def test_debug_logs_packets_to_stderr_only() -> None:
    with started("-d", "--listen", "127.0.0.1:0") as (process, endpoint):
        with socket.create_connection((endpoint.host, endpoint.port)) as client:
            client.sendall(b"status\n")
            client.recv(100)
        process.terminate()
        out, err = process.communicate(timeout=BOUND_S)
    assert out == ""
    assert "says b'status'" in err
