"""What an agent tells about itself: the answer to an operator's question over `host.<name>`."""

from datetime import datetime
from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict

from schemas.names import UNVERIFIED


class _Wire(BaseModel):
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


class Lease(_Wire):
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


class EnvironmentReport(_Wire):
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
    labels: tuple[str, ...] = ()
    lease: Lease | None = None
    lease_state: str = ""
    """The lease as the host sees it: offered, active, suspect or ending; empty in version 1."""


class HostReport(_Wire):
    host: str
    version: str
    pid: int
    started: datetime
    """UTC."""
    draining: bool = False
    environments: tuple[EnvironmentReport, ...] = ()


class OperatorRequest(_Wire):
    """What `testenv` asks of an agent.

    `revoke` names an environment or a lease in `target`; its answer is a Revoked.
    """

    op: Literal["status", "revoke"]
    target: str = ""
    reason: str = ""


class Revoked(_Wire):
    """The lease whose client is being told to end its command."""

    lease: Lease
