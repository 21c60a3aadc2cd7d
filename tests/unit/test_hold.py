"""What `testenv holds` and `status` tell of what is kept for people."""

import pytest
from rich.console import Console

from schemas.status import Autohold, EnvironmentReport, EnvState, Hold, HostReport
from testenv import tables
from testenv.fleet import HostView
from testenv.hold import Holds, holds_of, report_of
from tests.unit.fleet_rig import NOON, a_fleet, a_host, a_silent_host, an_environment

KEPT = Hold(
    for_s=60, since=NOON, until=NOON, reason="a look", asked_by="bob", job="job-1", lease="1ea5e"
)
RULE = Autohold(id="r1", job="gate-*", left=2, for_s=7200, reason="hangs", asked_by="ann")
HELD = an_environment("te1/1", state=EnvState.HELD, hold=KEPT)
TO_BE_HELD = an_environment("te1/2", held=True, hold=Hold(for_s=60, asked_by="bob"))


def found() -> Holds:
    first = a_host("te1", HELD, TO_BE_HELD, an_environment("te1/3"))
    report = HostReport(host="te2", version="1", pid=1, started=NOON, autoholds=(RULE,))
    second = HostView(host="te2", broker=first.broker, report=report)
    return holds_of(a_fleet(first, second, a_silent_host("te3")))


def shown(table: object) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_all_that_is_held_or_will_be_is_listed_with_the_autoholds() -> None:
    holds = found()
    assert [(one.environment, one.state) for one in holds.holds] == [
        ("te1/1", EnvState.HELD),
        ("te1/2", EnvState.LEASED),
    ]
    assert [(one.host, one.rule) for one in holds.autoholds] == [("te2", RULE)]
    rows = shown(tables.holds(holds.holds)).splitlines()
    assert rows[1].split() == [
        *("te1/1", "held", "2026-11-26", "12:00:00", "job-1", "1ea5e", "bob", "a", "look")
    ]
    assert rows[2].split() == ["te1/2", "leased,", "to", "be", "held", "bob"]
    row = shown(tables.autoholds(holds.autoholds)).splitlines()[1]
    assert row.split() == ["r1", "te2", "gate-*", "2", "2h00m", "ann", "hangs"]


@pytest.mark.parametrize(
    ("env", "note"),
    [
        (HELD, "held for bob, until 2026-11-26 12:00:00 UTC: a look"),
        (TO_BE_HELD, "to be held"),
    ],
)
def test_status_says_for_whom_and_until_when(env: EnvironmentReport, note: str) -> None:
    assert note in shown(tables.environments(a_fleet(a_host("te1", env))))


def test_who_has_taken_it_over_is_named_in_the_place_of_who_has_asked() -> None:
    assert tables.kept(KEPT.model_copy(update={"holder": "ann"})).startswith("held for ann, until")


def test_an_environment_that_its_host_does_not_tell_of_is_none() -> None:
    assert report_of(a_host("te1", HELD), "te1/1") is HELD
    assert report_of(a_host("te1", HELD), "te1/9") is None
    assert report_of(a_silent_host("te1"), "te1/1") is None
