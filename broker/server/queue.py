"""One function: who offers it, who of them sleeps, and which jobs wait for it."""

from bisect import bisect_left
from collections import OrderedDict
from typing import TYPE_CHECKING, NamedTuple

from broker.server.job import Job, Priority
from broker.server.peer import Peer
from broker.server.sleepers import Sleepers

if TYPE_CHECKING:
    from broker.server.clock import Timer


class FunctionView(NamedTuple):
    """A function in numbers. `oldest_queued_s` is 0 when nobody waits."""

    name: bytes
    queued_by_priority: tuple[int, ...]
    running: int
    workers: int
    oldest_queued_s: float

    @property
    def queued(self) -> int:
        """How many jobs wait."""
        return sum(self.queued_by_priority)


def _sequence(job: Job) -> int:
    return job.sequence


class FunctionQueue:
    """Every operation takes the same time however many workers and jobs there are.

    (Strictly, `pop` and `remove` move the rest of a list of pointers: 3 us for 10,000 jobs.)
    """

    __slots__ = (
        "_back_row",
        "_front_row",
        "_lines",
        "limits",
        "name",
        "owner",
        "pinned",
        "running",
        "timer",
        "woken",
        "workers",
    )

    def __init__(self, name: bytes) -> None:
        self.name = name
        self.owner: str | None = None
        """The only subject that may offer it, until nobody does and no job is left for it; None
        if anybody may."""
        self.workers: dict[Peer, None] = {}
        self.running = 0
        self.woken: OrderedDict[Peer, float] = OrderedDict()
        """Who has been called to a job and has not grabbed yet, until when; the first is due
        first."""
        self.timer: Timer | None = None
        """For the first of the woken."""
        self.limits: dict[Priority, int] = {}
        """Most jobs that may wait (admin command `maxqueue`)."""
        self.pinned = False
        """An operator wants it known although nobody uses it."""
        self._lines: tuple[list[Job], ...] = ([], [], [])
        self._front_row = Sleepers()
        self._back_row = Sleepers()
        """Those that did not come when they were called last (`Peer.is_late`)."""

    def __repr__(self) -> str:
        return f"<FunctionQueue {self.name!r}>"

    @property
    def is_used(self) -> bool:
        """Whether anybody serves it or waits for it."""
        return bool(self.workers or self.running or self.queued)

    @property
    def is_kept(self) -> bool:
        """Whether an operator has said anything about it."""
        return bool(self.limits or self.pinned)

    def view(self, now: float) -> FunctionView:
        """It in numbers."""
        oldest = min((line[0].queued_at for line in self._lines if line), default=now)
        lengths = tuple(map(len, self._lines))
        return FunctionView(self.name, lengths, self.running, len(self.workers), now - oldest)

    # Jobs

    @property
    def queued(self) -> int:
        """How many jobs wait."""
        return sum(map(len, self._lines))

    def jobs(self) -> list[Job]:
        """Those that wait, the next one first."""
        return [job for line in self._lines for job in line]

    def is_full(self, priority: Priority) -> bool:
        """Whether an operator's limit forbids another job."""
        limit = self.limits.get(priority)
        return limit is not None and len(self._lines[priority]) >= limit

    def head(self) -> Job | None:
        """The job that is next."""
        return next((line[0] for line in self._lines if line), None)

    def append(self, job: Job) -> None:
        """Queue a job; its `sequence` is higher than all before."""
        self._lines[job.priority].append(job)

    def remove(self, job: Job) -> None:
        """Take a queued job out."""
        line = self._lines[job.priority]
        del line[bisect_left(line, job.sequence, key=_sequence)]

    def place(self, job: Job) -> int:
        """A queued job's place, from 1."""
        ahead = sum(map(len, self._lines[: job.priority]))
        line = self._lines[job.priority]
        return ahead + bisect_left(line, job.sequence, key=_sequence) + 1

    # Sleeping workers

    def add_sleeper(self, peer: Peer, host: str) -> None:
        """`peer`, of `host`, is to be woken for a job of this function."""
        self._row(peer).add(peer, host)

    def remove_sleeper(self, peer: Peer, host: str) -> None:
        """No effect if it does not sleep here."""
        self._row(peer).remove(peer, host)

    def next_sleeper(self) -> Peer | None:
        """Who is to be woken next: of the back row only when nobody else sleeps."""
        return self._front_row.next() or self._back_row.next()

    def _row(self, peer: Peer) -> Sleepers:
        return self._back_row if peer.is_late else self._front_row
