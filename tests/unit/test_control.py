"""The agent's side of operators' commands."""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from hosts.admission import Admission, Bar, Shutdown
from hosts.control import Control
from hosts.holds import HoldLimits, Holds
from hosts.journal import Journal
from hosts.journal_rows import StoredLease
from hosts.slot import Slot
from schemas.control import MAX_ANSWER, Changes, History
from schemas.errors import HostError
from schemas.plan import Environment
from schemas.status import EnvState, HostReport, Lease

NOON = datetime(2026, 11, 26, 12, tzinfo=UTC)


class TwoEnvironments:
    """An agent's environments, before they live."""

    host = "te1"
    slots: tuple[Slot, ...] = ()

    def __init__(self, journal: Journal) -> None:
        self.holds = Holds(self.host, journal, HoldLimits())
        shutdown = Shutdown()
        self.admissions: Mapping[str, Admission] = {
            env_id: shutdown.admission() for env_id in ("te1/1", "te1/2")
        }

    def report(self) -> HostReport:
        return HostReport(host=self.host, version="1", pid=1, started=NOON)

    def add(self, env: Environment) -> None:
        raise AssertionError(f"nobody has planned {env.id}")

    def cordons(self) -> list[str | None]:
        return [each.reason(Bar.CORDON) for each in self.admissions.values()]


class Desk:
    """Control with a journal, asked as operators do."""

    def __init__(self, journal: Journal) -> None:
        self.agent = TwoEnvironments(journal)
        self.journal = journal
        self._control = Control(self.agent, journal)

    async def ask(self, op: str, **more: Any) -> bytes:
        return await self._control.answer(json.dumps({"op": op, **more}).encode())

    async def change(self, op: str, **more: Any) -> Changes:
        return Changes.model_validate_json(await self.ask(op, **more))

    async def history(self, **more: Any) -> History:
        return History.model_validate_json(await self.ask("history", **more))

    async def lease(self, number: int, *, runs: bool = False, holder: str = "ann") -> None:
        """One that was granted in minute `number`: odd ones in te1/2, even ones in te1/1."""
        env_id = f"te1/{1 + number % 2}"
        lease = Lease(
            id=f"{number:032x}",
            environment=env_id,
            generation=number,
            holder=holder,
            granted=NOON + timedelta(minutes=number),
            timeout_s=60,
        )
        await self.journal.grant(StoredLease(lease, f"job-{number}", "cb", 2, "5ec"))
        if not runs:
            await self.journal.end(lease.id, env_id, EnvState.READY, "completed", number)


@asynccontextmanager
async def desk_at(folder: Path) -> AsyncIterator[Desk]:
    path = folder / "journal.db"
    async with Journal.open(path, now=partial(datetime.now, UTC)) as journal:
        yield Desk(journal)


async def test_a_cordon_is_for_all_or_for_those_named_and_is_journalled(tmp_path: Path) -> None:
    async with desk_at(tmp_path) as desk:
        assert await desk.change("cordon", environments=["te1/2"], reason="disk") == Changes(
            changed=("te1/2",)
        )
        assert desk.agent.cordons() == [None, "disk"]
        assert await desk.change("cordon") == Changes(changed=("te1/1",), unchanged=("te1/2",))
        assert desk.agent.cordons() == ["", "disk"], "a reason is not lost to one without"
        assert [(await desk.journal.remembered(each)).cordoned for each in ("te1/1", "te1/2")] == [
            "",
            "disk",
        ]


async def test_another_reason_is_a_change(tmp_path: Path) -> None:
    async with desk_at(tmp_path) as desk:
        await desk.change("cordon", reason="disk")
        assert not (await desk.change("cordon", reason="disk")).changed
        assert (await desk.change("cordon", reason="fan")).changed == ("te1/1", "te1/2")
        assert desk.agent.cordons() == ["fan", "fan"]


async def test_an_uncordon_is_journalled_and_may_be_repeated(tmp_path: Path) -> None:
    async with desk_at(tmp_path) as desk:
        await desk.change("cordon")
        assert (await desk.change("uncordon")).changed == ("te1/1", "te1/2")
        assert (await desk.change("uncordon")).unchanged == ("te1/1", "te1/2")
        assert desk.agent.cordons() == [None, None]
        assert (await desk.journal.remembered("te1/1")).cordoned is None


async def test_an_unknown_environment_is_refused_and_nothing_is_done(tmp_path: Path) -> None:
    async with desk_at(tmp_path) as desk:
        with pytest.raises(HostError, match="te1 has no environment te1/7"):
            await desk.ask("cordon", environments=["te1/1", "te1/7"])
        assert desk.agent.cordons() == [None, None]


async def test_a_reason_is_one_short_line_whoever_sends_it(tmp_path: Path) -> None:
    async with desk_at(tmp_path) as desk:
        await desk.change("cordon", reason="a\nb" + 1000 * "c")
        [reason, _] = desk.agent.cordons()
        assert reason == "a?b" + 197 * "c"


async def test_what_others_have_made_is_not_rebuilt(tmp_path: Path) -> None:
    async with desk_at(tmp_path) as desk:
        with pytest.raises(HostError, match="te1 offers what others have made; rebuild it as"):
            await desk.ask("rebuild")


async def test_history_is_of_all_or_of_those_named_the_newest_last(tmp_path: Path) -> None:
    async with desk_at(tmp_path) as desk:
        for number in range(1, 6):
            await desk.lease(number, runs=number == 5)
        everything = await desk.history()
        assert [int(each.id, 16) for each in everything.leases] == [1, 2, 3, 4, 5]
        assert [each.exit_code for each in everything.leases] == [1, 2, 3, 4, None]
        assert everything.complete
        assert everything.leases[0].job == "job-1"
        assert everything.leases[-1].ended is None
        second = await desk.history(environments=["te1/2"])
        assert [int(each.id, 16) for each in second.leases] == [1, 3, 5]
        [one] = (await desk.history(lease=f"{3:032x}")).leases
        assert (one.environment, one.reason) == ("te1/2", "completed")
        assert not (await desk.history(lease="f")).leases


async def test_history_keeps_what_runs_and_the_newest_when_it_is_limited(tmp_path: Path) -> None:
    async with desk_at(tmp_path) as desk:
        await desk.lease(1, runs=True)
        for number in (2, 4, 6):
            await desk.lease(number)
        assert [int(each.id, 16) for each in (await desk.history(limit=2)).leases] == [1, 6]


async def test_an_answer_is_never_too_long_for_a_broker(tmp_path: Path) -> None:
    async with desk_at(tmp_path) as desk:
        for number in range(1, 9):
            await desk.lease(number, holder=100_000 * "x")
        answer = await desk.ask("history")
        assert len(answer) < MAX_ANSWER + 1000
        history = History.model_validate_json(answer)
        assert not history.complete
        assert [int(each.id, 16) for each in history.leases] == [4, 5, 6, 7, 8]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"op": "paint"}, "this agent knows no request 'paint'; it is older than your testenv"),
        ({"op": "cordon", "environments": 7}, "operator request not understood: "),
        ({}, "operator request not understood: "),
        ({"op": "history", "limit": 10**9}, "operator request not understood: "),
    ],
)
async def test_what_it_does_not_understand_is_refused_in_words(
    asked: dict[str, Any], words: str, tmp_path: Path
) -> None:
    async with desk_at(tmp_path) as desk:
        with pytest.raises(HostError) as caught:
            await Control(desk.agent, desk.journal).answer(json.dumps(asked).encode())
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "rule",
    [
        {"id": "\x1b[2J"},
        {"id": ""},
        {"for_s": 0},
        {"for_s": 1e12},
        {"left": -1},
        {"left": 10**9},
    ],
)
async def test_a_rule_that_cannot_be_kept_is_refused(rule: dict[str, Any], tmp_path: Path) -> None:
    good = {"id": "7c31f9a0", "job": "gate-*", "left": 1, "for_s": 60}
    async with desk_at(tmp_path) as desk:
        assert (await desk.change("autohold", rule=good)).changed == ("te1",)
        with pytest.raises(HostError, match="operator request not understood"):
            await desk.change("autohold", rule=good | rule)
        assert [each.left for each in desk.agent.holds.autoholds] == [1]
