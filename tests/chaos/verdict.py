"""What must be true afterwards, and the figures: from the ledger, the journals and the statuses."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import chain, pairwise
from math import inf
from pathlib import Path
from typing import NamedTuple

from hosts.chronicle import Chronicle, EventRecord, LeaseRecord
from schemas.exits import ExitStatus
from schemas.status import EnvState
from tests.chaos.clients import Request
from tests.chaos.faults import Fault

_DYING_S = 1.0
"""Between a client's SIGKILL and the last sign of its command, on a busy machine."""

REOFFERED_S = 60.0
"""ttl, margin, and the longest faults, of which one may follow the other."""

_GUARDLESS = (Fault.KILL_GUARD, Fault.STOP_GUARD)


class Mark(NamedTuple):
    """A line of the ledger. `boottime` is one clock for all; `at` is the journals'."""

    what: str
    boottime: float
    at: float
    environment: str
    generation: int
    lease: str
    request: str
    pid: int


class Broken(NamedTuple):
    """An invariant that does not hold, and the words with which logs tell of it."""

    kind: str
    what: str
    words: tuple[str, ...] = ()


class Evidence(NamedTuple):
    """All that is known when chaos is over."""

    marks: Sequence[Mark]
    requests: Sequence[Request]
    leases: Sequence[LeaseRecord]
    events: Sequence[EventRecord]

    @classmethod
    def gathered(
        cls, ledger: Path, requests: Sequence[Request], journals: Sequence[Chronicle]
    ) -> "Evidence":
        lines = ledger.read_text().splitlines() if ledger.exists() else []
        return cls(
            sorted((Mark(**json.loads(line)) for line in lines), key=lambda mark: mark.boottime),
            requests,
            [lease for journal in journals for lease in journal.leases],
            [event for journal in journals for event in journal.events],
        )


def broken(evidence: Evidence) -> Iterator[Broken]:
    """Every invariant that does not hold."""
    if not any(mark.what == "end" for mark in evidence.marks):
        yield Broken("proves nothing", "no command has run to its end")
    yield from _double_holds(evidence)
    yield from _generations(evidence)
    yield from _one_each(evidence)
    yield from _posthumous(evidence)
    yield from _lost(evidence)
    yield from _untrue_journals(evidence)
    yield from _kept(evidence)


def _double_holds(evidence: Evidence) -> Iterator[Broken]:
    for mark in evidence.marks:
        if mark.what == "double":
            what = f"{mark.environment} was in use when {mark.request} began"
            yield Broken("double hold", what, (mark.environment, mark.request))


def _generations(evidence: Evidence) -> Iterator[Broken]:
    begun = defaultdict(list)
    for mark in evidence.marks:
        if mark.what == "begin":
            begun[mark.environment].append(mark)
    for environment, marks in begun.items():
        for before, after in pairwise(marks):
            if after.generation <= before.generation:
                what = f"{environment}: {after.generation} came after {before.generation}"
                yield Broken("generation", what, (before.request, after.request))


def _one_each(evidence: Evidence) -> Iterator[Broken]:
    begun = Counter(mark.request for mark in evidence.marks if mark.what == "begin")
    for request, times in begun.items():
        if times > 1:
            yield Broken("two environments", f"{request} got {times}", (request,))


def _posthumous(evidence: Evidence) -> Iterator[Broken]:
    last = {mark.request: mark for mark in evidence.marks}
    for request in evidence.requests:
        if request.killed is None or request.id not in last:
            continue
        late_s = last[request.id].boottime - request.killed
        if late_s > _DYING_S:
            what = f"{request.id}: its command lived {late_s:.1f} s after its client was killed"
            yield Broken("posthumous", what, (request.id,))


def _lost(evidence: Evidence) -> Iterator[Broken]:
    ended = {mark.request for mark in evidence.marks if mark.what == "end"}
    for request in evidence.requests:
        if request.hung:
            yield Broken("request lost", f"{request.id} hung", (request.id,))
        elif request.killed is None and not _is_answered(request, request.id in ended):
            yield Broken("request lost", _account(request), (request.id,))


def _account(request: Request) -> str:
    faults = ", ".join(request.faults) or "nothing"
    return (
        f"{request.id} ({request.manner}, status {request.status}) exited with {request.exited}"
        f" after {request.ended - request.started:.1f} s; struck by: {faults}"
    )


def _is_answered(request: Request, has_ended: bool) -> bool:
    """Whether a client that was not killed has ended as its documentation says."""
    match request.exited:
        case ExitStatus.LEASE_LOST:
            return True
        case ExitStatus.LEASE_TIMEOUT:
            return request.manner == "overlong"
        case ExitStatus.INTERNAL:
            return any(fault in _GUARDLESS for fault in request.faults)
    return has_ended and request.exited == request.status


def _untrue_journals(evidence: Evidence) -> Iterator[Broken]:
    leases = {lease.id: lease for lease in evidence.leases}
    last = {mark.lease: mark for mark in evidence.marks}
    for mark in last.values():
        lease = leases.get(mark.lease)
        words = (mark.request, mark.lease)
        if lease is None:
            yield Broken("journal", f"knows nothing of {mark.lease} ({mark.request})", words)
        elif (lease.environment, lease.generation) != (mark.environment, mark.generation):
            yield Broken("journal", f"has another environment for {mark.lease}", words)
        elif lease.ended and mark.at > _seconds(lease.ended):
            late_s = mark.at - _seconds(lease.ended)
            what = f"{mark.request}: its command lived {late_s:.3f} s after {mark.lease} ended"
            yield Broken("outlived its lease", f"{what}: {lease.reason}", words)


def _kept(evidence: Evidence) -> Iterator[Broken]:
    for seconds in chain(*waits(evidence)):
        if seconds > REOFFERED_S:
            yield Broken("kept", f"an environment was not READY again in {REOFFERED_S:g} s")


class Waits(NamedTuple):
    """How many seconds environments waited to be READY again."""

    from_end: Sequence[float]
    """Since the end of a lease."""
    from_death: Sequence[float]
    """Since its holder was killed, whose guard lived."""
    from_deaths: Sequence[float]
    """Since its holder was killed together with its guard."""


def waits(evidence: Evidence) -> Waits:
    """Of all leases; endless where the environment did not get READY any more."""
    ready, ended = defaultdict(list), []
    for event in evidence.events:
        if event.state == EnvState.READY:
            ready[event.environment].append(_seconds(event.at))
        elif event.state == EnvState.DIRTY:
            ended.append((event.environment, _seconds(event.at)))

    def waited(environment: str, since: float) -> float:
        return min((at for at in ready[environment] if at >= since), default=inf) - since

    deaths = {
        fault: [
            waited(lease.environment, request.killed_at)
            for lease in evidence.leases
            for request in evidence.requests
            if request.id == lease.job and fault in request.faults
            if request.killed_at and _seconds(lease.granted) < request.killed_at
            if lease.ended and request.killed_at < _seconds(lease.ended)
        ]
        for fault in (Fault.KILL_CLIENT, Fault.KILL_BOTH)
    }
    ends = [waited(*end) for end in ended]
    return Waits(ends, deaths[Fault.KILL_CLIENT], deaths[Fault.KILL_BOTH])


def ends(evidence: Evidence) -> Counter[str]:
    """The leases by the reason of their end."""
    return Counter(
        re.sub(r"\d+", "N", lease.reason) if lease.ended else "has not ended"
        for lease in evidence.leases
    )


def _seconds(iso: str) -> float:
    return datetime.fromisoformat(iso).timestamp()
