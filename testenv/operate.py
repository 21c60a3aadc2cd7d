"""What operators do to a fleet: one request to each host, all at once, and what became of it."""

import asyncio
from collections.abc import Callable, Sequence
from enum import StrEnum
from itertools import chain

from pydantic import BaseModel

from broker.endpoint import Endpoint
from schemas.control import (
    AutoholdRequest,
    Changes,
    ClearRequest,
    CordonRequest,
    History,
    HistoryRequest,
    PastLease,
    RebuildRequest,
    UncordonRequest,
    UnholdRequest,
)
from schemas.errors import TestenvError
from schemas.status import Lease
from testenv.fleet import ask
from testenv.targets import Chosen

HISTORY_TIMEOUT_S = 10.0
"""An agent reads a file for that."""

_UNWRITTEN = "in force, but lost with its agent: the host's journal can't be written"


class Result(StrEnum):
    DONE = "done"
    UNCHANGED = "unchanged"
    """It was so already."""
    UNWRITTEN = "unwritten"
    """It is so, but may not stay so."""
    LEASED = "leased"
    """A lease still runs there."""
    HELD = "held"
    """A person keeps it."""
    UNDER_WAY = "under way"
    """No lease runs there any more, and it is being done."""
    UNKNOWN = "unknown"
    """Its host does not answer now."""
    REMOVED = "removed"
    """It is not in its host's configuration any more, and gone."""
    FAILED = "failed"


class Outcome(BaseModel):
    """What became of one target: an environment, or a whole host that could not be asked."""

    target: str
    result: Result
    detail: str = ""
    lease: Lease | None = None

    @property
    def is_bad(self) -> bool:
        """Whether it is not known to be as it was wished, or to become so."""
        return self.result in (Result.FAILED, Result.UNKNOWN, Result.UNWRITTEN)

    @property
    def is_left(self) -> bool:
        """Whether it will be as it was wished, but is not yet."""
        return self.result in (Result.LEASED, Result.HELD, Result.UNDER_WAY)


class Past(BaseModel):
    """What a fleet remembers: leases, the oldest first, and who could not be asked."""

    leases: tuple[PastLease, ...]
    problems: tuple[Outcome, ...] = ()
    complete: bool = True
    """False if a host had more to tell than fits into an answer."""


Change = (
    CordonRequest
    | UncordonRequest
    | ClearRequest
    | RebuildRequest
    | UnholdRequest
    | AutoholdRequest
)
Told = Callable[[Chosen, Sequence[Outcome]], None]


async def change(
    endpoints: Sequence[Endpoint],
    chosen: Sequence[Chosen],
    request: Callable[[tuple[str, ...]], Change],
    tell: Told,
) -> tuple[Outcome, ...]:
    """Ask each chosen host for the `request` about its environments (none: about all of it).

    `tell` is called as soon as a host has answered, or failed to. A host that could not be asked
    before is not asked again.
    """

    async def asked(one: Chosen) -> Sequence[Outcome]:
        try:
            outcomes = _outcomes(await _changed(endpoints, one, request(one.asked_for)))
        except TestenvError as error:
            outcomes = failures(one, str(error))
        tell(one, outcomes)
        return outcomes

    found = await asyncio.gather(*map(asked, chosen))
    return tuple(chain.from_iterable(found))


async def history(
    endpoints: Sequence[Endpoint], chosen: Sequence[Chosen], lease: str, limit: int
) -> Past:
    """At most `limit` leases of what is chosen: those that run, then the newest.

    `lease`: only those whose id begins so.
    """

    async def asked(one: Chosen) -> History | tuple[Outcome, ...]:
        request = HistoryRequest(environments=one.asked_for, lease=lease, limit=limit)
        try:
            one.view.must_answer()
            return await ask(endpoints, one.view, request, History, HISTORY_TIMEOUT_S)
        except TestenvError as error:
            return failures(one, str(error))

    answers = await asyncio.gather(*map(asked, chosen))
    told = [answer for answer in answers if isinstance(answer, History)]
    problems = chain.from_iterable(each for each in answers if not isinstance(each, History))
    leases = sorted(
        chain.from_iterable(each.leases for each in told),
        key=lambda lease: (lease.ended is None, lease.granted),
    )
    return Past(
        leases=tuple(sorted(leases[-limit:], key=lambda lease: lease.granted)),
        problems=tuple(problems),
        complete=all(each.complete for each in told),
    )


def failures(chosen: Chosen, why: str) -> tuple[Outcome, ...]:
    """The host could not be asked about what is chosen of it."""
    targets = chosen.asked_for or (chosen.host,)
    return tuple(Outcome(target=each, result=Result.FAILED, detail=why) for each in targets)


async def _changed(endpoints: Sequence[Endpoint], one: Chosen, request: Change) -> Changes:
    one.view.must_answer()
    return await ask(endpoints, one.view, request, Changes)


def _outcomes(changes: Changes) -> tuple[Outcome, ...]:
    results = {
        **dict.fromkeys(changes.changed, Result.DONE),
        **dict.fromkeys(changes.unchanged, Result.UNCHANGED),
    }
    if not changes.written:
        results = dict.fromkeys(results, Result.UNWRITTEN)
    detail = "" if changes.written else _UNWRITTEN
    return tuple(Outcome(target=each, result=results[each], detail=detail) for each in results)
