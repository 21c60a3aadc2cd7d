"""A connection as the exchange sees it: who it is, what it offers, holds and waits for."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from broker.server.access import Identity
from broker.wire import response

if TYPE_CHECKING:
    from broker.server.job import Job
    from broker.server.queue import FunctionQueue

Write = Callable[[bytes], None]


class Peer:
    """One per connection; there may be ten thousand, hence the slots.

    `number` is never given twice. `write` takes whole packets or lines, never blocks, never makes
    a peer leave there and then, and does nothing once the connection has ended; what is written
    while one event is handled goes out in one piece.
    """

    __slots__ = (
        "asleep_at",
        "client_id",
        "exceptions",
        "functions",
        "identity",
        "is_late",
        "number",
        "submitted",
        "woken_for",
        "working",
        "write",
    )

    def __init__(self, number: int, identity: Identity, write: Write) -> None:
        self.number = number
        self.identity = identity
        self.write = write
        self.client_id = b"-"
        self.exceptions = False
        """Whether it asked for WORK_EXCEPTION (else it gets WORK_FAIL, as gearmand has it)."""
        self.functions: dict[FunctionQueue, float | None] = {}
        """What it offers, with the seconds it allows itself (CAN_DO_TIMEOUT)."""
        self.asleep_at: str | None = None
        """The host under which it sleeps; None while it is awake."""
        self.woken_for: FunctionQueue | None = None
        """What it has been called to, and has not grabbed since."""
        self.is_late = False
        """Whether it did not come when it was called last."""
        self.submitted: dict[Job, int] = {}
        """Foreground jobs whose results it waits for, and how many of its submissions joined a
        job that was there already."""
        self.working: dict[bytes, Job] = {}
        """Jobs that it holds, by handle."""

    def __repr__(self) -> str:
        return f"<Peer {self.number} {self.identity.subject} {self.identity.address}>"

    @property
    def owner(self) -> str:
        """Under whose name its jobs go: nobody else may ask about them."""
        return self.identity.subject if self.identity.is_verified else f"#{self.number}"

    @property
    def host(self) -> str:
        """The machine it works on, to be fair over machines: its certificate's subject, or its
        address and the part of its client id before the slash (agents say `<host>/<number>`)."""
        if self.identity.is_verified:
            return self.identity.subject
        name = self.client_id.partition(b"/")[0] if b"/" in self.client_id else b""
        return f"{self.identity.address} {name.decode(errors='replace')}"

    def send(self, kind: int, *fields: bytes) -> None:
        """Write a packet."""
        self.write(response(kind, *fields))
