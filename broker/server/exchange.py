"""The heart of the broker: peers, functions, jobs, and the rules between them.

No sockets here, and no clock of its own: calls come from `requests` and `text`, packets go out
through `Peer.write`. The rules beyond the Gearman protocol:

- A job is its worker's: nobody else reports on it or ends it.
- It is its submitter's: nobody else asks about it or cancels it, but for operators.
- A worker that leaves fails its jobs at once; a queued job whose submitters have all left is gone.
- Names that nobody serves or waits for are forgotten.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple, Protocol

from broker.protocol import Kind
from broker.server.clock import Clock
from broker.server.dispatch import Dispatcher
from broker.server.job import Job, Priority, UniqueKey, unique_key
from broker.server.peer import Peer
from broker.server.queue import FunctionQueue, FunctionView
from broker.server.refusal import Breach, Refusal
from schemas.broker import LimitsSection
from schemas.names import LOCK_FUNCTION

ENDS = {
    Kind.WORK_COMPLETE: "complete",
    Kind.WORK_FAIL: "fail",
    Kind.WORK_EXCEPTION: "exception",
}
"""The packets that end a job, and what metrics call that."""

_EXCLUSIVE = (b"host.", b"lease_", b"callback_")
"""Functions that one subject offers at a time: who has such a name is meant in person."""


class Observer(Protocol):
    """Who counts what happens."""

    def assigned(self, function: bytes, waited_s: float) -> None:
        """A job has got a worker."""

    def ended(self, function: bytes, held_s: float, outcome: str) -> None:
        """A worker's job is over: `complete`, `fail`, `exception`, `worker_lost`, `timeout`."""


class NullObserver:
    """Nobody counts."""

    def assigned(self, function: bytes, waited_s: float) -> None:
        """See Observer."""

    def ended(self, function: bytes, held_s: float, outcome: str) -> None:
        """See Observer."""


class JobState(NamedTuple):
    """What the broker tells of a job: how far it is, or its place in the queue and its length."""

    running: bool
    numerator: bytes
    denominator: bytes
    submitters: int


class Exchange:
    """All methods are to be called in the clock's event loop; none blocks."""

    def __init__(
        self,
        clock: Clock,
        limits: LimitsSection,
        *,
        wake_timeout_s: float = 0.25,
        observer: Observer | None = None,
    ) -> None:
        self.limits = limits
        self.draining = False
        """Whether new lock requests are refused."""
        self._clock = clock
        self._observer = observer or NullObserver()
        self._dispatcher = Dispatcher(clock, wake_timeout_s)
        self._peers: dict[int, Peer] = {}
        self._queues: dict[bytes, FunctionQueue] = {}
        self._jobs: dict[bytes, Job] = {}
        self._uniques: dict[UniqueKey, dict[bytes, Job]] = {}
        self._queued_by: dict[str, int] = {}
        self._submissions = 0

    @property
    def peers(self) -> Mapping[int, Peer]:
        """All connections, by number."""
        return self._peers

    @property
    def is_idle(self) -> bool:
        """Whether no job is queued or running."""
        return not self._jobs

    def functions(self) -> Iterator[FunctionView]:
        """All functions that somebody serves, waits for, or has set up."""
        now = self._clock.time()
        return (queue.view(now) for queue in self._queues.values())

    # Connections

    def join(self, peer: Peer) -> None:
        """A connection is there."""
        self._peers[peer.number] = peer

    def leave(self, peer: Peer) -> None:
        """It has ended, for whatever reason. No effect if it is not there."""
        if self._peers.pop(peer.number, None) is None:
            return
        self.reset_abilities(peer)
        for job in list(peer.working.values()):
            self._end(job, Kind.WORK_FAIL, (), "worker_lost")
        for job in list(peer.submitted):
            self._abandon(job, peer)

    # Working

    def can_do(self, peer: Peer, function: bytes, timeout_s: float | None = None) -> None:
        """`peer` offers `function`. Raises Breach."""
        if not peer.identity.may_register(function):
            raise Breach("REGISTER_REFUSED", f"{_show(function)} is not yours to register")
        queue = self._queues.get(function)
        if queue and queue.owner not in (None, peer.identity.subject):
            raise Breach("REGISTER_REFUSED", f"{_show(function)} is another's")
        if queue in peer.functions:
            peer.functions[queue] = timeout_s
            return
        if len(peer.functions) >= self.limits.functions_per_connection:
            most = self.limits.functions_per_connection
            raise Breach("LIMIT_EXCEEDED", f"more than {most} functions on one connection")
        queue = queue or self._queue(function)
        if function.startswith(_EXCLUSIVE) and peer.identity.is_verified:
            queue.owner = peer.identity.subject
        queue.workers[peer] = None
        peer.functions[queue] = timeout_s
        self._dispatcher.add_function(peer, queue)

    def cant_do(self, peer: Peer, function: bytes) -> None:
        """`peer` takes `function` back; a job of it that it holds stays with it."""
        if (queue := self._queues.get(function)) in peer.functions:
            self._withdraw(peer, queue)

    def reset_abilities(self, peer: Peer) -> None:
        """`peer` takes all its functions back."""
        for queue in list(peer.functions):
            self._withdraw(peer, queue)

    def sleep(self, peer: Peer) -> None:
        """`peer` waits to be woken (NOOP) for a job."""
        self._dispatcher.sleep(peer)

    def grab(self, peer: Peer) -> Job | None:
        """Give `peer` the most urgent, then oldest job that it can do, or None."""
        self._dispatcher.rouse(peer)
        called_to = self._dispatcher.arrive(peer)
        heads = [job for queue in peer.functions if (job := queue.head())]
        job = min(heads, key=lambda head: (head.priority, head.sequence), default=None)
        if job:
            self._assign(job, peer)
        if called_to:
            self._dispatcher.stir(called_to)
        return job

    def report(self, peer: Peer, kind: Kind, handle: bytes, data: tuple[bytes, ...]) -> None:
        """Relay WORK_DATA, WORK_WARNING or WORK_STATUS. Raises Refusal if the job is not its."""
        job = self._held(peer, handle)
        if kind is Kind.WORK_STATUS:
            job.numerator, job.denominator = data
        for submitter in job.submitters:
            submitter.send(kind, handle, *data)

    def finish(self, peer: Peer, kind: Kind, handle: bytes, data: tuple[bytes, ...]) -> None:
        """End a job with one of ENDS. Raises Refusal if the job is not its."""
        self._end(self._held(peer, handle), kind, data, ENDS[kind])

    # Submitting

    def submit(
        self,
        peer: Peer,
        function: bytes,
        unique: bytes,
        arguments: bytes,
        *,
        priority: Priority = Priority.NORMAL,
        background: bool = False,
    ) -> Job:
        """Queue a job, or join the one that is the same already. Raises Refusal.

        `peer` is told the job's handle before anything else is said of it.
        """
        self._check_submission(peer, function, background=background)
        key = unique_key(peer, unique, arguments)
        if key and (twin := self._uniques.get(key, {}).get(function)):
            peer.send(Kind.JOB_CREATED, twin.handle)
            self._join(twin, peer, background=background)
            return twin
        job = Job(peer, function, unique, arguments, priority=priority, background=background)
        queue = self._queue(function)
        try:
            self._check_room(peer, queue, priority)
        except Refusal:
            self._forget_if_unused(queue)
            raise
        self._submissions += 1
        job.sequence = self._submissions
        job.queued_at = self._clock.time()
        self._jobs[job.handle] = job
        if key:
            self._uniques.setdefault(key, {})[function] = job
        if not background:
            peer.submitted[job] = None
        self._count(job, +1)
        queue.append(job)
        peer.send(Kind.JOB_CREATED, job.handle)
        self._dispatcher.stir(queue)
        return job

    def state(self, peer: Peer, handle: bytes) -> JobState | None:
        """How a job is; None if there is none, or it is not `peer`'s to know."""
        job = self._jobs.get(handle)
        return self._state(job) if job and self._is_privy(peer, job) else None

    def state_of_unique(self, peer: Peer, unique: bytes) -> JobState | None:
        """The same, of the newest of the subject's jobs with that unique id."""
        jobs = self._uniques.get((peer.identity.subject, unique))
        job = next(reversed(jobs.values())) if jobs else None
        return self._state(job) if job and self._is_privy(peer, job) else None

    def cancel(self, peer: Peer, handle: bytes) -> None:
        """Take a queued job back; its submitters get WORK_FAIL. Raises Refusal."""
        job = self._jobs.get(handle)
        if job is None or not self._is_privy(peer, job):
            raise Refusal("UNKNOWN_JOB", "There is no such job")
        if job.worker:
            raise Refusal("JOB_IS_RUNNING", "Only a queued job can be cancelled")
        for submitter in job.submitters:
            submitter.send(Kind.WORK_FAIL, handle)
        self._drop_queued(job)

    # Looking after it

    def jobs(self) -> Iterator[Job]:
        """All jobs, in the order of their submission."""
        return iter(self._jobs.values())

    def limit_queue(self, function: bytes, limits: Mapping[Priority, int]) -> None:
        """Allow at most so many queued jobs of a function; no limits at all: an empty mapping."""
        queue = self._queue(function)
        queue.limits = dict(limits)
        self._forget_if_unused(queue)

    def create_function(self, function: bytes) -> None:
        """Know a function although nobody uses it yet."""
        self._queue(function).pinned = True

    def drop_function(self, function: bytes) -> bool:
        """Forget it, limits and all. False if it is in use."""
        queue = self._queue(function)
        queue.pinned = False
        queue.limits = {}
        self._forget_if_unused(queue)
        return function not in self._queues

    # Inside

    def _queue(self, function: bytes) -> FunctionQueue:
        queue = self._queues.get(function)
        if queue is None:
            queue = self._queues[function] = FunctionQueue(function)
        return queue

    def _forget_if_unused(self, queue: FunctionQueue) -> None:
        if not queue.workers:
            queue.owner = None
        if queue.is_forgettable:
            self._queues.pop(queue.name, None)

    def _withdraw(self, peer: Peer, queue: FunctionQueue) -> None:
        self._dispatcher.remove_function(peer, queue)
        del queue.workers[peer]
        del peer.functions[queue]
        self._forget_if_unused(queue)

    def _held(self, peer: Peer, handle: bytes) -> Job:
        job = peer.working.get(handle)
        if job is None:
            raise Refusal("JOB_NOT_FOUND", "Job given in work result not found")
        return job

    def _is_privy(self, peer: Peer, job: Job) -> bool:
        return peer.identity.operator or peer.owner == job.owner or peer in job.submitters

    def _state(self, job: Job) -> JobState:
        if job.worker:
            return JobState(True, job.numerator, job.denominator, len(job.submitters))
        queue = self._queues[job.function]
        place, length = b"%d" % queue.place(job), b"%d" % queue.queued
        return JobState(False, place, length, len(job.submitters))

    def _check_submission(self, peer: Peer, function: bytes, *, background: bool) -> None:
        if not peer.identity.may_invoke(function):
            raise Refusal("NOT_PERMITTED", f"{_show(function)} is not yours to ask for")
        if not _is_lock(function):
            return
        if self.draining:
            raise Refusal("DRAINING", "This broker is about to stop and takes no lock requests")
        if background:
            raise Refusal("NO_BACKGROUND", "A lock request needs a client that waits for it")

    def _check_room(self, peer: Peer, queue: FunctionQueue, priority: Priority) -> None:
        most = self.limits.queued_per_subject
        if self._queued_by.get(peer.identity.group, 0) >= most:
            raise Breach("LIMIT_EXCEEDED", f"more than {most} queued jobs of {peer.identity.group}")
        if queue.is_full(priority):
            raise Refusal("JOB_QUEUE_FULL", "Job queue is full")

    def _join(self, job: Job, peer: Peer, *, background: bool) -> None:
        if background:
            job.background = True
        else:
            job.submitters.append(peer)
            peer.submitted[job] = None

    def _count(self, job: Job, change: int) -> None:
        """Keep count of the queued jobs of each subject."""
        count = self._queued_by.get(job.group, 0) + change
        if count:
            self._queued_by[job.group] = count
        else:
            del self._queued_by[job.group]

    def _assign(self, job: Job, peer: Peer) -> None:
        queue = self._queues[job.function]
        queue.remove(job)
        self._count(job, -1)
        queue.running += 1
        job.worker = peer
        job.assigned_at = self._clock.time()
        peer.working[job.handle] = job
        if timeout_s := peer.functions[queue]:
            job.timer = self._clock.call_later(timeout_s, self._time_out, job)
        self._observer.assigned(job.function, job.assigned_at - job.queued_at)

    def _time_out(self, job: Job) -> None:
        """A worker has not kept its own time (CAN_DO_TIMEOUT)."""
        job.timer = None
        self._end(job, Kind.WORK_FAIL, (), "timeout")

    def _end(self, job: Job, kind: Kind, data: tuple[bytes, ...], outcome: str) -> None:
        """End a job that has a worker, and tell who waits for it."""
        for submitter in job.submitters:
            if kind is Kind.WORK_EXCEPTION and not submitter.exceptions:
                submitter.send(Kind.WORK_FAIL, job.handle)
            else:
                submitter.send(kind, job.handle, *data)
        if job.worker:
            del job.worker.working[job.handle]
        if job.timer:
            job.timer.cancel()
        queue = self._queues[job.function]
        queue.running -= 1
        self._observer.ended(job.function, self._clock.time() - job.assigned_at, outcome)
        self._forget_job(job)

    def _abandon(self, job: Job, peer: Peer) -> None:
        """`peer` waits for it no more; a running job goes on, as its worker can't be told."""
        del peer.submitted[job]
        job.submitters = [other for other in job.submitters if other is not peer]
        if not (job.submitters or job.worker or job.background):
            self._drop_queued(job)

    def _drop_queued(self, job: Job) -> None:
        self._queues[job.function].remove(job)
        self._count(job, -1)
        self._forget_job(job)

    def _forget_job(self, job: Job) -> None:
        del self._jobs[job.handle]
        if job.unique_key:
            twins = self._uniques[job.unique_key]
            del twins[job.function]
            if not twins:
                del self._uniques[job.unique_key]
        for submitter in job.submitters:
            submitter.submitted.pop(job, None)
        self._forget_if_unused(self._queues[job.function])


def _is_lock(function: bytes) -> bool:
    lock = LOCK_FUNCTION.encode()
    return function == lock or function.startswith(lock + b":")


def _show(function: bytes) -> str:
    """A name for a message."""
    return function[:80].decode(errors="backslashreplace")
