"""A connection as the exchange sees it: who it is, what it offers, holds and waits for."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from broker.server.access import Identity
from broker.wire import response

if TYPE_CHECKING:
    from broker.server.job import Job

Write = Callable[[bytes], None]


class Peer:
    """One per connection; there may be ten thousand, hence the slots.

    `write` takes whole packets or lines; what is written while one event is handled goes out in
    one piece. It never blocks, and does nothing once the connection has ended.
    """

    __slots__ = (
        "asleep",
        "client_id",
        "exceptions",
        "functions",
        "identity",
        "number",
        "submitted",
        "working",
        "write",
    )

    def __init__(self, number: int, identity: Identity, write: Write) -> None:
        self.number = number
        """Shown as the file descriptor in `workers`; unique among live connections."""
        self.identity = identity
        self.write = write
        self.client_id = b"-"
        self.exceptions = False
        """Whether it asked for WORK_EXCEPTION (else it gets WORK_FAIL, as gearmand has it)."""
        self.functions: dict[bytes, float | None] = {}
        """What it offers, with the seconds it allows itself (CAN_DO_TIMEOUT)."""
        self.asleep = False
        self.submitted: dict[Job, None] = {}
        """Foreground jobs whose results it waits for."""
        self.working: dict[bytes, Job] = {}
        """Jobs that it holds, by handle."""

    def __repr__(self) -> str:
        return f"<Peer {self.number} {self.identity.subject} {self.identity.address}>"

    def send(self, kind: int, *fields: bytes) -> None:
        """Write a packet."""
        self.write(response(kind, *fields))
