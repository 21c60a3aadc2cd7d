"""What operators ask of an agent over its function `host.<name>`, and what it answers."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Base64Bytes, Field, StringConstraints, TypeAdapter

from schemas.legs import MAX_HOLD_S
from schemas.status import Autohold, Hold, Lease, Reason, Wire

MAX_ANSWER = 512 * 1024
"""Bytes; brokers take packets of at most 1 MiB."""

MAX_PIECE = 256 * 1024
"""Bytes of a console in one answer."""

MAX_HISTORY = 1000
"""Leases in one answer."""

DEFAULT_HOLD_S = 2 * 3600

MAX_AUTOHOLDS = 100
"""Of one host."""

DomainName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
"""Fit for a file's name: no host makes its operator write anywhere else."""


class StatusRequest(Wire):
    """Answered with a HostReport."""

    op: Literal["status"] = "status"


class RevokeRequest(Wire):
    """Have the client of a lease end its command. Answered with a Revoked.

    `target`: the lease's id, or its environment's.
    """

    op: Literal["revoke"] = "revoke"
    target: str
    reason: Reason = ""


class CordonRequest(Wire):
    """Admit no new lease, also after the agent's restart. Answered with Changes.

    `environments`: their ids; all of the host if there are none. Without a reason, one that was
    given before stays.
    """

    op: Literal["cordon"] = "cordon"
    environments: tuple[str, ...] = ()
    reason: Reason = ""


class UncordonRequest(Wire):
    """Admit leases again. Answered with Changes. `environments`: as CordonRequest has them."""

    op: Literal["uncordon"] = "uncordon"
    environments: tuple[str, ...] = ()


class ClearRequest(Wire):
    """Trust what is quarantined or broken again, and build it anew. Answered with Changes.

    `environments`: as CordonRequest has them.
    """

    op: Literal["clear"] = "clear"
    environments: tuple[str, ...] = ()


class RebuildRequest(Wire):
    """Read the configuration again, and make environments anew from it, each when no lease runs in
    it. Answered with Changes, before anything is done, or refused as a whole.

    `environments`: as CordonRequest has them.
    """

    op: Literal["rebuild"] = "rebuild"
    environments: tuple[str, ...] = ()
    reason: Reason = ""


class HoldRequest(Wire):
    """Keep an environment as it is, once no lease runs in it. Answered with a Held.

    `for_s`: from when it is held; None for what it is already, or DEFAULT_HOLD_S. `connect`:
    whether its seed can be reached from outside; None for what is already so. `take`: whether
    `holder` wants its credentials, which ends those that were given before.
    """

    op: Literal["hold"] = "hold"
    environment: str
    holder: Reason
    for_s: float | None = Field(default=None, gt=0, le=MAX_HOLD_S)
    reason: Reason = ""
    connect: bool | None = None
    take: bool = False


class UnholdRequest(Wire):
    """Turn over, and offer again, what is held, or do not hold it. Answered with Changes.

    `environments`: as CordonRequest has them.
    """

    op: Literal["unhold"] = "unhold"
    environments: tuple[str, ...] = ()


class AutoholdRequest(Wire):
    """Hold what failing jobs leave, or, where `rule.left` is 0, do not any more. Answered with
    Changes, of the host. A rule of the same id is replaced."""

    op: Literal["autohold"] = "autohold"
    rule: Autohold


class HistoryRequest(Wire):
    """At most `limit` leases: those that run, then the newest. Answered with a History.

    `environments`: only of these, where any are named. `lease`: only those whose id begins so.
    """

    op: Literal["history"] = "history"
    environments: tuple[str, ...] = ()
    lease: str = ""
    limit: int = Field(default=MAX_HISTORY, ge=1, le=MAX_HISTORY)


class ConsolesRequest(Wire):
    """Whose consoles are there? Answered with Consoles.

    `lease`: an id, or its beginning; without it the one that runs, else the last that is kept.
    """

    op: Literal["consoles"] = "consoles"
    environment: str
    lease: str = ""


class ConsoleRequest(Wire):
    """A piece of one console, MAX_PIECE at most. Answered with a ConsolePiece."""

    op: Literal["console"] = "console"
    environment: str
    lease: str
    domain: str
    offset: int = Field(default=0, ge=0)


OperatorRequest = Annotated[
    StatusRequest
    | RevokeRequest
    | CordonRequest
    | UncordonRequest
    | ClearRequest
    | RebuildRequest
    | HoldRequest
    | UnholdRequest
    | AutoholdRequest
    | HistoryRequest
    | ConsolesRequest
    | ConsoleRequest,
    Field(discriminator="op"),
]

REQUESTS: TypeAdapter[OperatorRequest] = TypeAdapter(OperatorRequest)
"""Reads a request."""


class Revoked(Wire):
    """The lease whose client is being told to end its command."""

    lease: Lease


class Changes(Wire):
    """What a request has done to which environments."""

    changed: tuple[str, ...] = ()
    unchanged: tuple[str, ...] = ()
    """They were already as was asked for."""
    written: bool = True
    """False if it is in force, but not on the host's disk, and lost with the agent."""


class Held(Wire):
    """What has become of a HoldRequest. `data_file`: its JSON text, if that was asked for and the
    environment is held by now."""

    hold: Hold
    data_file: str | None = None


class PastLease(Lease):
    """A lease as its host's journal has it."""

    job: str = ""
    """The client's name for its job."""
    version: int = 2
    """Of the lock protocol."""
    ended: datetime | None = None
    """UTC; None while it runs."""
    reason: str = ""
    """How it ended."""
    exit_code: int | None = None
    """Its command's, where that is known."""


class History(Wire):
    """Leases, the oldest first."""

    leases: tuple[PastLease, ...] = ()
    complete: bool = True
    """False if older ones were left out, because the answer would have been too long."""


class Consoles(Wire):
    """The consoles of one lease. `sizes`: bytes, by domain; they grow while the lease `runs`."""

    lease: str
    runs: bool
    sizes: dict[DomainName, int]


class ConsolePiece(Wire):
    """As the domain wrote it; empty at the end."""

    data: Base64Bytes
