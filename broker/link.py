"""One live connection to one Gearman broker, submitting side and working side at once.

A Link matches what the broker sends to what was asked: JOB_CREATED and ERROR to submissions in
order, STATUS_RES by handle, JOB_ASSIGN and NO_JOB to grabs in order, WORK_* by handle to submitted
jobs. All of it belongs to this connection and ends with it: restarted brokers reuse job handles,
so nothing is ever sent for a job of an earlier connection.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable
from typing import Self, TypeVar

from broker.answers import Answer, GrabbedJob, JobStatus, JobWatcher, next_owed
from broker.connection import Connection, describe, refusal_in_words
from broker.endpoint import Endpoint
from broker.protocol import MAX_CLIENT_ID, MAX_UNIQUE, Kind
from broker.wire import (
    Packet,
    fields,
    from_wire,
    kind_name,
    number,
    request,
    to_wire,
)
from schemas.errors import (
    BrokerError,
    BrokerUnreachable,
    ConfigError,
    ConnectionLost,
    RequestRefused,
)
from schemas.names import MAX_FUNCTION

log = logging.getLogger(__name__)

PING_INTERVAL_S = 5.0
PING_TIMEOUT_S = 10.0

_PING_HANDLE = b"ping"
"""No broker gives out such a handle (theirs begin with `H:`), so the answer is "unknown"."""

_NOT_ABOUT_SUBMISSIONS = {"JOB_NOT_FOUND", "UNKNOWN_OPTION"}
"""gearmand's ERRORs to WORK_* and OPTION_REQ, which are not answered when all is well."""

_REFUSALS = {
    "BAD_PACKET",
    "LIMIT_EXCEEDED",
    "PLAIN_ON_TLS_PORT",
    "REGISTER_REFUSED",
    "UNKNOWN_CERTIFICATE",
}
"""testenv-broker's ERRORs that are about the connection, which it closes after them."""

_LAST_WORDS = {Kind.WORK_COMPLETE, Kind.WORK_FAIL, Kind.WORK_EXCEPTION}

T = TypeVar("T")


class Link:
    """See the module; made by `open`, ended by `aclose`, `abort`, or the other side.

    Every `ping_interval` seconds the broker is asked for the status of a job that does not
    exist: geard and gearmand both answer that (geard ignores ECHO_REQ). A broker that leaves
    this or any other question unanswered for `ping_timeout` seconds is lost.
    """

    def __init__(self, endpoint: Endpoint, ping_interval: float, ping_timeout: float) -> None:
        self.endpoint = endpoint
        self._connection: Connection | None = None
        self._ping_interval = ping_interval
        self._ping_timeout = ping_timeout
        self._loop = asyncio.get_running_loop()
        self._loss: asyncio.Future[ConnectionLost] = self._loop.create_future()
        self._closing = False
        self._next_ping: asyncio.TimerHandle | None = None
        self._submissions: deque[tuple[Answer[bytes], JobWatcher]] = deque()
        self._jobs: dict[bytes, list[JobWatcher]] = {}
        self._statuses: dict[bytes, deque[Answer[JobStatus]]] = {}
        self._grabs: deque[Answer[GrabbedJob | None]] = deque()
        self._abilities: dict[str, None] = {}
        self._worker: object | None = None
        self._on_noop: Callable[[], None] | None = None
        self._unsent: list[bytes] = []
        """What this turn of the loop sends, in one write: each wakes the broker."""

    @classmethod
    async def open(
        cls,
        endpoint: Endpoint,
        *,
        client_id: str,
        timeout: float = 10.0,
        ping_interval: float = PING_INTERVAL_S,
        ping_timeout: float = PING_TIMEOUT_S,
        greeted: bool = True,
    ) -> Self:
        """Connect, say who we are, and wait for the first ping's answer: an open link is alive.

        `greeted` False: do not wait for it; what is asked next goes out in the same write.
        `client_id` is what the broker's `workers` lists: no white space, 128 bytes at most.
        Raises BrokerUnreachable within `timeout` seconds. Close it with `aclose`, or use
        `async with await Link.open(...) as link`.
        """
        identity = _name("client id", client_id, MAX_CLIENT_ID)
        link = cls(endpoint, ping_interval, ping_timeout)
        try:
            async with asyncio.timeout(timeout):
                link._connection = await Connection.open(endpoint, link._dispatch, link._end)
                hello = (
                    request(Kind.SET_CLIENT_ID, identity),
                    # Without it gearmand turns a WORK_EXCEPTION for us into a bare WORK_FAIL.
                    request(Kind.OPTION_REQ, b"exceptions"),
                )
                # In one write: a second one to a broker that has refused our certificate
                # meanwhile would fail, and hide its reason.
                answer = link._ping(*hello)
                if greeted:
                    await answer.wait()
        except TimeoutError as exc:
            link.abort("it did not answer in time")
            why = describe(exc) if exc.errno else f"no answer within {timeout:g} s"
            raise BrokerUnreachable([(str(endpoint), why)]) from exc
        except OSError as exc:
            raise BrokerUnreachable([(str(endpoint), describe(exc))]) from exc
        except ConfigError as exc:
            # A file may be in the middle of its renewal: no reason to give up for good.
            raise BrokerUnreachable([(str(endpoint), str(exc))]) from exc
        except ConnectionLost as loss:
            raise BrokerUnreachable([(str(endpoint), loss.why)]) from loss
        except BaseException:
            link.abort("it is not needed any more")
            raise
        return link

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"<Link {self.endpoint}{' lost' if self.is_lost else ''}>"

    @property
    def was_closed(self) -> bool:
        """Whether its end was our wish (`aclose`)."""
        return self._closing

    def fileno(self) -> int:
        """The connection's file descriptor; -1 once it is closed."""
        return self._connection.fileno() if self._connection else -1

    @property
    def is_lost(self) -> bool:
        """Whether the connection has ended, or is being closed by us."""
        return self._closing or self._loss.done()

    async def lost(self) -> ConnectionLost:
        """Wait until the connection has ended, and return (not raise) why."""
        return await asyncio.shield(self._loss)

    async def aclose(self, timeout: float = 2.0) -> None:
        """Close so that all that was sent arrives: end our side, then read to the other's end.

        At most `timeout` seconds; then, or on cancellation, the connection is dropped.
        """
        if self._connection and not self._loss.done():
            self._stop_pinging()
            self._flush()
            self._closing = True
            self._connection.send_eof()
            try:
                async with asyncio.timeout(timeout):
                    await self.lost()
            except TimeoutError:
                log.debug("broker %s did not close within %g s", self.endpoint, timeout)
            finally:
                self.abort("closed by us")

    def abort(self, why: str, cause: Exception | None = None) -> None:
        """End at once; what was sent last may not arrive. No effect if ended already."""
        if self._connection:
            self._connection.abort(why, cause)

    # Submitting

    async def submit(
        self, function: str, arguments: bytes, unique: str, watcher: JobWatcher
    ) -> bytes:
        """Submit a foreground job and return the handle that the broker gave it.

        `watcher` is told everything from the very first WORK_* packet on, even when that came in
        one read with the handle. Raises ConnectionLost, RequestRefused; ValueError if a name is
        too long or contains NUL.
        """
        packet = request(
            Kind.SUBMIT_JOB,
            _name("function", function, MAX_FUNCTION),
            _name("unique id", unique, MAX_UNIQUE),
            arguments,
        )
        answer: Answer[bytes] = self._owed("a submission")
        if not self.is_lost:
            self._submissions.append((answer, watcher))
            self._send(packet)
        return await answer.wait()

    def ask_status(self, handle: bytes, timeout: float | None = None) -> Answer[JobStatus]:
        """Send GET_STATUS. No answer within `timeout` (default: `ping_timeout`) ends the link."""
        return self._ask_status(handle, timeout)

    # Working (used by broker.worker, one Worker at a time)

    def register(
        self, worker: object, functions: Iterable[str], on_noop: Callable[[], None]
    ) -> None:
        """Make exactly `functions` what `worker` offers here, sending what differs.

        While there are any, the link is that worker's, and `on_noop` is called for every NOOP.
        Abilities and grabs are the connection's: two workers would get each other's jobs.
        Raises RuntimeError if another worker has the link. Only what was registered is ever
        unregistered: geard drops a connection that sends CANT_DO for anything else.
        """
        wanted = dict.fromkeys(functions)
        if self._worker is not worker:
            if not wanted:
                return
            if self._worker is not None:
                raise RuntimeError(f"{self!r} already serves another Worker")
        changes = [
            request(Kind.CAN_DO, _name("function", function, MAX_FUNCTION))
            for function in wanted
            if function not in self._abilities
        ]
        changes += [
            request(Kind.CANT_DO, to_wire(function))
            for function in self._abilities
            if function not in wanted
        ]
        self._worker, self._on_noop = (worker, on_noop) if wanted else (None, None)
        self._abilities = wanted
        self._send(*changes)

    def grab(self) -> Answer[GrabbedJob | None]:
        """Ask for a job; None if there is none for what is registered."""
        answer: Answer[GrabbedJob | None] = self._owed("a grab")
        if not self.is_lost:
            self._grabs.append(answer)
            self._send(request(Kind.GRAB_JOB_UNIQ))
        return answer

    def sleep(self) -> None:
        """Ask for a NOOP when there is (or already was) a job for what is registered."""
        self._send(request(Kind.PRE_SLEEP))

    def send_work(self, kind: int, *arguments: bytes) -> bool:
        """Send a WORK_* packet; False if the link is lost."""
        return self._send(request(kind, *arguments))

    # Inside

    def _send(self, *packets: bytes) -> bool:
        if packets and not self.is_lost:
            if not self._unsent:
                self._loop.call_soon(self._flush)
            self._unsent += packets
        return not self.is_lost

    def _flush(self) -> None:
        if self._connection and self._unsent:
            self._connection.send(b"".join(self._unsent))
        self._unsent.clear()

    def _owed(self, what: str, timeout: float | None = None) -> Answer[T]:
        timeout = self._ping_timeout if timeout is None else timeout
        answer = Answer[T](
            timeout, lambda: self.abort(f"it did not answer {what} within {timeout:g} s")
        )
        if self.is_lost:
            answer.give(self._loss_of_this())
        return answer

    def _loss_of_this(self) -> ConnectionLost:
        """A new one each time: exceptions collect the traceback of whoever raises them."""
        known = self._loss.result() if self._loss.done() else None
        loss = ConnectionLost(
            str(self.endpoint),
            known.why if known else "closed by us",
            by_peer=known.by_peer if known else False,
        )
        loss.__cause__ = known.__cause__ if known else None
        return loss

    def _ask_status(
        self, handle: bytes, timeout: float | None, *before: bytes
    ) -> Answer[JobStatus]:
        answer: Answer[JobStatus] = self._owed("GET_STATUS", timeout)
        if not self.is_lost:
            self._statuses.setdefault(handle, deque()).append(answer)
            self._send(*before, request(Kind.GET_STATUS, handle))
        return answer

    def _ping(self, *before: bytes) -> Answer[JobStatus]:
        answer = self._ask_status(_PING_HANDLE, None, *before)
        answer.on_given(self._schedule_ping)
        return answer

    def _schedule_ping(self, _: JobStatus | BrokerError) -> None:
        if not self.is_lost:
            self._next_ping = self._loop.call_later(self._ping_interval, self._ping)

    def _stop_pinging(self) -> None:
        if self._next_ping:
            self._next_ping.cancel()

    def _end(self, why: str, cause: Exception | None) -> None:
        self._stop_pinging()
        by_peer = bool(self._connection and self._connection.was_closed_by_peer)
        loss = ConnectionLost(
            str(self.endpoint), "closed by us" if self._closing else why, by_peer=by_peer
        )
        loss.__cause__ = cause
        self._loss.set_result(loss)
        self._abilities = {}
        owed: list[Answer[bytes] | Answer[JobStatus] | Answer[GrabbedJob | None]] = [
            *(answer for answer, _ in self._submissions),
            *(answer for answers in self._statuses.values() for answer in answers),
            *self._grabs,
        ]
        watchers = [watcher for watchers in self._jobs.values() for watcher in watchers]
        for collection in (self._submissions, self._statuses, self._grabs, self._jobs):
            collection.clear()
        for answer in owed:
            answer.give(self._loss_of_this())
        for watcher in watchers:
            watcher.lost(self._loss_of_this())

    def _dispatch(self, packet: Packet) -> None:
        match packet.kind:
            case (
                Kind.WORK_STATUS
                | Kind.WORK_DATA
                | Kind.WORK_WARNING
                | Kind.WORK_COMPLETE
                | Kind.WORK_FAIL
                | Kind.WORK_EXCEPTION
            ):
                self._work(packet)
            case Kind.STATUS_RES:
                self._status_res(packet)
            case Kind.NOOP:
                if self._on_noop:
                    self._on_noop()
            case Kind.NO_JOB:
                next_owed(self._grabs, packet).give(None)
            case Kind.JOB_ASSIGN_UNIQ:
                handle, function, unique, arguments = fields(packet, 4)
                job = GrabbedJob(handle, from_wire(function), from_wire(unique), arguments)
                next_owed(self._grabs, packet).give(job)
            case Kind.JOB_ASSIGN:
                handle, function, arguments = fields(packet, 3)
                job = GrabbedJob(handle, from_wire(function), "", arguments)
                next_owed(self._grabs, packet).give(job)
            case Kind.JOB_CREATED:
                self._job_created(packet)
            case Kind.ERROR:
                self._error(packet)
            case Kind.OPTION_RES:
                return
            case other:
                log.debug("broker %s sent %s", self.endpoint, kind_name(other))

    def _job_created(self, packet: Packet) -> None:
        [handle] = fields(packet, 1)
        answer, watcher = next_owed(self._submissions, packet)
        # gearmand gives one handle to all jobs of one function and unique id.
        self._jobs.setdefault(handle, []).append(watcher)
        answer.give(handle)

    def _error(self, packet: Packet) -> None:
        code, text = (from_wire(field).rstrip("\0") for field in fields(packet, 2))
        if code in _REFUSALS:
            refusal = RequestRefused(str(self.endpoint), code, text)
            self.abort(refusal_in_words(code, text), refusal)
        elif self._submissions and code not in _NOT_ABOUT_SUBMISSIONS:
            answer, _ = self._submissions.popleft()
            answer.give(RequestRefused(str(self.endpoint), code, text))
        else:
            log.info("broker %s: %s %s", self.endpoint, code, text)

    def _work(self, packet: Packet) -> None:
        handle, _, _ = packet.data.partition(b"\0")
        last = packet.kind in _LAST_WORDS
        watchers = self._jobs.pop(handle, None) if last else self._jobs.get(handle)
        for watcher in watchers or ():
            watcher.received(packet)

    def _status_res(self, packet: Packet) -> None:
        handle, known, running, numerator, denominator = fields(packet, 5)
        status = JobStatus(
            number(known) != 0, number(running) != 0, number(numerator), number(denominator)
        )
        answers = self._statuses.get(handle, deque())
        next_owed(answers, packet).give(status)
        if not answers:
            del self._statuses[handle]


def _name(what: str, text: str, limit: int) -> bytes:
    name = to_wire(text)
    if len(name) > limit:
        raise ValueError(f"{what} of {len(name)} bytes; Gearman brokers take at most {limit}")
    return name
