"""Hosts made anew from the ground up, one by one: drained, handed to the operator's own command,
and awaited until a new agent offers their environments again."""

import asyncio
import re
import shlex
import shutil
import signal
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import NamedTuple, Protocol

from broker.endpoint import Endpoint
from schemas.control import UncordonRequest
from schemas.errors import BrokerUnreachable, ConfigError, HostError, TestenvError
from schemas.names import HOST_PATTERN
from schemas.status import EnvironmentReport, EnvState, HostReport
from testenv.drain import drain_order
from testenv.duration import duration
from testenv.fleet import HostView, look
from testenv.operate import Outcome, Result, change
from testenv.rebuild import TAKES_S
from testenv.targets import Chosen
from testenv.tool import run_tool
from testenv.vigil import POLL_S, Patience, Vigil

HOST = "{host}"
EXAMPLE = "openstack server rebuild --wait {host}"

DONE = "reprovisioned"


class Template(NamedTuple):
    """The command that reprovisions a host, with HOST for the host's name."""

    words: tuple[str, ...]

    def for_host(self, host: str) -> tuple[str, ...]:
        return tuple(word.replace(HOST, host) for word in self.words)


def parse_template(text: str, source: str) -> Template:
    """Read a command as a shell splits it; no shell runs it. `source`: the option it came from.

    Raises ConfigError, also if there is no such program.
    """
    try:
        words = tuple(shlex.split(text))
    except ValueError as exc:
        raise ConfigError(source, f"{text!r}: {str(exc).lower()}") from exc
    if not words:
        raise ConfigError(source, "names no command", remedy=f"as in: {EXAMPLE}")
    for word in words:
        if re.search(r"[{}]", word.replace(HOST, "")):
            what = f"{word!r}: only {HOST} may stand in braces"
            raise ConfigError(source, what, remedy="no shell expands it")
    if not any(HOST in word for word in words):
        what = f"{text!r} does not say where the host's name goes"
        raise ConfigError(source, what, remedy=f"put {HOST} there, as in: {EXAMPLE}")
    if HOST not in words[0] and shutil.which(words[0]) is None:
        raise ConfigError(source, f"there is no program {words[0]!r}")
    return Template(words)


class Procedure(NamedTuple):
    """How hosts are reprovisioned. `boot_timeout_s`: from the command's begin until the new agent
    has registered."""

    template: Template
    at_once: int
    boot_timeout_s: float


class News(Protocol):
    """Who hears of hosts while they are reprovisioned."""

    def show(self, host: str, text: str) -> None:
        """What `host` is at now."""

    def pass_on(self, host: str, line: str) -> None:
        """What its command has said."""


def check_hosts(chosen: Iterable[Chosen]) -> None:
    """Raises HostError for what is no whole host, or has a name that no command should get."""
    for one in chosen:
        if not one.whole:
            target = ", ".join(one.environments) or f"a part of {one.host}"
            raise HostError(
                f"{target}: only a whole host can be reprovisioned", remedy=f"name {one.host}"
            )
        if not re.fullmatch(HOST_PATTERN, one.host):
            raise HostError(f"{one.host!r} is no name for a host")


def is_fresh(report: HostReport | None, before: HostReport) -> bool:
    """Whether another agent answers than the one that did `before`."""
    return report is not None and (report.started, report.pid) != (before.started, before.pid)


def standing(env: EnvironmentReport) -> Outcome:
    """How far `env` of a new agent is. A lease in it is one of the new ones."""
    if env.state in (EnvState.BUILDING, EnvState.DIRTY):
        return Outcome(target=env.id, result=Result.UNDER_WAY, detail=f"is {env.state}")
    if env.state in (EnvState.BROKEN, EnvState.QUARANTINED):
        detail = f"is {env.state}: {env.reason}"
        return Outcome(target=env.id, result=Result.FAILED, detail=detail)
    return Outcome(target=env.id, result=Result.DONE)


def undrained(outcomes: Iterable[Outcome]) -> tuple[Outcome, ...]:
    """What a drain that came to nothing tells of a host that was not reprovisioned."""
    waits = {"result": Result.UNDER_WAY, "detail": "is empty, and waits for the rest of its host"}
    return tuple(
        one.model_copy(update=waits) if one.result is Result.DONE else one for one in outcomes
    )


class Campaign:
    """Reprovisions `chosen`, whole hosts, in this order, so many at once. `news` hears of it.

    Each is cordoned only when its turn comes. If one does not come back, no other is begun.
    """

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        chosen: Iterable[Chosen],
        procedure: Procedure,
        reason: str,
        patience: Patience,
        news: News,
    ) -> None:
        self._at_once = procedure.at_once
        self._news = news
        self._turns = {
            one.host: Turn(endpoints, one.host, procedure, reason, patience, news) for one in chosen
        }
        self._waiting = deque(self._turns.values())
        self._lost = ""
        """The first host that did not come back."""

    @property
    def standings(self) -> dict[str, str]:
        """By host: how far it is, for people."""
        return {turn.host: turn.standing for turn in self._turns.values()}

    async def run(self) -> tuple[Outcome, ...]:
        """What became of every environment, or of a host as a whole. Cancelled, it ends the
        commands that run."""
        for turn in self._waiting:
            self._news.show(turn.host, turn.standing)
        async with asyncio.TaskGroup() as group:
            workers = [
                group.create_task(self._work()) for _ in range(min(self._at_once, len(self._turns)))
            ]
        found = dict(chain.from_iterable(worker.result() for worker in workers))
        return tuple(
            chain.from_iterable(
                found[host] if host in found else (self._not_begun(host),) for host in self._turns
            )
        )

    async def _work(self) -> list[tuple[str, tuple[Outcome, ...]]]:
        found = []
        while self._waiting and not self._lost:
            turn = self._waiting.popleft()
            outcomes = await turn.run()
            found.append((turn.host, outcomes))
            if turn.is_out and not self._lost:
                self._lost = turn.host
        return found

    def _not_begun(self, host: str) -> Outcome:
        why = f"not begun, because {self._lost} has not come back; it goes on as before"
        self._news.show(host, why)
        return Outcome(target=host, result=Result.FAILED, detail=why)


class Turn:
    """One host's turn. `standing`: how far it is, for people."""

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        host: str,
        procedure: Procedure,
        reason: str,
        patience: Patience,
        news: News,
    ) -> None:
        self.host = host
        self.standing = "waits for its turn"
        self.is_out = False
        """Whether its command has begun, and it has not come back."""
        self._endpoints = endpoints
        self._procedure = procedure
        self._reason = reason
        self._patience = patience
        self._news = news

    async def run(self) -> tuple[Outcome, ...]:
        """Whatever fails is an outcome, too."""
        try:
            outcomes = await self._run()
        except TestenvError as error:
            outcomes = (Outcome(target=self.host, result=Result.FAILED, detail=str(error)),)
            self.standing = str(error)
            self._news.show(self.host, self.standing)
        return outcomes

    async def _run(self) -> tuple[Outcome, ...]:
        self.standing = "is cordoned, and was being drained: nothing else was done to it"
        vigil = await self._draining()
        outcomes = await vigil.run(self._patience)
        if not _all_done(outcomes):
            self.standing = "was not drained, and not reprovisioned"
            return undrained(outcomes)
        before = _report(_of(self.host, vigil.views))
        self.is_out = True
        limit = _clock()() + self._procedure.boot_timeout_s
        await self._command(limit)
        self._stands("its command has ended: waits for its agent to register")
        await self._registered(before, limit)
        self._stands("its new agent makes the environments")
        view, outcomes = await self._made()
        if _all_done(outcomes):
            outcomes = await self._uncordoned(view, outcomes)
        if _all_done(outcomes):
            self.is_out = False
            self._stands(DONE)
        else:
            self._stands("; ".join(f"{one.target}: {one.detail}" for one in outcomes if one.detail))
        return outcomes

    def _stands(self, text: str) -> None:
        self.standing = text
        self._news.show(self.host, text)

    async def _draining(self) -> Vigil:
        """Raises BrokerError, HostError."""
        fleet = await look(self._endpoints, only={self.host})
        view = _of(self.host, fleet.hosts)
        view.must_answer()
        chosen = Chosen(view, view.environments, whole=True)
        order = drain_order(self._reason or "its host is reprovisioned")
        return Vigil(self._endpoints, [chosen], order, self._news.show)

    async def _command(self, limit: float) -> None:
        """Raises HostError unless it ends well, in time."""
        argv = self._procedure.template.for_host(self.host)
        self._news.show(self.host, f"is empty; runs: {shlex.join(argv)}")
        self.standing = "its command was ended: look after the host; it stays cordoned"
        try:
            async with asyncio.timeout_at(limit):
                status = await run_tool(argv, lambda line: self._news.pass_on(self.host, line))
        except TimeoutError as exc:
            within = duration(self._procedure.boot_timeout_s)
            raise HostError(
                f"its command did not end within {within}, and was ended; it stays cordoned"
            ) from exc
        if status:
            raise HostError(f"its command {_ended(status)}; it stays cordoned")

    async def _registered(self, before: HostReport, limit: float) -> None:
        """Raises HostError if that does not come about in time."""
        clock = _clock()
        while not is_fresh((view := await self._seen()).report, before):
            why = "the old agent still answers" if view.report else view.problem
            self._news.show(self.host, f"waits for its new agent: {why}")
            if clock() >= limit:
                within = duration(self._procedure.boot_timeout_s)
                raise HostError(f"no new agent has registered within {within}: {why}")
            await asyncio.sleep(POLL_S)

    async def _made(self) -> tuple[HostView, tuple[Outcome, ...]]:
        """The host as soon as nothing is under way there, or TAKES_S later."""
        clock = _clock()
        limit = clock() + TAKES_S
        while True:
            view = await self._seen()
            outcomes = _found(view)
            busy = [one for one in outcomes if one.is_left or one.result is Result.UNKNOWN]
            if not busy or clock() >= limit:
                return view, outcomes
            words = "; ".join(f"{one.target}: {one.detail}" for one in busy)
            self._news.show(self.host, words)
            await asyncio.sleep(POLL_S)

    async def _uncordoned(
        self, view: HostView, outcomes: tuple[Outcome, ...]
    ) -> tuple[Outcome, ...]:
        """`outcomes`, or what went wrong. A journal that has survived knows the cordon."""
        if not (view.report and any(env.cordoned for env in view.report.environments)):
            return outcomes
        chosen = Chosen(view, view.environments, whole=True)
        changed = await change(
            self._endpoints,
            [chosen],
            lambda ids: UncordonRequest(environments=ids),
            lambda _, __: None,
        )
        return tuple(each for each in changed if each.is_bad) or outcomes

    async def _seen(self) -> HostView:
        try:
            fleet = await look(self._endpoints, only={self.host})
        except BrokerUnreachable:
            return HostView(host=self.host, broker="", problem="no broker answers")
        return _of(self.host, fleet.hosts)


def _clock() -> Callable[[], float]:
    return asyncio.get_running_loop().time


def _of(host: str, views: Iterable[HostView]) -> HostView:
    silent = HostView(host=host, broker="", problem="no agent is registered")
    return next((view for view in views if view.host == host), silent)


def _report(view: HostView) -> HostReport:
    if view.report is None:
        raise HostError(view.problem)
    return view.report


def _all_done(outcomes: Iterable[Outcome]) -> bool:
    return all(one.result is Result.DONE for one in outcomes)


def _found(view: HostView) -> tuple[Outcome, ...]:
    if view.report is None:
        return (Outcome(target=view.host, result=Result.UNKNOWN, detail=view.problem),)
    if not view.report.environments:
        why = "its new agent has no environment"
        return (Outcome(target=view.host, result=Result.FAILED, detail=why),)
    return tuple(map(standing, view.report.environments))


def _ended(status: int) -> str:
    """As a shell's user knows it."""
    if status > 0:
        return f"exited with status {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"was ended by signal {-status}"
