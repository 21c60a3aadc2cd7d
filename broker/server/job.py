"""A job: from its submission to its end, as the exchange keeps it."""

import secrets
from enum import IntEnum
from typing import TYPE_CHECKING

from broker.protocol import Kind
from broker.wire import response

if TYPE_CHECKING:
    from broker.server.clock import Timer
    from broker.server.peer import Peer

_RANDOM_BYTES = 12
"""16 characters of base64: not to be guessed, and never the same again after a restart."""


_BOOKS = 1024
"""About the bytes that a job takes up beside what its submitter sent."""


class Priority(IntEnum):
    """The protocol's three; lower is sooner."""

    HIGH = 0
    NORMAL = 1
    LOW = 2


def new_handle(subject: str) -> bytes:
    """A job handle, `H:<random>:<subject>`: its last field says who asked.

    No submitter can choose it, and every worker library passes it on: that makes it the broker's
    word for who submitted the job (docs/security.md).
    """
    return f"H:{secrets.token_urlsafe(_RANDOM_BYTES)}:{subject}".encode()


class Job:
    """Queued while `worker` is None; gone from the exchange when it has ended."""

    __slots__ = (
        "arguments",
        "assigned_at",
        "background",
        "denominator",
        "function",
        "group",
        "handle",
        "numerator",
        "owner",
        "priority",
        "queued_at",
        "sequence",
        "submitters",
        "timer",
        "unique",
        "unique_key",
        "worker",
    )

    def __init__(
        self,
        submitter: "Peer",
        function: bytes,
        unique: bytes,
        arguments: bytes,
        *,
        priority: Priority = Priority.NORMAL,
        background: bool = False,
    ) -> None:
        self.handle = new_handle(submitter.identity.subject)
        self.function = function
        self.unique = unique
        self.unique_key = unique_key(submitter, unique, arguments)
        self.arguments = arguments
        self.priority = priority
        self.background = background
        self.owner = submitter.owner
        """Who may ask about it and cancel it. Who has joined it later may ask about it only."""
        self.group = submitter.identity.group
        """Whose limit it counts to."""
        self.submitters: dict[Peer, int] = {} if background else {submitter: 1}
        """Who waits for its result, and how many submissions of each it answers."""
        self.worker: Peer | None = None
        self.numerator = b"0"
        self.denominator = b"0"
        self.sequence = 0
        """Its place among all submissions."""
        self.queued_at = 0.0
        self.assigned_at = 0.0
        self.timer: Timer | None = None
        """Runs while it is with a worker that has given itself a time."""

    def __repr__(self) -> str:
        return f"<Job {self.handle!r} {self.function!r}>"

    @property
    def size(self) -> int:
        """The bytes of memory that it is counted for."""
        return _BOOKS + len(self.function) + len(self.unique) + len(self.arguments)

    def tell(self, kind: Kind, *data: bytes) -> None:
        """Send its submitters a packet, once for each submission. A WORK_EXCEPTION is a WORK_FAIL
        to those that have not asked for exceptions."""
        packet = response(kind, self.handle, *data)
        is_exception = kind is Kind.WORK_EXCEPTION
        plain = response(Kind.WORK_FAIL, self.handle) if is_exception else packet
        for peer, times in self.submitters.items():
            for _ in range(times):
                peer.write(packet if peer.exceptions else plain)


UniqueKey = tuple[str, bytes]


def unique_key(submitter: "Peer", unique: bytes, arguments: bytes) -> UniqueKey | None:
    """What two submissions of a function have in common that are one job; None: there is no other.

    Only one subject's submissions are ever the same. As gearmand has it, the unique id `-` means
    the arguments.
    """
    if not unique:
        return None
    return submitter.identity.subject, arguments if unique == b"-" else unique
