"""What is waited for, and what a command is told in the end, with hosts that only seem to be."""

from collections.abc import Callable, Sequence

import click
import pytest
from click.testing import CliRunner

from schemas.exits import ExitStatus
from testenv import vigil
from testenv.drain import drain_order
from testenv.fleet import Fleet, HostView
from testenv.operate import Outcome, Result
from testenv.operators import reason_option
from testenv.targets import Chosen
from testenv.vigil import Patience, Vigil
from testenv.vigil_cli import patience_options
from tests.unit.fleet_rig import a_fleet, a_host, an_environment

FIRST, SECOND = "te1/1", "te1/2"
LOST = "in force, but lost with its agent"


def drained(monkeypatch: pytest.MonkeyPatch, agreed: Sequence[Outcome], host: HostView) -> Vigil:
    """A drain of `host`, whose agent has `agreed`."""
    chosen = Chosen(host, host.environments, whole=True)

    async def change(
        _: object, __: object, ___: object, told: Callable[[Chosen, Sequence[Outcome]], None]
    ) -> tuple[Outcome, ...]:
        told(chosen, agreed)
        return tuple(agreed)

    async def look(_: object, *, only: set[str]) -> Fleet:
        assert only == {host.host}
        return a_fleet(host)

    monkeypatch.setattr(vigil, "change", change)
    monkeypatch.setattr(vigil, "look", look)
    return Vigil((), [chosen], drain_order(""), lambda _, __: None)


async def test_of_what_may_not_stay_so_each_target_is_told_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    host = a_host("te1", an_environment(FIRST), an_environment(SECOND, held=True))
    agreed = [
        Outcome(target=each, result=Result.UNWRITTEN, detail=LOST) for each in (FIRST, SECOND)
    ]
    empty, leased = await drained(monkeypatch, agreed, host).run(Patience(waits=False))
    assert (empty.target, empty.result, empty.detail) == (FIRST, Result.UNWRITTEN, LOST)
    assert (leased.target, leased.result) == (SECOND, Result.UNWRITTEN)
    assert leased.detail.startswith(f"{LOST}; leased by ann, until ")
    assert leased.lease, "who runs there is still told"


async def test_what_has_failed_meanwhile_is_told_rather_than_that_it_may_not_stay_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    host = a_host("te1", an_environment(FIRST, cordoned=False))
    agreed = [Outcome(target=FIRST, result=Result.UNWRITTEN, detail=LOST)]
    [outcome] = await drained(monkeypatch, agreed, host).run(Patience(waits=True))
    assert outcome.result is Result.FAILED


@click.command()
@patience_options("Wait.")
@reason_option
def waiting(patience: Patience, reason: str) -> None:
    click.echo(f"{patience} {reason}")


@pytest.mark.parametrize(
    ("words", "patience"),
    [
        ((), Patience(waits=False)),
        (("--wait",), Patience(waits=True)),
        (("--deadline", "30m"), Patience(waits=True, deadline_s=1800.0)),
        (("--deadline", "0s", "--revoke"), Patience(waits=True, deadline_s=0.0, revoke=True)),
    ],
)
def test_how_long_to_wait_is_one_thing_to_a_command(
    words: tuple[str, ...], patience: Patience
) -> None:
    assert CliRunner().invoke(waiting, [*words, "--reason", "why"]).output == f"{patience} why\n"


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--wait", "--revoke"), "--revoke: needs a --deadline (0s: at once)"),
        (("--reason", "two\nlines"), "--reason: must be one line of at most 200 characters"),
        (("--reason", "x" * 201), "--reason: must be one line of at most 200 characters"),
    ],
)
def test_a_mistake_in_them_is_one_line(words: tuple[str, ...], complaint: str) -> None:
    done = CliRunner().invoke(waiting, words)
    assert (done.exit_code, done.output) == (ExitStatus.USAGE, f"testenv: {complaint}\n")
