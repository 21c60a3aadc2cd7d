"""Our client with v1's worker, which knows nothing of what is new."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from broker.endpoint import Endpoint
from tests.functional.brokers import RunningBroker
from tests.functional.client_rig import BOUND_S, PEERS, client, run_client, shell


class V1Worker:
    """The script's process; its lines tell what it does."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def says(self, text: str) -> None:
        """Wait until it says so."""
        assert self._process.stdout
        async with asyncio.timeout(BOUND_S):
            while text not in (line := (await self._process.stdout.readline()).decode()):
                assert line, f"v1_worker ended before it said {text!r}"


@asynccontextmanager
async def v1_worker(
    broker: Endpoint, folder: Path, *options: str, number: int = 1
) -> AsyncIterator[V1Worker]:
    """An environment of toci's time, with the data file that its number is in."""
    datafile = folder / f"env-{number}.json"
    datafile.write_text(f'{{"env-num": "{number}", "seed-ip": "host"}}\n')
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(PEERS / "v1_worker.py"),
        *("-b", str(broker), "-n", str(number), "--pause", "0", *options, str(datafile)),
        stdout=asyncio.subprocess.PIPE,
    )
    worker = V1Worker(process)
    try:
        await worker.says("ready")
        yield worker
    finally:
        process.kill()
        await process.wait()


async def test_v1_worker_serves_our_client(broker: RunningBroker, tmp_path: Path) -> None:
    async with v1_worker(broker.endpoint, tmp_path) as worker:
        status, job = await run_client(*shell('cat "$TE_DATAFILE"; exit 7'), broker=broker.endpoint)
        assert status == 7, job.err
        assert job.out == (tmp_path / "env-1.json").read_text()
        await worker.says("released: completed")


async def test_v1_workers_error_text_is_no_data_file(broker: RunningBroker, tmp_path: Path) -> None:
    options = ("--answer", "Couldn't retrieve env")
    async with v1_worker(broker.endpoint, tmp_path, *options) as worker:
        status, job = await run_client(*shell("true"), broker=broker.endpoint)
        assert status == 70
        assert "Couldn't retrieve env" in job.err
        await worker.says("released: declined")


async def test_v1_worker_that_gives_up_ends_the_command(
    broker: RunningBroker, tmp_path: Path
) -> None:
    async with v1_worker(broker.endpoint, tmp_path, "--hold-for", "0.2"):
        status, job = await run_client(*shell("sleep 300"), broker=broker.endpoint)
        assert status == 70
        assert "lease lost" in job.err


async def test_twenty_clients_share_two_environments_and_never_meet_in_one(
    broker: RunningBroker, tmp_path: Path
) -> None:
    script = (
        'n=$(tr -dc 0-9 < "$TE_DATAFILE"); echo "env $n"; '
        f'exec flock --nonblock --conflict-exit-code 99 {tmp_path}/lock-"$n" sleep 0.05'
    )
    async with (
        v1_worker(broker.endpoint, tmp_path, number=1),
        v1_worker(broker.endpoint, tmp_path, number=2),
    ):
        results = await asyncio.gather(
            *(
                run_client("-n", f"job-{n}", *shell(script), broker=broker.endpoint)
                for n in range(20)
            )
        )
    assert [(status, job.err) for status, job in results if status] == []
    assert {job.out for _, job in results} == {"env 1\n", "env 2\n"}


async def test_v1_client_gets_what_ours_gets(broker: RunningBroker, tmp_path: Path) -> None:
    script = 'cat "$TE_DATAFILE"; exit 7'
    async with v1_worker(broker.endpoint, tmp_path) as worker:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(PEERS / "v1_client.py"),
            *("-b", str(broker.endpoint), *shell(script)),
            stdout=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(BOUND_S):
            out, _ = await process.communicate()
        assert process.returncode == 7
        assert out.decode() == (tmp_path / "env-1.json").read_text()
        await worker.says("released: completed")


async def test_client_that_is_killed_while_it_waits_leaves_its_place_to_others(
    broker: RunningBroker, tmp_path: Path
) -> None:
    async with client("-n", "dead", *shell("exit 1"), broker=broker.endpoint) as dead:
        await dead.hears("waiting for lockenv", "err")
    async with v1_worker(broker.endpoint, tmp_path):
        status, _ = await run_client(*shell("exit 7"), broker=broker.endpoint)
        assert status == 7
