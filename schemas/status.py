"""What an agent tells about itself and its environments (schemas/control.py has the questions)."""

from datetime import datetime
from enum import StrEnum

from pydantic import BaseModel, ConfigDict

from schemas.names import UNVERIFIED
from schemas.terms import Terms


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
