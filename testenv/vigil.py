"""Ask hosts for something that takes as long as leases run, and see it come about.

What is asked for goes on without us: the wait may be cut short, and begun again, at any moment.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import NamedTuple

from broker.endpoint import Endpoint
from schemas.errors import BrokerUnreachable, TestenvError
from schemas.status import EnvironmentReport, HostReport, Lease
from testenv.errors import AgentRefused
from testenv.fleet import ANSWER_TIMEOUT_S, HostView, look, revoke
from testenv.operate import Change, Outcome, Result, change
from testenv.tables import holder, until
from testenv.targets import Chosen

POLL_S = 1.0
"""How often agents are asked how far they are."""

ENDING = "ending"
"""What a host calls a lease whose client it has told to end its command."""

Refusals = Mapping[str, str]
"""By lease: why it can't be revoked."""


class Patience(NamedTuple):
    """How long to wait, in seconds. `deadline_s`: None for as long as it takes.

    `revoke`: whether leases that run then are revoked, and waited for once more.
    """

    waits: bool
    deadline_s: float | None = None
    revoke: bool = False


class Order(NamedTuple):
    """What hosts are asked for, and how it is told whether that has come about.

    `accepted`: what a host is at once it has agreed. `standing`: how far an environment is.
    `finished`: what a host is at in the end. `revoked_for`: the reason of a revocation where
    nobody gave one. `takes_s`: how long the rest may take, once the last lease is over.
    `recounts`: whether environments may come and go by that.
    """

    request: Callable[[tuple[str, ...]], Change]
    accepted: str
    standing: Callable[[EnvironmentReport, Refusals], Outcome]
    finished: str
    revoked_for: str
    takes_s: float = 0.0
    recounts: bool = False


class Vigil:
    """One order for what is `chosen`. `tell` hears what each host is at, time and again."""

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        chosen: Sequence[Chosen],
        order: Order,
        tell: Callable[[str, str], None],
    ) -> None:
        self._endpoints = endpoints
        self._chosen = list(chosen)
        self._order = order
        self._tell = tell
        self._views: dict[str, HostView] = {}
        self._refused: dict[str, str] = {}
        self._unwritten: dict[str, Outcome] = {}

    @property
    def views(self) -> tuple[HostView, ...]:
        """The hosts as they were seen last."""
        return tuple(self._views.values())

    async def run(self, patience: Patience) -> tuple[Outcome, ...]:
        """Ask, then wait as `patience` has it; what became of every environment.

        A host that does not agree is not waited for; one that falls silent later is, also while
        no broker answers.
        """
        failed = await self._ask()
        clock = asyncio.get_running_loop().time
        if patience.waits:
            limit = patience.deadline_s
            outcomes = await self._until(None if limit is None else clock() + limit)
        else:
            outcomes = await self._look()
        if patience.revoke and any(map(self._is_waited_for, outcomes)):
            limit_s = self._ends_within_s() + self._order.takes_s
            outcomes = await self._until(clock() + limit_s, revoking=True)
        return (*failed, *map(self._as_written, outcomes))

    async def _ask(self) -> tuple[Outcome, ...]:
        """What has failed; a host that has not agreed is not waited for."""

        def told(one: Chosen, outcomes: Sequence[Outcome]) -> None:
            bad = [each for each in outcomes if each.is_bad]
            self._tell(one.host, bad[0].detail if bad else self._order.accepted)
            if any(each.result is Result.FAILED for each in bad):
                self._chosen.remove(one)

        outcomes = await change(self._endpoints, tuple(self._chosen), self._order.request, told)
        self._unwritten = {
            each.target: each for each in outcomes if each.result is Result.UNWRITTEN
        }
        return tuple(each for each in outcomes if each.result is Result.FAILED)

    def _as_written(self, one: Outcome) -> Outcome:
        """`one`, unless it is as was asked for, but may not stay so."""
        unwritten = self._unwritten.get(one.target)
        if unwritten is None or one.is_bad:
            return one
        detail = "; ".join(part for part in (unwritten.detail, one.detail) if part)
        return unwritten.model_copy(update={"detail": detail, "lease": one.lease})

    async def _until(
        self, deadline: float | None, *, revoking: bool = False
    ) -> tuple[Outcome, ...]:
        clock = asyncio.get_running_loop().time
        while True:
            outcomes = await self._look()
            if not any(map(self._is_waited_for, outcomes)):
                return outcomes
            if revoking:
                await self._revoke(outcomes)
            left_s = POLL_S if deadline is None else deadline - clock()
            if left_s <= 0:
                return outcomes
            await asyncio.sleep(min(left_s, POLL_S))

    def _is_waited_for(self, one: Outcome) -> bool:
        is_left = one.lease is not None and one.lease.id in self._refused
        return (one.is_left or one.result is Result.UNKNOWN) and not is_left

    async def _look(self) -> tuple[Outcome, ...]:
        try:
            fleet = await look(self._endpoints, only={one.host for one in self._chosen})
        except BrokerUnreachable:
            silent = {one.host: HostView(host=one.host, broker="", problem="no broker answers")
                      for one in self._chosen}  # fmt: skip
            self._views = silent
        else:
            self._views = {view.host: view for view in fleet.hosts}
        found = [
            outlook(one, self._views.get(one.host), self._order, self._refused)
            for one in self._chosen
        ]
        for one, outcomes in zip(self._chosen, found, strict=True):
            self._tell(one.host, in_words(outcomes, self._order.finished))
        return tuple(chain.from_iterable(found))

    async def _revoke(self, outcomes: Sequence[Outcome]) -> None:
        """Again at every look: an agent that has started anew meanwhile does not know of it."""
        leases = [one.lease for one in outcomes if one.lease and one.lease.id not in self._refused]
        await asyncio.gather(*map(self._revoke_one, leases))

    async def _revoke_one(self, lease: Lease) -> None:
        view = self._views[lease.environment.partition("/")[0]]
        try:
            await revoke(self._endpoints, view, lease, self._order.revoked_for)
        except AgentRefused as refusal:
            self._refused[lease.id] = refusal.why
        except TestenvError as error:
            self._tell(view.host, f"{lease.environment}: {error}; trying again")

    def _ends_within_s(self) -> float:
        """Seconds from a revocation to the lease's end, and what it takes to see that."""
        reports = [view.report for view in self._views.values() if view.report]
        default: float = HostReport.model_fields["ends_within_s"].default
        longest = max((report.ends_within_s for report in reports), default=default)
        return longest + ANSWER_TIMEOUT_S + POLL_S


def outlook(
    chosen: Chosen, view: HostView | None, order: Order, refused: Refusals | None = None
) -> tuple[Outcome, ...]:
    """How far each environment of `chosen` is; `view` is its host's, None if not seen."""
    if view is None or view.report is None:
        why = view.problem if view else "no agent is registered"
        return tuple(
            Outcome(target=each, result=Result.UNKNOWN, detail=why) for each in chosen.environments
        )
    reports = {env.id: env for env in view.report.environments}
    new = tuple(reports) if order.recounts and chosen.whole else ()
    return tuple(
        order.standing(reports[env_id], refused or {}) if env_id in reports else gone(env_id, order)
        for env_id in dict.fromkeys((*chosen.environments, *new))
    )


def gone(env_id: str, order: Order) -> Outcome:
    """Its host has it no more."""
    if order.recounts:
        return Outcome(target=env_id, result=Result.REMOVED)
    return Outcome(target=env_id, result=Result.FAILED, detail="its host has it no more")


def leased(env: EnvironmentReport, lease: Lease, refused: Refusals) -> Outcome:
    """`lease` still runs in `env`."""
    if why_not := refused.get(lease.id):
        detail = f"leased by {until(lease)}; {why_not}"
    elif env.lease_state == ENDING:
        detail = f"leased by {holder(lease)}, who is told to end"
    else:
        detail = f"leased by {until(lease)}"
    return Outcome(target=env.id, result=Result.LEASED, detail=detail, lease=lease)


def in_words(outcomes: Sequence[Outcome], finished: str) -> str:
    """What one host is at."""
    waiting = [one for one in outcomes if one.result not in (Result.DONE, Result.REMOVED)]
    if not waiting:
        return finished
    if all(one.result is Result.UNKNOWN for one in waiting):
        return f"{waiting[0].detail}; asking again"
    return "; ".join(f"{one.target}: {one.detail}" for one in waiting)
