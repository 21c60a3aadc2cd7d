"""Binary requests: each packet type's fields, and what it asks of the exchange.

All that gear's and gearmand's clients and workers send (http://gearman.org/protocol; gearmand
1.1.20's GRAB_JOB_ALL and GET_STATUS_UNIQUE). Refused: jobs for later, and map/reduce.
"""

from collections.abc import Callable
from functools import partial

from broker.protocol import MAX_CLIENT_ID, MAX_UNIQUE, Kind
from broker.server.exchange import ENDS, Exchange, JobState
from broker.server.job import Job, Priority
from broker.server.names import is_function, is_word
from broker.server.peer import Peer
from broker.server.refusal import Breach, Refusal
from broker.wire import MalformedPacket, Packet, fields, kind_name
from schemas.names import MAX_FUNCTION

MAX_TIMEOUT_DIGITS = 9
"""gearmand 1.1.20's limit."""

MAX_PROGRESS = 64
"""Bytes of a numerator or denominator, which the broker keeps."""

Handler = Callable[[Peer, Packet], None]

_SUBMISSIONS = {
    Kind.SUBMIT_JOB: (Priority.NORMAL, False),
    Kind.SUBMIT_JOB_HIGH: (Priority.HIGH, False),
    Kind.SUBMIT_JOB_LOW: (Priority.LOW, False),
    Kind.SUBMIT_JOB_BG: (Priority.NORMAL, True),
    Kind.SUBMIT_JOB_HIGH_BG: (Priority.HIGH, True),
    Kind.SUBMIT_JOB_LOW_BG: (Priority.LOW, True),
}

_UNSUPPORTED = (
    Kind.SUBMIT_JOB_SCHED,
    Kind.SUBMIT_JOB_EPOCH,
    Kind.SUBMIT_REDUCE_JOB,
    Kind.SUBMIT_REDUCE_JOB_BACKGROUND,
)


class Requests:
    """Turns packets into calls of `exchange`."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._handlers: dict[int, Handler] = {
            Kind.CAN_DO: self._can_do,
            Kind.CAN_DO_TIMEOUT: self._can_do_timeout,
            Kind.CANT_DO: lambda peer, packet: exchange.cant_do(peer, packet.data),
            Kind.RESET_ABILITIES: lambda peer, _: exchange.reset_abilities(peer),
            Kind.PRE_SLEEP: lambda peer, _: exchange.sleep(peer),
            Kind.GRAB_JOB: self._grab_job,
            Kind.GRAB_JOB_UNIQ: self._grab_job_uniq,
            Kind.GRAB_JOB_ALL: self._grab_job_all,
            Kind.WORK_DATA: partial(self._report, Kind.WORK_DATA),
            Kind.WORK_WARNING: partial(self._report, Kind.WORK_WARNING),
            Kind.WORK_STATUS: self._work_status,
            **{kind: partial(self._finish, kind) for kind in ENDS},
            **{kind: partial(self._submit, *how) for kind, how in _SUBMISSIONS.items()},
            **dict.fromkeys(_UNSUPPORTED, _refuse_kind),
            Kind.GET_STATUS: self._get_status,
            Kind.GET_STATUS_UNIQUE: self._get_status_unique,
            Kind.ECHO_REQ: lambda peer, packet: peer.send(Kind.ECHO_RES, packet.data),
            Kind.OPTION_REQ: _option,
            Kind.SET_CLIENT_ID: _set_client_id,
            # The connection is "all yours" in any case: no event of ours blocks.
            Kind.ALL_YOURS: lambda _peer, _packet: None,
        }

    def handle(self, peer: Peer, packet: Packet) -> None:
        """Do what `packet` asks. Raises Refusal (tell the peer), Breach (and end it)."""
        handler = self._handlers.get(packet.kind)
        if handler is None:
            raise Breach("BAD_PACKET", f"{kind_name(packet.kind)} is not for a broker")
        try:
            handler(peer, packet)
        except MalformedPacket as exc:
            raise Breach("BAD_PACKET", str(exc)) from exc

    # Working

    def _can_do(self, peer: Peer, packet: Packet) -> None:
        self._exchange.can_do(peer, _function(packet.data))

    def _can_do_timeout(self, peer: Peer, packet: Packet) -> None:
        function, seconds = fields(packet, 2)
        if not seconds.isdigit() or len(seconds) > MAX_TIMEOUT_DIGITS:
            raise MalformedPacket(f"CAN_DO_TIMEOUT with a timeout of {seconds[:20]!r}")
        self._exchange.can_do(peer, _function(function), int(seconds) or None)

    def _grab_job(self, peer: Peer, _: Packet) -> None:
        if job := self._grab(peer):
            peer.send(Kind.JOB_ASSIGN, job.handle, job.function, job.arguments)

    def _grab_job_uniq(self, peer: Peer, _: Packet) -> None:
        if job := self._grab(peer):
            peer.send(Kind.JOB_ASSIGN_UNIQ, job.handle, job.function, job.unique, job.arguments)

    def _grab_job_all(self, peer: Peer, _: Packet) -> None:
        if job := self._grab(peer):
            # The fourth field is a reducer, which no job of ours has.
            what = (job.handle, job.function, job.unique, b"", job.arguments)
            peer.send(Kind.JOB_ASSIGN_ALL, *what)

    def _grab(self, peer: Peer) -> Job | None:
        job = self._exchange.grab(peer)
        if job is None:
            peer.send(Kind.NO_JOB)
        return job

    def _work_status(self, peer: Peer, packet: Packet) -> None:
        handle, numerator, denominator = fields(packet, 3)
        if max(len(numerator), len(denominator)) > MAX_PROGRESS:
            raise MalformedPacket(f"WORK_STATUS with a number of more than {MAX_PROGRESS} bytes")
        self._exchange.report(peer, Kind.WORK_STATUS, handle, (numerator, denominator))

    def _report(self, kind: Kind, peer: Peer, packet: Packet) -> None:
        handle, _, data = packet.data.partition(b"\0")
        self._exchange.report(peer, kind, handle, (data,))

    def _finish(self, kind: Kind, peer: Peer, packet: Packet) -> None:
        handle, _, data = packet.data.partition(b"\0")
        result = () if kind is Kind.WORK_FAIL else (data,)
        self._exchange.finish(peer, kind, handle, result)

    # Submitting

    def _submit(self, priority: Priority, background: bool, peer: Peer, packet: Packet) -> None:
        function, unique, arguments = fields(packet, 3)
        if len(unique) > MAX_UNIQUE:
            raise Refusal("INVALID_ARGUMENT", f"A unique id of more than {MAX_UNIQUE} bytes")
        self._exchange.submit(
            peer, _function(function), unique, arguments, priority=priority, background=background
        )

    def _get_status(self, peer: Peer, packet: Packet) -> None:
        state = self._exchange.state(peer, packet.data)
        peer.send(Kind.STATUS_RES, packet.data, *_state_fields(state))

    def _get_status_unique(self, peer: Peer, packet: Packet) -> None:
        state = self._exchange.state_of_unique(peer, packet.data)
        submitters = b"%d" % (state.submitters if state else 0)
        peer.send(Kind.STATUS_RES_UNIQUE, packet.data, *_state_fields(state), submitters)


def _function(name: bytes) -> bytes:
    """A function's name, or Breach."""
    if not is_function(name):
        what = f"A function has 1 to {MAX_FUNCTION} bytes of UTF-8, printable, no white space"
        raise Breach("BAD_PACKET", what)
    return name


def _state_fields(state: JobState | None) -> tuple[bytes, bytes, bytes, bytes]:
    """Known, running, and how far."""
    if state is None:
        return b"0", b"0", b"0", b"0"
    return b"1", b"1" if state.running else b"0", state.numerator, state.denominator


def _option(peer: Peer, packet: Packet) -> None:
    if packet.data != b"exceptions":
        raise Refusal("UNKNOWN_OPTION", "Server does not recognize given option")
    peer.exceptions = True
    peer.send(Kind.OPTION_RES, packet.data)


def _set_client_id(peer: Peer, packet: Packet) -> None:
    if len(packet.data) > MAX_CLIENT_ID or not is_word(packet.data):
        what = f"A client id has at most {MAX_CLIENT_ID} bytes of UTF-8, printable, no white space"
        raise Refusal("INVALID_ARGUMENT", what)
    peer.client_id = packet.data or b"-"


def _refuse_kind(_: Peer, packet: Packet) -> None:
    raise Refusal("NOT_SUPPORTED", f"This broker has no {kind_name(packet.kind)}")
