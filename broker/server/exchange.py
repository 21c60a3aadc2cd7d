"""The heart of the broker: peers, functions, jobs, and the rules between them.

No sockets here, and no clock of its own: calls come from `requests` and `text`, packets go out
through `Peer.write`. The rules beyond the Gearman protocol:

- A job is its worker's: nobody else reports on it or ends it.
- It is its submitter's: nobody else asks about it or cancels it, but for operators. Who joins it
  by its unique id may ask, and can't take it from the first.
- A worker that leaves fails its jobs at once; a queued job whose submitters have all left is gone.
- Names that nobody serves or waits for are forgotten.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple, Protocol

from broker.protocol import DRAINING, UNCERTAIN_LOSS, Kind
from broker.server.clock import Clock
from broker.server.dispatch import Dispatcher
from broker.server.job import Job, Priority, UniqueKey, unique_key
from broker.server.names import is_in_person, is_lock, printable
from broker.server.peer import Peer
from broker.server.queue import FunctionQueue, FunctionView
from broker.server.quota import Quota
from broker.server.refusal import Breach, Refusal
from schemas.broker import LimitsSection

ENDS = {
    Kind.WORK_COMPLETE: "complete",
    Kind.WORK_FAIL: "fail",
    Kind.WORK_EXCEPTION: "exception",
}
"""The packets that end a job, and what metrics call that."""

MAX_KEPT = 1024
"""Functions that operators may have set up or limited at a time: they outlive their use."""


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
        self._quota = Quota()
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

    def leave(self, peer: Peer, *, given_up: bool = False) -> None:
        """It has ended; `given_up`: by us, and it may live. No effect if it is not there."""
        if self._peers.pop(peer.number, None) is None:
            return
        self.reset_abilities(peer)
        for job in list(peer.working.values()):
            if given_up and is_in_person(job.function):
                job.tell(Kind.WORK_WARNING, UNCERTAIN_LOSS)
            self._end(job, Kind.WORK_FAIL, (), "worker_lost")
        for job in list(peer.submitted):
            self._abandon(job, peer)

    # Working

    def can_do(self, peer: Peer, function: bytes, timeout_s: float | None = None) -> None:
        """`peer` offers `function`. Raises Breach."""
        if not peer.identity.may_register(function):
            raise Breach("REGISTER_REFUSED", f"{printable(function)} is not yours to register")
        queue = self._queues.get(function)
        if queue and queue.owner not in (None, peer.identity.subject):
            raise Breach("REGISTER_REFUSED", f"{printable(function)} is another's")
        if queue in peer.functions:
            peer.functions[queue] = timeout_s
            return
        if len(peer.functions) >= self.limits.functions_per_connection:
            most = self.limits.functions_per_connection
            raise Breach("LIMIT_EXCEEDED", f"more than {most} functions on one connection")
        queue = queue or self._queue(function)
        if is_in_person(function) and peer.identity.is_verified:
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
        job.tell(kind, *data)

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
            self._join(twin, peer, background=background)
            return twin
        job = Job(peer, function, unique, arguments, priority=priority, background=background)
        self._quota.check(job.group, job.size, self.limits)
        queue = self._queue(function)
        if queue.is_full(priority):
            raise Refusal("JOB_QUEUE_FULL", "Job queue is full")
        self._submissions += 1
        job.sequence = self._submissions
        job.queued_at = self._clock.time()
        self._jobs[job.handle] = job
        if key:
            self._uniques.setdefault(key, {})[function] = job
        if not background:
            peer.submitted[job] = 0
        self._quota.wait(job.group, +1)
        self._quota.hold(job.group, job.size)
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
        """Take a queued job back; its submitters get WORK_FAIL. Raises Refusal.

        Connections without TLS that share a unique id share the job, as gearmand has it, but only
        the first one may take it back.
        """
        job = self._jobs.get(handle)
        if job is None or not self._is_privy(peer, job):
            raise Refusal("UNKNOWN_JOB", "There is no such job")
        if not self._is_owner(peer, job):
            raise Refusal("NOT_PERMITTED", "Only who submitted the job first can cancel it")
        if job.worker:
            raise Refusal("JOB_IS_RUNNING", "Only a queued job can be cancelled")
        self._drop_queued(job)
        job.tell(Kind.WORK_FAIL)

    # Looking after it

    def jobs(self) -> Iterator[Job]:
        """All jobs, in the order of their submission."""
        return iter(self._jobs.values())

    def limit_queue(self, function: bytes, limits: Mapping[Priority, int]) -> None:
        """Allow at most so many queued jobs of a function; no limits at all: an empty mapping.

        Raises Refusal.
        """
        queue = self._kept(function)
        queue.limits = dict(limits)
        self._forget_if_unused(queue)

    def create_function(self, function: bytes) -> None:
        """Know a function although nobody uses it yet. Raises Refusal."""
        self._kept(function).pinned = True

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

    def _kept(self, function: bytes) -> FunctionQueue:
        """A function that an operator wants to say something about. Raises Refusal."""
        queue = self._queues.get(function)
        if queue and queue.is_kept:
            return queue
        if sum(other.is_kept for other in self._queues.values()) >= MAX_KEPT:
            raise Refusal("TOO_MANY_FUNCTIONS", f"{MAX_KEPT} are set up already: drop some")
        return queue or self._queue(function)

    def _forget_if_unused(self, queue: FunctionQueue) -> None:
        if queue.is_used:
            return
        # Not before: jobs that wait while its owner is away are meant for that one.
        queue.owner = None
        if not queue.is_kept:
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

    def _is_owner(self, peer: Peer, job: Job) -> bool:
        return peer.identity.operator or peer.owner == job.owner

    def _is_privy(self, peer: Peer, job: Job) -> bool:
        return self._is_owner(peer, job) or peer in job.submitters

    def _state(self, job: Job) -> JobState:
        submitters = sum(job.submitters.values())
        if job.worker:
            return JobState(True, job.numerator, job.denominator, submitters)
        queue = self._queues[job.function]
        place, length = b"%d" % queue.place(job), b"%d" % queue.queued
        return JobState(False, place, length, submitters)

    def _check_submission(self, peer: Peer, function: bytes, *, background: bool) -> None:
        if not peer.identity.may_invoke(function):
            raise Refusal("NOT_PERMITTED", f"{printable(function)} is not yours to ask for")
        if self.draining and is_lock(function):
            raise Refusal(DRAINING, "This broker is about to stop and takes no lock requests")
        if background and (is_lock(function) or is_in_person(function)):
            what = f"{printable(function)} is for clients that wait for the answer"
            raise Refusal("NO_BACKGROUND", what)

    def _join(self, job: Job, peer: Peer, *, background: bool) -> None:
        """`peer`'s submission is a job that is there already. Raises Refusal."""
        if background:
            job.background = True
        else:
            self._quota.check(peer.identity.group, 0, self.limits)
            self._quota.wait(peer.identity.group, +1)
            job.submitters[peer] = job.submitters.get(peer, 0) + 1
            peer.submitted[job] = peer.submitted.get(job, 0) + 1
        peer.send(Kind.JOB_CREATED, job.handle)

    def _assign(self, job: Job, peer: Peer) -> None:
        queue = self._queues[job.function]
        queue.remove(job)
        self._quota.wait(job.group, -1)
        queue.running += 1
        job.worker = peer
        job.assigned_at = self._clock.time()
        peer.working[job.handle] = job
        if timeout_s := peer.functions[queue]:
            job.timer = self._clock.call_later(timeout_s, self._time_out, job)
        self._dispatcher.trust(peer)
        self._observer.assigned(job.function, job.assigned_at - job.queued_at)

    def _time_out(self, job: Job) -> None:
        """A worker has not kept its own time (CAN_DO_TIMEOUT)."""
        job.timer = None
        self._end(job, Kind.WORK_FAIL, (), "timeout")

    def _end(self, job: Job, kind: Kind, data: tuple[bytes, ...], outcome: str) -> None:
        """End a job that has a worker, and tell who waits for it."""
        if job.worker:
            del job.worker.working[job.handle]
        if job.timer:
            job.timer.cancel()
        queue = self._queues[job.function]
        queue.running -= 1
        self._observer.ended(job.function, self._clock.time() - job.assigned_at, outcome)
        self._forget_job(job)
        job.tell(kind, *data)

    def _abandon(self, job: Job, peer: Peer) -> None:
        """`peer` waits for it no more; a running job goes on, as its worker can't be told."""
        self._quota.wait(peer.identity.group, -peer.submitted.pop(job))
        del job.submitters[peer]
        if not (job.submitters or job.worker or job.background):
            self._drop_queued(job)

    def _drop_queued(self, job: Job) -> None:
        self._queues[job.function].remove(job)
        self._quota.wait(job.group, -1)
        self._forget_job(job)

    def _forget_job(self, job: Job) -> None:
        del self._jobs[job.handle]
        if job.unique_key:
            twins = self._uniques[job.unique_key]
            del twins[job.function]
            if not twins:
                del self._uniques[job.unique_key]
        self._quota.hold(job.group, -job.size)
        for peer in job.submitters:
            self._quota.wait(peer.identity.group, -peer.submitted.pop(job))
        self._forget_if_unused(self._queues[job.function])
