"""Operators' commands: the agent's side of the function `host.<name>`."""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

from pydantic import ValidationError

from hosts.admission import Admission, Bar
from hosts.archive import Archive, Shelf
from hosts.chronicle import read_leases
from hosts.holds import Holds
from hosts.journal import Journal
from hosts.rebuild import Workshop
from hosts.slot import Slot
from schemas.control import (
    MAX_ANSWER,
    REQUESTS,
    AutoholdRequest,
    Changes,
    ClearRequest,
    ConsoleRequest,
    ConsolesRequest,
    CordonRequest,
    Held,
    History,
    HistoryRequest,
    HoldRequest,
    OperatorRequest,
    PastLease,
    RebuildRequest,
    Revoked,
    RevokeRequest,
    StatusRequest,
    UncordonRequest,
    UnholdRequest,
)
from schemas.errors import HostError
from schemas.plan import Environment
from schemas.status import HostReport, Wire


class Operated(Protocol):
    """What operators look at and act on: the agent."""

    @property
    def host(self) -> str: ...

    @property
    def slots(self) -> Sequence[Slot]: ...

    @property
    def admissions(self) -> Mapping[str, Admission]:
        """By environment."""

    @property
    def holds(self) -> Holds: ...

    def add(self, env: Environment) -> None:
        """Make and offer one more, which nobody knew of."""

    def report(self) -> HostReport:
        """The agent and its environments as they are now."""


class Control:
    """Does what operators ask for. Everything may be asked for again, and is then done already."""

    def __init__(
        self,
        agent: Operated,
        journal: Journal,
        archive: Archive | None = None,
        workshop: Workshop | None = None,
    ) -> None:
        """`archive`, `workshop`: None where the environments are not ours."""
        self._agent = agent
        self._journal = journal
        self._archive = archive
        self._workshop = workshop

    async def answer(self, arguments: bytes) -> bytes:
        """The answer to an OperatorRequest. Raises HostError or ConfigError for one that can't be
        done."""
        answer = await self._do(_parsed(arguments))
        return answer.model_dump_json().encode()

    async def _do(self, request: OperatorRequest) -> Wire:
        match request:
            case StatusRequest():
                return self._agent.report()
            case RevokeRequest():
                return self._revoke(request.target, request.reason)
            case CordonRequest():
                return await self.cordon(request.environments, request.reason)
            case UncordonRequest():
                return await self.uncordon(request.environments)
            case ClearRequest():
                return self._clear(request.environments)
            case RebuildRequest():
                return await self._rebuild(request)
            case HoldRequest():
                return await self._hold(request)
            case UnholdRequest():
                return self._unhold(request.environments)
            case AutoholdRequest():
                return await self._autohold(request)
            case HistoryRequest():
                return await self._history(request)
            case ConsolesRequest():
                return await self._read(
                    request.environment,
                    lambda archive, shelf: archive.consoles(shelf, request.lease),
                )
            case ConsoleRequest():
                return await self._read(
                    request.environment, lambda archive, shelf: archive.piece(shelf, request)
                )

    async def cordon(self, environments: Iterable[str] = (), reason: str = "") -> Changes:
        """Admit no new lease to `environments`, or none at all; returns once that is journalled.

        Raises HostError for an unknown one, and then nothing is changed.
        """
        chosen = self._chosen(environments)
        changed = [
            env_id
            for env_id, admission in chosen.items()
            if (before := admission.reason(Bar.CORDON)) is None or reason not in ("", before)
        ]
        for env_id in changed:
            chosen[env_id].close(Bar.CORDON, reason)
        await asyncio.gather(*(self._journal.cordon(env_id, reason) for env_id in changed))
        return self._changes(chosen, changed)

    async def uncordon(self, environments: Iterable[str] = ()) -> Changes:
        """Admit leases again; otherwise as `cordon`."""
        chosen = self._chosen(environments)
        changed = [
            env_id
            for env_id, admission in chosen.items()
            if admission.reason(Bar.CORDON) is not None
        ]
        for env_id in changed:
            chosen[env_id].open(Bar.CORDON)
        await asyncio.gather(*(self._journal.uncordon(env_id) for env_id in changed))
        return self._changes(chosen, changed)

    def _clear(self, environments: Iterable[str]) -> Changes:
        chosen = self._chosen(environments)
        changed = [slot.id for slot in self._agent.slots if slot.id in chosen and slot.clear()]
        return self._changes(chosen, changed)

    async def _hold(self, request: HoldRequest) -> Held:
        self._chosen([request.environment])
        slots = [slot for slot in self._agent.slots if slot.id == request.environment]
        if not slots:
            raise HostError(f"{request.environment} is being removed, or only just added")
        return await slots[0].hold(request)

    def _unhold(self, environments: Iterable[str]) -> Changes:
        chosen = self._chosen(environments)
        changed = [slot.id for slot in self._agent.slots if slot.id in chosen and slot.unhold()]
        return self._changes(chosen, changed)

    async def _autohold(self, request: AutoholdRequest) -> Changes:
        host = self._agent.host
        is_new = await self._agent.holds.autohold(request.rule)
        return self._changes([host], [host] if is_new else [])

    async def _rebuild(self, request: RebuildRequest) -> Changes:
        """Whole hosts get what is new in the plan, too."""
        if self._workshop is None:
            raise HostError(
                f"{self._agent.host} offers what others have made",
                remedy="rebuild it as it was made",
            )
        self._chosen(request.environments)
        plan = await asyncio.to_thread(self._workshop.replan)
        chosen = self._chosen(request.environments)
        added = [
            env
            for env in plan.environments
            if not request.environments and env.id not in self._agent.admissions
        ]
        for env in added:
            self._agent.add(env)
        changed = [
            slot.id
            for slot in self._agent.slots
            if slot.id in chosen and slot.rebuild(plan.environment(slot.id), request.reason)
        ]
        return Changes(
            changed=(*changed, *(env.id for env in added)),
            unchanged=tuple(env_id for env_id in chosen if env_id not in changed),
        )

    def _revoke(self, target: str, reason: str) -> Revoked:
        for slot in self._agent.slots:
            lease = slot.lease
            if lease and target in (slot.id, lease.id):
                if not slot.revoke(reason):
                    raise HostError(
                        f"lease {lease.id} of {slot.id}: its client speaks version 1",
                        remedy="it can't be told to end: end its job",
                    )
                return Revoked(lease=lease)
        raise HostError(
            f"{self._agent.host} has no lease {target}, and none runs in such an environment"
        )

    async def _history(self, request: HistoryRequest) -> History:
        records = await asyncio.to_thread(
            read_leases,
            self._journal.path,
            environments=request.environments,
            lease=request.lease,
            limit=request.limit,
        )
        leases = [PastLease.model_validate(record._asdict()) for record in records]
        return _fitting(leases)

    async def _read(self, env_id: str, look: Callable[[Archive, Shelf], Wire]) -> Wire:
        """What `look` finds in the archive, on another thread. Raises HostError."""
        self._chosen([env_id])
        if self._archive is None:
            raise HostError(f"{self._agent.host} offers what others have made: no console is kept")
        leases = (slot.lease for slot in self._agent.slots if slot.id == env_id)
        running = next((lease.id for lease in leases if lease), None)
        try:
            return await asyncio.to_thread(look, self._archive, Shelf(env_id, running))
        except OSError as exc:
            raise HostError(f"the consoles can't be read: {exc.strerror}") from exc

    def _chosen(self, environments: Iterable[str]) -> dict[str, Admission]:
        """The admissions of `environments`, or all. Raises HostError for an unknown one."""
        admissions = self._agent.admissions
        wanted = tuple(environments) or tuple(admissions)
        if unknown := [env_id for env_id in wanted if env_id not in admissions]:
            raise HostError(f"{self._agent.host} has no environment {', '.join(unknown)}")
        return {env_id: admissions[env_id] for env_id in wanted}

    def _changes(self, chosen: Iterable[str], changed: Sequence[str]) -> Changes:
        return Changes(
            changed=tuple(changed),
            unchanged=tuple(env_id for env_id in chosen if env_id not in changed),
            written=not self._journal.pending,
        )


def _parsed(arguments: bytes) -> OperatorRequest:
    try:
        return REQUESTS.validate_json(arguments)
    except ValidationError as exc:
        found = exc.errors()[0]
        if found["type"] == "union_tag_invalid":
            raise HostError(
                f"this agent knows no request {found['ctx']['tag']!r}",
                remedy="it is older than your testenv: upgrade it",
            ) from exc
        raise HostError(
            f"operator request not understood: {found['msg']}",
            remedy="is this agent older than your testenv?",
        ) from exc


def _fitting(leases: Sequence[PastLease]) -> History:
    """As many of the newest as one answer can hold."""
    left, first = MAX_ANSWER, len(leases)
    while first and (left := left - len(leases[first - 1].model_dump_json().encode()) - 1) > 0:
        first -= 1
    return History(leases=tuple(leases[first:]), complete=not first)
