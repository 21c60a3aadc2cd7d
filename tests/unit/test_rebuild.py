"""How far a rebuild is, what one may take up, and that one asked for twice is done once."""

from datetime import timedelta

import pytest

from hosts.admission import Bar, Shutdown
from hosts.plan import plan_host
from hosts.rebuild import Remaking, refuse_other_changes
from schemas.config import HostConfig
from schemas.errors import ConfigError
from schemas.plan import Environment, Facts
from schemas.status import EnvironmentReport, Hold
from testenv.operate import Result
from testenv.rebuild import rebuild_order
from testenv.targets import Chosen
from testenv.vigil import in_words, outlook
from tests.unit.fleet_rig import NOON, a_host, an_environment

ENV = "te1/1"
READY = an_environment(ENV)
HELD = an_environment(ENV, held=True)
FREE = Chosen(a_host("te1", READY), (ENV,), whole=True)
LEASED = Chosen(a_host("te1", HELD), (ENV,), whole=True)


def environment(memory_mib: int = 256) -> Environment:
    return plan_host(config(memory_mib), Facts(memory_mib=9999, cpus=9, disk_gib=99)).environments[
        0
    ]


def config(memory_mib: int = 256, **more: object) -> HostConfig:
    environments = {
        "count": 1,
        "seed": {"image": "/images/seed.qcow2"},
        "nodes": {"memory_mib": memory_mib},
    }
    named = {"host": {"name": "te1"}, "environments": environments}
    return HostConfig.model_validate(named | more)


@pytest.mark.parametrize(
    ("before", "env", "result", "words"),
    [
        (FREE, READY, Result.DONE, ""),
        (FREE, an_environment(ENV, rebuilding=True), Result.UNDER_WAY, "is ready"),
        (FREE, an_environment(ENV, state="building"), Result.UNDER_WAY, "is building"),
        (
            FREE,
            an_environment(ENV, state="broken", reason="no disk"),
            Result.FAILED,
            "is broken: no disk",
        ),
        (
            FREE,
            an_environment(ENV, state="quarantined", reason="3 failures"),
            Result.FAILED,
            "is quarantined: 3 failures",
        ),
        (
            FREE,
            an_environment(ENV, state="broken", reason="no disk", rebuilding=True),
            Result.UNDER_WAY,
            "is broken",
        ),
        (
            LEASED,
            HELD,
            Result.LEASED,
            "leased by ann, until 2026-11-26 13:00:00 UTC at the latest",
        ),
        (FREE, HELD, Result.DONE, ""),
    ],
)
def test_an_environment_is_rebuilt_when_it_is_free_of_old_leases_and_made(
    before: Chosen, env: EnvironmentReport, result: Result, words: str
) -> None:
    [outcome] = outlook(before, a_host("te1", env), rebuild_order("", [before]))
    assert (outcome.target, outcome.result, outcome.detail) == (ENV, result, words)


def test_a_lease_that_was_seen_before_the_rebuild_is_waited_for_also_by_a_new_agent() -> None:
    order = rebuild_order("", [FREE])
    waiting = HELD.model_copy(update={"rebuilding": True})
    for env in (waiting, HELD):
        [outcome] = outlook(FREE, a_host("te1", env), order)
        assert outcome.result is Result.LEASED


def test_a_hold_that_was_seen_before_the_rebuild_is_waited_for_also_by_a_new_agent() -> None:
    order = rebuild_order("", [FREE])
    kept = an_environment(ENV, state="held", hold=Hold(for_s=60, since=NOON, asked_by="ann"))
    for env in (kept.model_copy(update={"rebuilding": True}), kept):
        [outcome] = outlook(FREE, a_host("te1", env), order)
        assert (outcome.result, outcome.detail) == (Result.HELD, "held for ann")
    later = kept.model_copy(update={"hold": Hold(for_s=60, since=NOON + timedelta(1))})
    [outcome] = outlook(FREE, a_host("te1", later), order)
    assert outcome.result is Result.DONE


def test_environments_come_and_go_with_a_whole_host_s_count() -> None:
    order = rebuild_order("", [FREE])
    outcomes = outlook(FREE, a_host("te1", an_environment("te1/2")), order)
    assert [(each.target, each.result) for each in outcomes] == [
        (ENV, Result.REMOVED),
        ("te1/2", Result.DONE),
    ]
    assert in_words(outcomes, order.finished) == "rebuilt"


def test_a_rebuild_keeps_the_environment_barred_until_it_has_ended() -> None:
    admission = Shutdown().admission()
    remaking = Remaking(admission)
    assert remaking.ask(environment(), "more memory")
    assert admission.reason(Bar.REBUILD) == "more memory"
    assert remaking.begin() == environment()
    assert not remaking.asked.is_set()
    assert remaking.is_pending
    remaking.end()
    assert admission.reason(Bar.REBUILD) is None


def test_the_same_rebuild_is_joined_and_another_one_follows_it() -> None:
    remaking = Remaking(Shutdown().admission())
    remaking.ask(environment(), "")
    assert not remaking.ask(environment(), "")
    remaking.begin()
    assert not remaking.ask(environment(), "")
    assert remaking.ask(environment(512), "")
    remaking.end()
    assert remaking.is_pending
    assert remaking.begin() == environment(512)
    remaking.end()
    assert remaking.ask(environment(512), ""), "an ended one may be done again"


async def test_who_waits_for_admission_hears_of_a_rebuild_at_once() -> None:
    admission = Shutdown().admission()
    admission.close(Bar.CORDON, "")
    assert Remaking(admission).ask(None, "")
    assert not await admission.admitted()
    assert admission.closed.is_set()


def test_other_environments_are_taken_up() -> None:
    refuse_other_changes(config(), config(512), "host.toml")


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"host": {"name": "te2"}}, "[host]"),
        ({"public": {"bridge": "br-new"}, "lease": {"beat_s": 1}}, "[lease], [public]"),
        ({"environments": {"count": 1, "labels": ["big"]}}, "environments.labels"),
    ],
)
def test_any_other_change_is_refused_by_name(more: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError) as refused:
        refuse_other_changes(config(), config(**more), "host.toml")  # type: ignore[arg-type]
    assert str(refused.value).startswith(f"host.toml: {named} changed")
    assert "restart the agent" in str(refused.value)
