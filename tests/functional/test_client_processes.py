"""Signals, and the death of anyone: no process of a command outlives its lease."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from broker.client import Outcome
from schemas.exits import ExitStatus
from tests.functional.brokers import RunningBroker
from tests.functional.client_rig import (
    CLIENT,
    Client,
    children_of,
    client,
    client_by,
    eventually,
    exists,
    is_alive,
    on_one_broker,
    process_name,
    shell,
    stub_agent,
)

PYTHON = sys.executable

LIFELINE_S = 0.5
"""More than telling the lifeline takes on a busy machine."""

FAMILY = (
    "setsid sh -c 'echo fled $$; exec sleep 300' & "
    "sh -c 'echo child $$; setsid sleep 300 & exec sleep 300' & "
    "echo leader $$; "
)
"""A command with a child, one that has fled to another session, and a grandchild that has."""


async def family(job: Client) -> tuple[int, ...]:
    """The pids of FAMILY, and of the sleeping grandchild."""
    named = [int((await job.hears(rf"^{who} (\d+)$"))[1]) for who in ("leader", "fled", "child")]
    await eventually(lambda: children_of(named[2]))
    return (*named, *children_of(named[2]))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
async def test_signal_reaches_the_command_which_cleans_up_under_the_lock(
    broker: RunningBroker, number: signal.Signals, tmp_path: Path
) -> None:
    cleaned = tmp_path / "cleaned"
    name = number.name.removeprefix("SIG")
    script = (
        f"trap 'sleep 0.2; touch {cleaned}; exit 3' {name}; echo up; while :; do sleep 0.02; done"
    )
    async with (
        stub_agent(broker.endpoint) as agent,
        client(*shell(script), broker=broker.endpoint) as job,
    ):
        grant = await agent.grant()
        await job.hears("up")
        job.signal(number)
        result = await grant.callback.result()
        assert exists(cleaned)
        assert result.outcome is Outcome.COMPLETE
        grant.lock.complete()
        assert await job.exits() == 3, job.err


async def test_command_that_ignores_signals_keeps_its_lock(
    broker: RunningBroker, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    script = f"trap '' INT TERM; echo up; while ! [ -e {go} ]; do sleep 0.02; done; exit 4"
    async with (
        stub_agent(broker.endpoint) as agent,
        client(*shell(script), broker=broker.endpoint) as job,
    ):
        grant = await agent.grant()
        await job.hears("up")
        for _ in range(3):
            job.signal(signal.SIGINT)
            job.signal(signal.SIGTERM)
        go.touch()
        assert (await grant.returned()).outcome is Outcome.COMPLETE
        assert await job.exits() == 4, job.err


async def test_what_a_command_leaves_behind_is_dead_before_the_environment_is_returned(
    broker: RunningBroker, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    script = FAMILY + f"while ! [ -e {go} ]; do sleep 0.01; done; exit 3"
    async with (
        stub_agent(broker.endpoint) as agent,
        client(*shell(script), broker=broker.endpoint) as job,
    ):
        grant = await agent.grant()
        pids = await family(job)
        go.touch()
        done = time.monotonic()
        assert (await grant.callback.result()).outcome is Outcome.COMPLETE
        assert not any(map(is_alive, pids))
        assert time.monotonic() - done < 3
        grant.lock.complete()
        assert await job.exits() == 3, job.err


async def test_agent_hears_of_a_killed_client_only_when_its_command_is_dead(
    broker: RunningBroker,
) -> None:
    """The guard holds the connection: else the next command could start beside the old one."""
    stubborn = f"trap '' TERM; {FAMILY} while :; do sleep 0.1; done"
    async with (
        stub_agent(broker.endpoint) as agent,
        client(*shell(stubborn), broker=broker.endpoint) as job,
    ):
        grant = await agent.grant()
        pids = await family(job)
        job.signal(signal.SIGKILL)
        async with asyncio.timeout(10):
            while (await grant.callback.status()).running and not grant.callback.is_over:
                await asyncio.sleep(0)
        alive = [pid for pid in pids if is_alive(pid)]
        assert await job.exits() == -signal.SIGKILL, job.err
        assert not alive


async def test_guard_gives_the_environment_back_for_a_killed_client(
    broker: RunningBroker,
) -> None:
    """A bare end of the connection could be a cut, with the command still alive."""
    async with (
        stub_agent(broker.endpoint) as agent,
        client(*shell("echo up; sleep 60"), broker=broker.endpoint) as job,
    ):
        grant = await agent.grant()
        await job.hears("up")
        job.signal(signal.SIGKILL)
        assert (await grant.returned()).outcome is Outcome.COMPLETE
        assert await job.exits() == -signal.SIGKILL, job.err


async def test_stopped_client_s_command_ends_at_the_timeout_all_the_same(
    broker: RunningBroker,
) -> None:
    async with (
        stub_agent(broker.endpoint) as agent,
        client("-t", "1", *shell("echo pid $$; sleep 60"), broker=broker.endpoint) as job,
    ):
        await agent.grant()
        pid = int((await job.hears(r"pid (\d+)"))[1])
        job.signal(signal.SIGSTOP)
        await eventually(lambda: not is_alive(pid))
        job.signal(signal.SIGCONT)
        assert await job.exits() in (124, 128 + signal.SIGTERM), job.err


async def test_command_does_not_inherit_the_broker_connection(broker: RunningBroker) -> None:
    """With it the command could speak for the client, or keep the connection open."""
    script = "ls -l /proc/self/fd | grep -c socket:"
    async with (
        stub_agent(broker.endpoint) as agent,
        client(*shell(script), broker=broker.endpoint) as job,
    ):
        await (await agent.grant()).returned()
        await job.exits()
        assert job.out == "0\n"


async def test_stubborn_leftovers_are_killed_after_kill_after(broker: RunningBroker) -> None:
    stubborn = "trap '' TERM; echo stubborn \\$\\$; while :; do sleep 0.1; done"
    script = f'setsid sh -c "{stubborn}" & sleep 0.2; exit 3'
    async with (
        stub_agent(broker.endpoint) as agent,
        client("--kill-after", "0.3", *shell(script), broker=broker.endpoint) as job,
    ):
        grant = await agent.grant()
        pid = int((await job.hears(r"stubborn (\d+)"))[1])
        await grant.callback.result()
        assert not is_alive(pid)
        grant.lock.complete()
        assert await job.exits() == 3, job.err


async def test_killed_client_takes_its_command_and_all_descendants_with_it(
    broker: RunningBroker,
) -> None:
    async with (
        stub_agent(broker.endpoint) as agent,
        client(*shell('echo "dir $TE_DATADIR"; ' + FAMILY + "wait"), broker=broker.endpoint) as job,
    ):
        await agent.grant()
        pids = await family(job)
        directory = Path((await job.hears("dir (.+)"))[1])
        guard = job.guard
        assert exists(directory)
        job.signal(signal.SIGKILL)
        assert await job.exits() == -signal.SIGKILL, job.err
        await eventually(lambda: not is_alive(guard))
        assert not any(map(is_alive, pids))
        assert not exists(directory)


async def test_killed_guard_takes_everything_with_it_and_the_client_says_so(
    broker: RunningBroker,
) -> None:
    async with (
        stub_agent(broker.endpoint) as agent,
        client(*shell(FAMILY + "wait"), broker=broker.endpoint) as job,
    ):
        grant = await agent.grant()
        pids = await family(job)
        os.kill(job.guard, signal.SIGKILL)
        assert (await grant.callback.result()).outcome is Outcome.COMPLETE
        assert not any(map(is_alive, pids))
        grant.lock.complete()
        assert await job.exits() == 125, job.err
    assert "guard died" in job.err


async def test_client_whose_guard_is_killed_while_it_waits_takes_no_environment(
    broker: RunningBroker,
) -> None:
    async with client(*shell("true"), broker=broker.endpoint) as job:
        await job.hears("waiting for lockenv", "err")
        os.kill(job.guard, signal.SIGKILL)
        assert await job.exits() == 125, job.err
    assert "guard died" in job.err


async def test_client_and_guard_killed_together_take_the_command_with_them(
    broker: RunningBroker,
) -> None:
    async with (
        stub_agent(broker.endpoint) as agent,
        client(*shell("echo leader $$; sleep 300"), broker=broker.endpoint) as job,
    ):
        await agent.grant()
        command = int((await job.hears(r"leader (\d+)"))[1])
        # The lifeline hears of a command just after its start, not before.
        await asyncio.sleep(LIFELINE_S)
        job.signal(signal.SIGSTOP)
        os.kill(job.guard, signal.SIGKILL)
        job.signal(signal.SIGKILL)
        await job.exits()
        assert not is_alive(command)


@on_one_broker
async def test_hanging_guard_is_killed_when_the_lease_is_over(broker: RunningBroker) -> None:
    options = ("-t", "1", "--kill-after", "0.1")
    async with (
        stub_agent(broker.endpoint) as agent,
        client(*options, *shell("echo leader $$; sleep 300"), broker=broker.endpoint) as job,
    ):
        grant = await agent.grant()
        pid = int((await job.hears(r"leader (\d+)"))[1])
        os.kill(job.guard, signal.SIGSTOP)
        assert (await grant.callback.result()).outcome is Outcome.COMPLETE
        assert not is_alive(pid)
        grant.lock.complete()
        assert await job.exits() == 125, job.err


async def test_kill_of_the_clients_process_group_spares_no_descendant(
    broker: RunningBroker,
) -> None:
    async with (
        stub_agent(broker.endpoint) as agent,
        client(*shell(FAMILY + "wait"), broker=broker.endpoint) as job,
    ):
        await agent.grant()
        pids = await family(job)
        guard = job.guard
        assert os.getpgid(guard) != os.getpgid(job.process.pid)
        os.kill(job.process.pid, signal.SIGKILL)
        await eventually(lambda: not is_alive(guard))
        assert not any(map(is_alive, pids))


async def test_guard_shows_under_its_own_name(broker: RunningBroker) -> None:
    async with client(*shell("true"), broker=broker.endpoint) as job:
        await job.hears("waiting for lockenv", "err")
        await eventually(lambda: process_name(job.guard) == "testenv-guard")


async def test_killed_guard_s_client_spares_what_it_never_started(broker: RunningBroker) -> None:
    """A shell that becomes the client with `exec` leaves it its own children."""
    command = f"{CLIENT} -b {broker.endpoint} -- sh -c 'echo up; sleep 300'"
    program = f"sleep 300 >/dev/null 2>&1 & exec {command}"
    async with (
        stub_agent(broker.endpoint) as agent,
        client_by(("sh", "-c", program)) as job,
    ):
        await agent.grant()
        await job.hears("up")
        [stranger, guard] = [
            next(pid for pid in children_of(job.process.pid) if process_name(pid) == name)
            for name in ("sleep", "testenv-guard")
        ]
        try:
            os.kill(guard, signal.SIGKILL)
            assert await job.exits() == ExitStatus.INTERNAL
            assert is_alive(stranger)
        finally:
            os.kill(stranger, signal.SIGKILL)


def test_processes_that_can_t_be_found_are_not_said_to_be_dead(tmp_path: Path) -> None:
    """Without a /proc, as in a container that hides it."""
    if os.geteuid():
        if "CI" in os.environ:
            pytest.fail("CI must be able to hide /proc, which needs root")
        pytest.skip("hiding /proc needs root")
    script = tmp_path / "kill.py"
    script.write_text(
        "import os\n"
        "from testenv import reaper\n"
        "reaper.become_subreaper()\n"
        "pid = os.spawnvp(os.P_NOWAIT, 'sleep', ['sleep', '60'])\n"
        "print(reaper.kill_children())\n"
        "os.kill(pid, 9)\n"
    )
    hidden = ["unshare", "--mount", "sh", "-c", f"mount -t tmpfs none /proc && {PYTHON} {script}"]
    done = subprocess.run(hidden, check=True, timeout=30, capture_output=True, text=True)
    assert done.stdout == "1\n"
