"""An admin's hooks, as real processes: told what they need, bounded, and gone when they end."""

import asyncio
import logging
import time
from pathlib import Path

import pytest

from hosts.hooks import Hooks
from hosts.quarantine import Rules
from hosts.vetting import Standards
from schemas.errors import HookError
from schemas.status import EnvState
from tests.functional.brokers import RunningBroker
from tests.functional.client_rig import on_one_broker
from tests.functional.slot_rig import Counting, client, journalled, living_slot, reaches

DATA = b'{"seed-ip": "203.0.113.10"}'
LONG_S = 60.0


def shell(script: str) -> tuple[str, ...]:
    return ("sh", "-c", script)


async def test_a_hook_is_told_its_environment_its_data_file_and_its_lease(tmp_path: Path) -> None:
    told = tmp_path / "told"
    say = f'printf "%s %s %s " $TE_ENV ${{TE_DATAFILE##*.}} ${{TE_LEASE-none}} >> {told};'
    hooks = Hooks(before_offer=shell(say), after_lease=shell(f"{say} cat $TE_DATAFILE >> {told}"))
    await hooks.run_before_offer("te1/1", DATA)
    await hooks.run_after_lease("te1/1", DATA, "1ea5e")
    assert told.read_text() == f"te1/1 json none te1/1 json 1ea5e {DATA.decode()}"


async def test_its_data_file_is_private_and_goes_with_it(tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    hooks = Hooks(before_offer=shell(f"stat -c '%a %n' $TE_DATAFILE > {seen}"))
    await hooks.run_before_offer("te1/1", DATA)
    mode, name = seen.read_text().split()
    assert mode == "600"
    assert not Path(name).exists()


async def test_no_hook_is_no_process() -> None:
    await Hooks().run_before_offer("te1/1", DATA)


async def test_a_failing_hook_is_told_by_its_status_and_its_last_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    hooks = Hooks(before_offer=shell("echo looking; echo no route to seed >&2; exit 3"))
    with caplog.at_level(logging.INFO), pytest.raises(HookError) as failed:
        await hooks.run_before_offer("te1/1", DATA)
    assert str(failed.value) == (
        "hook before_offer (sh): exit status 3: no route to seed; its output is in the agent's log"
    )
    assert "te1/1: before_offer: looking" in caplog.messages


async def test_a_hook_that_is_not_there_is_told_by_its_name() -> None:
    with pytest.raises(HookError, match=r"\(/no/such\): cannot be run: No such file"):
        await Hooks(before_offer=("/no/such",)).run_before_offer("te1/1", DATA)


async def test_a_hook_that_hangs_is_killed_with_its_children_in_time(tmp_path: Path) -> None:
    child = tmp_path / "child"
    script = f"trap '' TERM; sleep {LONG_S} & echo $! > {child}; echo waiting; wait"
    hooks = Hooks(before_offer=shell(script), timeout_s=0.5)
    began = time.monotonic()
    with pytest.raises(HookError, match=r"was not done within 0\.5 s: waiting"):
        await hooks.run_before_offer("te1/1", DATA)
    assert time.monotonic() - began < 5
    await ends(int(child.read_text()))


async def test_what_a_hook_leaves_behind_neither_delays_nor_outlives_it(tmp_path: Path) -> None:
    child = tmp_path / "child"
    hooks = Hooks(before_offer=shell(f"sleep {LONG_S} & echo $! > {child}"))
    began = time.monotonic()
    await hooks.run_before_offer("te1/1", DATA)
    assert time.monotonic() - began < 5
    await ends(int(child.read_text()))


async def test_a_hook_that_says_more_than_anybody_reads_is_not_held_up() -> None:
    script = "yes the log is long | head -c 3000000; echo at last; exit 1"
    with pytest.raises(HookError, match="exit status 1: at last"):
        await Hooks(before_offer=shell(script)).run_before_offer("te1/1", DATA)


async def test_a_hook_dies_with_the_agent(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    hooks = Hooks(before_offer=shell(f"echo $$ > {pid}; sleep {LONG_S}"))
    running = asyncio.create_task(hooks.run_before_offer("te1/1", DATA))
    async with asyncio.timeout(10):
        while not (pid.exists() and pid.read_text()):
            await asyncio.sleep(0.01)
    running.cancel()
    await asyncio.wait([running])
    await ends(int(pid.read_text()))


@on_one_broker
async def test_an_environment_to_which_before_offer_says_no_is_broken_until_it_says_yes(
    broker: RunningBroker, tmp_path: Path
) -> None:
    yes = tmp_path / "yes"
    hooks = Hooks(before_offer=shell(f"test -e {yes} || {{ echo no; exit 1; }}"))
    async with living_slot(broker, Counting(), standards=Standards(hooks)) as slot:
        await reaches(slot, EnvState.BROKEN)
        assert slot.report().reason.startswith("hook before_offer (sh): exit status 1: no;")
        yes.touch()
        await reaches(slot, EnvState.READY)
        assert slot.report().reason == ""


@on_one_broker
async def test_after_lease_runs_on_a_fenced_environment_and_its_failures_count(
    broker: RunningBroker, tmp_path: Path
) -> None:
    told = tmp_path / "told"
    hooks = Hooks(after_lease=shell(f"echo $TE_LEASE >> {told}; exit 1"))
    caretaker = Counting()
    standards = Standards(hooks, Rules(turnovers=2))
    async with (
        living_slot(broker, caretaker, standards=standards) as slot,
        client(broker) as holder,
    ):
        leases = []
        for state in (EnvState.READY, EnvState.QUARANTINED):
            await holder.request()
            offer = await holder.offer()
            leases.append(slot.lease.id if slot.lease else "")
            offer.complete()
            await reaches(slot, state)
        why = "hook after_lease (sh): exit status 1; its output is in the agent's log"
        assert slot.report().reason == (
            f"2 failures to make it ready, without a good turnover in between: {why}"
        )
        for lease in leases:
            await journalled(slot, event="after_lease failed", lease=lease, reason=why)
    assert caretaker.turnovers == 2
    assert told.read_text().split() == leases


async def ends(pid: int) -> None:
    """It is dead soon; whoever has adopted it may not have waited for it yet."""
    stat = Path(f"/proc/{pid}/stat")
    async with asyncio.timeout(5):
        while stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z":
            await asyncio.sleep(0.01)
