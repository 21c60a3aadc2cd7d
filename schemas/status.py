"""What an agent tells about itself and its environments (schemas/control.py has the questions)."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from schemas.legs import MAX_HOLD_S
from schemas.lock import for_people
from schemas.names import UNVERIFIED
from schemas.terms import Terms

AUTOHOLD_ID = r"^[A-Za-z0-9-]{1,32}$"

MAX_AUTOHOLD = 1000
"""Environments that one rule may hold on a host."""

Reason = Annotated[str, AfterValidator(for_people)]
"""For jobs, people and the journal."""


class Wire(BaseModel):
    """Messages ignore unknown keys, so that a newer peer can say more."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class EnvState(StrEnum):
    """Where an environment is in its life. Cordoned is a separate flag, not a state."""

    BUILDING = "building"
    """Being made from the plan."""
    READY = "ready"
    """Offered: the only state in which it is registered with a broker."""
    LEASED = "leased"
    """A lease runs."""
    DIRTY = "dirty"
    """A lease has ended; turnover is at work."""
    HELD = "held"
    """Kept as its last job left it, for a person."""
    BROKEN = "broken"
    """Cannot be offered; `reason` says why. It is built again after a while."""
    QUARANTINED = "quarantined"
    """Failed too often, or its leases did; not offered until an operator clears it."""


class Lease(Wire):
    """The right that a granted request gives."""

    id: str
    environment: str
    generation: int
    """Counts this environment's grants; a lease of an older generation has no rights."""
    holder: str
    """Who asked, as the client put it; for people, not proof."""
    submitter: str = UNVERIFIED
    """Who asked, as the broker has verified (docs/security.md): `job/ci-7`, or `unverified`."""
    granted: datetime
    """UTC."""
    timeout_s: float
    """The client stops its command this long after `granted`; the agent frees a margin later."""


class Hold(Wire):
    """An environment that is kept as it is, for a person to look at. Times are UTC."""

    for_s: float
    """How long, from `since`."""
    since: datetime | None = None
    """None until it begins: a lease still runs there, or it is being made."""
    until: datetime | None = None
    """When it ends by itself."""
    reason: Reason = ""
    asked_by: Reason = ""
    """A person, the client of the job, or an autohold."""
    lease: str = ""
    """The lease whose leavings these are; empty if it was turned over since."""
    job: str = ""
    """That lease's, as its client named it."""
    holder: Reason = ""
    """The person who has its credentials; empty while nobody has."""
    connected: bool = False
    """Whether its seed can be reached from outside."""


class Autohold(Wire):
    """Hold what the next `left` failing jobs leave on this host."""

    id: Annotated[str, StringConstraints(pattern=AUTOHOLD_ID)]
    job: Reason
    """A glob for the job's name."""
    left: int = Field(ge=0, le=MAX_AUTOHOLD)
    for_s: float = Field(gt=0, le=MAX_HOLD_S)
    reason: Reason = ""
    asked_by: Reason = ""


class EnvironmentReport(Wire):
    id: str
    state: EnvState
    reason: str = ""
    """Why it is BROKEN, or what delays it."""
    since_s: float = 0
    """Seconds in this state."""
    cordoned: bool = False
    """Whether an operator has it not offered."""
    cordon_reason: str = ""
    withdrawn: str = ""
    """Why its host does not offer it for now: the host is not well. Empty if it is."""
    rebuilding: bool = False
    """Whether an operator has it made anew: once no lease runs in it, or right now."""
    rebuild_reason: str = ""
    offered: bool = False
    """Whether a broker may still give it a request, which a cordon withdraws in a moment."""
    labels: tuple[str, ...] = ()
    lease: Lease | None = None
    lease_state: str = ""
    """The lease as the host sees it: offered, active, suspect or ending; empty in version 1."""
    hold: Hold | None = None
    """That it is held, or will be when its lease has ended."""


class HostReport(Wire):
    host: str
    version: str
    pid: int
    started: datetime
    """UTC."""
    draining: bool = False
    """Whether the agent is about to end (SIGTERM)."""
    ends_within_s: float = Terms().ttl_s + Terms().margin_s
    """A lease whose client is told to end is over this soon, whatever that client does."""
    environments: tuple[EnvironmentReport, ...] = ()
    autoholds: tuple[Autohold, ...] = ()
