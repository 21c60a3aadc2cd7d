"""How far a drain is: what its agents tell decides."""

import pytest

from schemas.status import EnvironmentReport, Hold
from testenv.drain import drain_order
from testenv.fleet import HostView
from testenv.operate import Result
from testenv.targets import Chosen
from testenv.vigil import in_words, outlook
from tests.unit.fleet_rig import NOON, a_host, a_silent_host, an_environment

ENV = "te1/1"
DRAIN = drain_order("")
EMPTY = an_environment(ENV)
BEFORE = Chosen(a_host("te1", EMPTY), (ENV,), whole=True)
HELD = an_environment(ENV, held=True)
KEPT = Hold(for_s=60, since=NOON, until=NOON, asked_by="bob", holder="ann")


@pytest.mark.parametrize(
    ("env", "result", "words"),
    [
        (EMPTY, Result.DONE, ""),
        (HELD, Result.LEASED, "leased by ann, until 2026-11-26 13:00:00 UTC at the latest"),
        (
            HELD.model_copy(update={"lease_state": "ending"}),
            Result.LEASED,
            "leased by ann, who is told to end",
        ),
        (
            an_environment(ENV, hold=KEPT),
            Result.HELD,
            "held for ann, until 2026-11-26 12:00:00 UTC",
        ),
        (an_environment(ENV, hold=Hold(for_s=60, asked_by="bob")), Result.HELD, "held for bob"),
        (an_environment(ENV, offered=True), Result.LEASED, "its offer is being withdrawn"),
        (
            an_environment(ENV, cordoned=False),
            Result.FAILED,
            "somebody has uncordoned it meanwhile",
        ),
    ],
)
def test_an_environment_is_empty_when_nothing_can_run_there(
    env: EnvironmentReport, result: Result, words: str
) -> None:
    [outcome] = outlook(BEFORE, a_host("te1", env), DRAIN)
    assert (outcome.target, outcome.result, outcome.detail) == (ENV, result, words)
    assert outcome.lease == env.lease


@pytest.mark.parametrize(
    ("view", "why"),
    [(None, "no agent is registered"), (a_silent_host("te1"), "no answer within 3 s")],
)
def test_of_a_host_that_is_silent_nothing_is_known(view: HostView | None, why: str) -> None:
    outcomes = outlook(BEFORE, view, DRAIN)
    assert [(each.target, each.result) for each in outcomes] == [(ENV, Result.UNKNOWN)]
    assert in_words(outcomes, "empty") == f"{why}; asking again"


def test_an_environment_that_its_host_has_no_more_is_not_waited_for() -> None:
    [outcome] = outlook(BEFORE, a_host("te1"), DRAIN)
    assert outcome.result is Result.FAILED


def test_why_a_lease_can_t_be_revoked_is_told() -> None:
    assert HELD.lease
    [outcome] = outlook(BEFORE, a_host("te1", HELD), DRAIN, {HELD.lease.id: "version 1"})
    assert outcome.detail.endswith("at the latest; version 1")


def test_a_host_is_empty_or_tells_what_is_not() -> None:
    chosen = Chosen(a_host("te1"), (ENV, "te1/2"), whole=True)
    one_left = outlook(chosen, a_host("te1", HELD, an_environment("te1/2")), DRAIN)
    assert in_words(one_left, "empty").startswith("te1/1: leased by ann")
    assert "te1/2" not in in_words(one_left, "empty")
    none_left = outlook(chosen, a_host("te1", EMPTY, an_environment("te1/2")), DRAIN)
    assert in_words(none_left, "empty") == "empty"
