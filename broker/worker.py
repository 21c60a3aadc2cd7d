"""Taking jobs from one or several brokers, and answering requests."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from functools import partial

from broker import stamp
from broker.answers import GrabbedJob
from broker.link import Link
from broker.links import Links, LinkSource
from broker.protocol import Kind
from broker.wire import from_wire, request
from schemas.errors import BrokerError, TestenvError
from schemas.names import UNVERIFIED

log = logging.getLogger(__name__)

POLL_S = (5.0, 10.0)
"""A sleeping worker asks again after a random time in this range: wake-ups get lost."""

MAX_PROGRESS = 999_999_999
"""gearmand 1.1.20 does not relay a WORK_STATUS with numbers of more than nine digits."""


class Assignment:
    """A job that a broker gave us. It belongs to `link` and is void when that is lost.

    The senders are synchronous: they write to the connection. They return False, and send
    nothing, if the link is lost or we have ended the job already.
    """

    def __init__(self, link: Link, job: GrabbedJob, on_end: Callable[["Assignment"], None]) -> None:
        self.link = link
        self.function = job.function
        self.unique = job.unique
        self.arguments = job.arguments
        self._handle = job.handle
        self._on_end = on_end
        self._ended = False

    def __repr__(self) -> str:
        return f"<Assignment {self.function} {self.handle} on {self.link!r}>"

    @property
    def handle(self) -> str:
        """The broker's name for the job: unique on this link, reused after a broker's restart."""
        return from_wire(self._handle)

    @property
    def submitter(self) -> str:
        """Who submitted it, as the broker has verified: `job/ci-7`, or `unverified`.

        Without TLS nobody has verified the broker either, and its word is worth nothing.
        """
        return stamp.submitter(self._handle) if self.link.endpoint.tls else UNVERIFIED

    @property
    def is_over(self) -> bool:
        """Whether nothing more can be sent: we ended it, or the link is lost."""
        return self._ended or self.link.is_lost

    def completion(self, data: bytes = b"") -> bytes:
        """The bytes that end it well, for another process to write on the link's descriptor.

        Empty over TLS, where no other process can write.
        """
        return b"" if self.link.endpoint.tls else request(Kind.WORK_COMPLETE, self._handle, data)

    def complete(self, data: bytes = b"") -> bool:
        """End it well, with a result."""
        return self._end(Kind.WORK_COMPLETE, data)

    def fail(self) -> bool:
        """End it badly."""
        return self._end(Kind.WORK_FAIL)

    def exception(self, data: bytes) -> bool:
        """End it badly, with a reason (without gearmand's `exceptions` option, as `fail`)."""
        return self._end(Kind.WORK_EXCEPTION, data)

    def status(self, numerator: int, denominator: int) -> bool:
        """Report progress. Raises ValueError for numbers that gearmand would not relay."""
        if not (0 <= numerator <= MAX_PROGRESS and 0 <= denominator <= MAX_PROGRESS):
            raise ValueError(f"{numerator}/{denominator}: progress has at most nine digits")
        return self._send(Kind.WORK_STATUS, b"%d" % numerator, b"%d" % denominator)

    def data(self, data: bytes) -> bool:
        """Send a piece of data ahead of the end."""
        return self._send(Kind.WORK_DATA, data)

    def warning(self, data: bytes) -> bool:
        """Send a warning ahead of the end."""
        return self._send(Kind.WORK_WARNING, data)

    def _send(self, kind: int, *arguments: bytes) -> bool:
        return not self._ended and self.link.send_work(kind, self._handle, *arguments)

    def _end(self, kind: int, *arguments: bytes) -> bool:
        sent = self._send(kind, *arguments)
        if not self._ended:
            self._ended = True
            self._on_end(self)
        return sent


class Worker:
    """One Gearman worker: registered with all its brokers, grabbing from one at a time.

        worker = Worker(links, ["lockenv", "lockenv:kvm"])
        worker = Worker(OneLink(link), ["callback_42"])

    Abilities belong to a connection, so a Link or Links serves one Worker at a time; a second is
    refused with RuntimeError. Submitting on the same links is always fine.
    """

    def __init__(
        self,
        links: LinkSource,
        functions: Iterable[str],
        *,
        poll: tuple[float, float] = POLL_S,
    ) -> None:
        self.functions = tuple(functions)
        self._links = links
        self._poll = poll
        self._taking = False
        self._registered = False
        self._retired = False
        self._running: set[Assignment] = set()
        self._due: dict[Link, None] = {}
        self._grabbing: Link | None = None
        self._last: Link | None = None
        self._caught: Assignment | None = None
        self._answered = asyncio.Event()
        self._stirred = asyncio.Event()

    @property
    def is_taking(self) -> bool:
        """Whether a broker may give it a job."""
        return self._taking

    async def take(
        self, withdraw: asyncio.Event | None = None, *, stay: bool = False
    ) -> Assignment | None:
        """Register, and wait for a job: however long it takes, on whichever broker.

        It registers with the links that are up before it first waits for anything.
        When it returns, nothing is registered any more, except on the job's own link the job's
        own function until the job is ended: gearmand takes a job away from a worker that sends
        CANT_DO for its function. (`stay`: all stays registered, for workers that do several jobs
        at once; call `take` again soon, `retire` at last.)

        Returns None once `withdraw` is set, but never with a grab under way: if that brings a
        job, it is returned. May be called again while an assignment runs, for further offers.
        Cancelling loses no job: one that was under way is returned by the next call, and if there
        is none it ends with its link. Over `OneLink` raises ConnectionLost when that is lost;
        over `Links` waits for a broker to come back.
        """
        if self._taking or self._retired:
            raise RuntimeError("this Worker is taking already, or retired")
        if caught := self._release_caught():
            return caught
        if withdraw and withdraw.is_set() and not self._grabbing:
            return None
        self._taking = self._registered = True
        assignment = None
        try:
            assignment = await self._take(withdraw or asyncio.Event())
            return assignment
        finally:
            self._taking = False
            self._registered = stay and assignment is not None
            self._settle()

    def change(self, functions: Iterable[str]) -> None:
        """Offer `functions` from now on, also while taking: jobs of a new one come at once."""
        new = tuple(functions)
        added = set(new) - set(self.functions)
        self.functions = new
        self._settle()
        if added:
            self._due.update(dict.fromkeys(self._links.up))
            self._stirred.set()

    def retire(self) -> None:
        """Take no more: unregister, and fail a job that comes from a cancelled `take`."""
        self._retired = True
        self._registered = False
        if self._caught:
            self._caught.fail()
        self._settle()

    async def _take(self, withdraw: asyncio.Event) -> Assignment | None:
        self._due.clear()
        seen: tuple[Link, ...] = ()
        while True:
            up = self._links.up
            new = [link for link in up if link not in seen]
            # The one that gave the last job comes last, or the others might never get a turn.
            self._due.update(dict.fromkeys(sorted(new, key=lambda link: link is self._last)))
            seen = up
            self._settle()
            self._stirred.clear()
            if assignment := await self._ask_those_due(withdraw):
                return assignment
            if withdraw.is_set():
                return None
            await self._rest(withdraw, seen)

    async def _ask_those_due(self, withdraw: asyncio.Event) -> Assignment | None:
        """Grab from each link in `_due` in turn, until one gives a job."""
        while True:
            if self._grabbing:
                await self._answered.wait()
            if caught := self._release_caught():
                return caught
            if not self._due or withdraw.is_set():
                return None
            link = next(iter(self._due))
            del self._due[link]
            self._grab(link)

    def _grab(self, link: Link) -> None:
        self._grabbing = link
        self._answered.clear()
        link.grab().on_given(partial(self._grabbed, link))

    def _release_caught(self) -> Assignment | None:
        caught, self._caught = self._caught, None
        return caught if caught and not caught.is_over else None

    def _grabbed(self, link: Link, reply: GrabbedJob | BrokerError | None) -> None:
        """A grab is answered, perhaps after the `take` that made it was cancelled."""
        self._grabbing = None
        if isinstance(reply, GrabbedJob):
            self._last = link
            self._caught = Assignment(link, reply, self._finished)
            self._running.add(self._caught)
            if self._retired:
                self._caught.fail()
        elif self._registered:
            link.sleep()
        self._settle()
        self._answered.set()

    async def _rest(self, withdraw: asyncio.Event, seen: tuple[Link, ...]) -> None:
        """Until a broker calls, links change, `withdraw` is set, or it is time to ask anyway."""
        reasons = [
            asyncio.ensure_future(reason)
            for reason in (self._stirred.wait(), withdraw.wait(), self._links.changed(seen))
        ]
        import random  # while a broker looks for a job: a client has nothing else to do then

        pause = random.uniform(*self._poll)  # noqa: S311 - spreads load, guards no secret
        try:
            done, _ = await asyncio.wait(
                reasons, timeout=pause, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            for reason in reasons:
                reason.cancel()
            await asyncio.gather(*reasons, return_exceptions=True)
        for reason in done:
            reason.result()
        if not done:
            self._due.update(dict.fromkeys(seen))

    def _settle(self) -> None:
        """Make what is registered on each link what it should be."""
        self._running = {each for each in self._running if not each.is_over}
        for link in self._links.up:
            if link is self._grabbing:
                continue  # A CANT_DO that overtakes its answer would cost us the job.
            own = self.functions if self._registered else ()
            busy_with = [each.function for each in self._running if each.link is link]
            link.register(self, [*own, *busy_with], partial(self._called, link))

    def _called(self, link: Link) -> None:
        if self._taking and not self._grabbing and not self._caught:
            self._grab(link)  # at once: a job waits for it
        else:
            self._due[link] = None
        self._stirred.set()

    def _finished(self, assignment: Assignment) -> None:
        self._running.discard(assignment)
        self._settle()


Handler = Callable[[bytes], Awaitable[bytes]]


async def serve(
    links: Links,
    function: str,
    handler: Handler,
    *,
    limit: int = 16,
    timeout: float = 60.0,
) -> None:
    """Answer every job of `function` with `handler(arguments)`, on all brokers, until cancelled.

    At most `limit` are in work at a time, each for at most `timeout` seconds; others wait in
    their broker. An error goes back as WORK_EXCEPTION with its text, and is logged. Goes on over
    reconnections; jobs in work when cancelled are failed.
    """
    worker = Worker(links, [function])
    slots = asyncio.Semaphore(limit)
    try:
        async with asyncio.TaskGroup() as jobs:
            while True:
                await slots.acquire()
                if assignment := await worker.take(stay=True):
                    job = jobs.create_task(_answer(assignment, handler, timeout))
                    job.add_done_callback(lambda _: slots.release())
    finally:
        worker.retire()


async def _answer(assignment: Assignment, handler: Handler, timeout: float) -> None:
    try:
        async with asyncio.timeout(timeout):
            reply = await handler(assignment.arguments)
    except TestenvError as exc:
        log.info("%s: %s", assignment.function, exc)
        assignment.exception(str(exc).encode())
    except TimeoutError:
        log.warning("%s: gave up after %g s", assignment.function, timeout)
        assignment.exception(f"no answer within {timeout:g} s".encode())
    except asyncio.CancelledError:
        assignment.fail()
        raise
    except Exception as exc:  # a defect in a handler must cost one request, not the service
        log.exception("%s: a request failed", assignment.function)
        assignment.exception(f"internal error: {exc!r}".encode())
    else:
        assignment.complete(reply)
