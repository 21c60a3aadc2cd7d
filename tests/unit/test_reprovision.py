"""What reprovisioning a host comes to, with hosts and commands that only seem to be."""

from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta

import pytest

from schemas.control import UncordonRequest
from schemas.errors import ConfigError, HostError
from schemas.status import EnvironmentReport, HostReport
from testenv import reprovision, vigil
from testenv.fleet import Fleet, HostView
from testenv.operate import Change, Outcome, Result
from testenv.reprovision import (
    Campaign,
    Procedure,
    check_hosts,
    is_fresh,
    parse_template,
    standing,
    undrained,
)
from testenv.targets import Chosen
from testenv.vigil import Patience
from tests.unit.fleet_rig import NOON, a_fleet, a_host, a_silent_host, an_environment

TEMPLATE = parse_template("true --wait {host} 'name={host}, please'", "--reprovision-command")
PROCEDURE = Procedure(TEMPLATE, at_once=1, boot_timeout_s=5.0)


def fresh(host: HostView, *environments: EnvironmentReport) -> HostView:
    """`host` with a new agent."""
    assert host.report
    report = host.report.model_copy(
        update={"started": NOON + timedelta(hours=1), "environments": environments}
    )
    return host.model_copy(update={"report": report})


class World:
    """Hosts, and what the command makes of each: `becomes`, one view after the other."""

    def __init__(self, *hosts: HostView) -> None:
        self.hosts = {host.host: host for host in hosts}
        self.becomes: dict[str, list[HostView]] = {}
        self.statuses: dict[str, int] = {}
        self.ran: list[str] = []
        self.uncordoned: list[str] = []
        self.told: list[str] = []

    def show(self, host: str, text: str) -> None:
        self.told.append(f"{host}: {text}")

    pass_on = show

    async def look(self, _: object, *, only: set[str]) -> Fleet:
        [host] = only
        if host in self.ran and (coming := self.becomes.get(host)):
            self.hosts[host] = coming.pop(0)
        return a_fleet(*(view for view in self.hosts.values() if view.host == host))

    async def change(
        self,
        _: object,
        chosen: Sequence[Chosen],
        request: Callable[[tuple[str, ...]], Change],
        told: Callable[[Chosen, Sequence[Outcome]], None],
    ) -> tuple[Outcome, ...]:
        [one] = chosen
        if isinstance(request(()), UncordonRequest):
            self.uncordoned.append(one.host)
        outcomes = tuple(Outcome(target=each, result=Result.DONE) for each in one.environments)
        told(one, outcomes)
        return outcomes

    async def run_tool(self, argv: Sequence[str], hear: Callable[[str], None]) -> int:
        host = argv[2]
        self.ran.append(host)
        hear("as told")
        return self.statuses.get(host, 0)

    def campaign(self) -> Campaign:
        chosen = [Chosen(view, view.environments, whole=True) for view in self.hosts.values()]
        return Campaign((), chosen, PROCEDURE, "", Patience(waits=True, deadline_s=0.0), self)

    async def results(self) -> dict[str, tuple[Result, str]]:
        outcomes = await self.campaign().run()
        return {each.target: (each.result, each.detail) for each in outcomes}


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Callable[..., World]:
    """A world that commands and questions go to."""

    def made(*hosts: HostView) -> World:
        world = World(*hosts)
        for module in (reprovision, vigil):
            monkeypatch.setattr(module, "look", world.look)
            monkeypatch.setattr(module, "change", world.change)
            monkeypatch.setattr(module, "POLL_S", 0.0)
        monkeypatch.setattr(reprovision, "run_tool", world.run_tool)
        return world

    return made


EMPTY = a_host("te1", an_environment("te1/1"), an_environment("te1/2"))
OTHER = a_host("te2", an_environment("te2/1"))


async def test_a_host_is_done_when_its_new_agent_offers_everything(
    make: Callable[..., World],
) -> None:
    world = make(EMPTY)
    world.becomes["te1"] = [
        EMPTY,
        a_silent_host("te1"),
        fresh(EMPTY, an_environment("te1/1", state="building", cordoned=False)),
        fresh(EMPTY, an_environment("te1/1", state="building", cordoned=False)),
        fresh(EMPTY, an_environment("te1/1", held=True, cordoned=False)),
    ]
    assert await world.results() == {"te1/1": (Result.DONE, "")}
    assert world.told == [
        "te1: waits for its turn",
        "te1: cordoned",
        "te1: empty",
        "te1: is empty; runs: true --wait te1 'name=te1, please'",
        "te1: as told",
        "te1: its command has ended: waits for its agent to register",
        "te1: waits for its new agent: the old agent still answers",
        "te1: waits for its new agent: no answer within 3 s",
        "te1: its new agent makes the environments",
        "te1: te1/1: is building",
        "te1: reprovisioned",
    ]
    assert not world.uncordoned, "its journal is a new one"


async def test_a_cordon_that_has_survived_is_lifted(make: Callable[..., World]) -> None:
    world = make(OTHER)
    world.becomes["te2"] = [fresh(OTHER, an_environment("te2/1"))]
    assert await world.results() == {"te2/1": (Result.DONE, "")}
    assert world.uncordoned == ["te2"]


async def test_after_a_host_with_a_broken_environment_no_other_is_begun(
    make: Callable[..., World],
) -> None:
    world = make(EMPTY, OTHER)
    broken = an_environment("te1/2", state="broken", reason="no disk")
    world.becomes["te1"] = [fresh(EMPTY, an_environment("te1/1"), broken)]
    why = "not begun, because te1 has not come back; it goes on as before"
    assert await world.results() == {
        "te1/1": (Result.DONE, ""),
        "te1/2": (Result.FAILED, "is broken: no disk"),
        "te2": (Result.FAILED, why),
    }
    assert (world.ran, world.uncordoned) == (["te1"], [])


async def test_a_new_agent_without_an_environment_has_failed(make: Callable[..., World]) -> None:
    world = make(EMPTY)
    world.becomes["te1"] = [fresh(EMPTY)]
    assert await world.results() == {"te1": (Result.FAILED, "its new agent has no environment")}


@pytest.mark.parametrize(
    ("first", "found"),
    [
        (
            a_silent_host("te1"),
            {"te1": (Result.FAILED, "no answer within 3 s")},
        ),
        (
            a_host("te1", an_environment("te1/1", offered=True), an_environment("te1/2")),
            {
                "te1/1": (Result.LEASED, "its offer is being withdrawn"),
                "te1/2": (Result.UNDER_WAY, "is empty, and waits for the rest of its host"),
            },
        ),
    ],
)
async def test_a_host_that_can_t_be_drained_is_left_alone_and_the_next_has_its_turn(
    make: Callable[..., World], first: HostView, found: dict[str, tuple[Result, str]]
) -> None:
    world = make(first, OTHER)
    world.becomes["te2"] = [fresh(OTHER, an_environment("te2/1", cordoned=False))]
    assert await world.results() == {**found, "te2/1": (Result.DONE, "")}
    assert world.ran == ["te2"]


async def test_how_a_host_stands_is_known_also_when_its_command_has_failed(
    make: Callable[..., World],
) -> None:
    world = make(EMPTY, OTHER)
    world.statuses["te1"] = 7
    campaign = world.campaign()
    await campaign.run()
    assert campaign.standings == {
        "te1": "its command exited with status 7; it stays cordoned",
        "te2": "waits for its turn",
    }


def test_a_host_s_name_goes_into_each_word_of_the_command() -> None:
    assert TEMPLATE.for_host("te1") == ("true", "--wait", "te1", "name=te1, please")
    assert TEMPLATE.for_host("a b;c")[2] == "a b;c", "no shell splits it"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "names no command; as in: openstack server rebuild --wait {host}"),
        ("true", "'true' does not say where the host's name goes; put {host} there"),
        ("true {host", "'{host': only {host} may stand in braces; no shell expands it"),
        ("true {host} {name}", "'{name}': only {host} may stand in braces"),
        ("true ${HOME}/{host}", "'${HOME}/{host}': only {host} may stand in braces"),
        ("true {{host}}", "'{{host}}': only {host} may stand in braces"),
        ("true '{host}", '"true \'{host}": no closing quotation'),
        ("no-such-program {host}", "there is no program 'no-such-program'"),
    ],
)
def test_a_template_that_can_t_be_meant_is_refused_in_one_line(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_template(text, "--reprovision-command")
    assert str(refused.value).startswith(f"--reprovision-command: {complaint}")


def test_another_agent_is_told_from_the_one_before() -> None:
    def report(**more: object) -> HostReport:
        assert EMPTY.report
        return EMPTY.report.model_copy(update=more)

    before = report()
    assert not is_fresh(None, before)
    assert not is_fresh(report(environments=()), before)
    assert is_fresh(report(pid=2), before)
    assert is_fresh(report(started=NOON - timedelta(days=900)), before), "whatever its clock says"


@pytest.mark.parametrize(
    ("state", "result"),
    [
        ("building", Result.UNDER_WAY),
        ("dirty", Result.UNDER_WAY),
        ("broken", Result.FAILED),
        ("quarantined", Result.FAILED),
        ("ready", Result.DONE),
        ("leased", Result.DONE),
    ],
)
def test_an_environment_of_a_new_agent_is_done_once_it_can_be_leased(
    state: str, result: Result
) -> None:
    assert standing(an_environment("te1/1", state=state)).result is result


def test_what_is_drained_in_vain_is_not_told_as_done() -> None:
    outcomes = [
        Outcome(target="te1/1", result=Result.DONE),
        Outcome(target="te1/2", result=Result.LEASED, detail="leased by ann"),
    ]
    assert [each.result for each in undrained(outcomes)] == [Result.UNDER_WAY, Result.LEASED]


@pytest.mark.parametrize(
    ("chosen", "complaint"),
    [
        ([Chosen(EMPTY, ("te1/2",), whole=False)], "te1/2: only a whole host can be"),
        ([Chosen(a_silent_host("te1"), (), whole=False)], "a part of te1: only a whole host"),
        ([Chosen(a_host("--force"), (), whole=True)], "'--force' is no name for a host"),
    ],
)
def test_whole_hosts_with_the_name_of_one_are_reprovisioned_only(
    chosen: Iterable[Chosen], complaint: str
) -> None:
    with pytest.raises(HostError) as refused:
        check_hosts(chosen)
    assert str(refused.value).startswith(complaint)
