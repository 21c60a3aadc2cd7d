"""Admin commands: one line each, as gear and gearmand have them, for gearadmin and for people."""

import os
from collections.abc import Callable, Iterable
from ipaddress import ip_address

from broker.server.exchange import Exchange
from broker.server.job import Priority
from broker.server.names import is_function, printable
from broker.server.peer import Peer
from broker.server.refusal import Refusal
from schemas.names import MAX_FUNCTION

_END = b".\n"
_OK = b"OK\n"

Command = Callable[[Peer, bytes], bytes]


class AdminCommands:
    """Answers lines with text. Only operators are answered, except for what names in
    `_for_everyone`; a connection without TLS may be an operator's (see AccessSection)."""

    def __init__(
        self, exchange: Exchange, *, version: str, shutdown: Callable[[bool], None]
    ) -> None:
        """`shutdown` is called for the command of that name: True lets running jobs end first."""
        self._exchange = exchange
        self._version = version
        self._shut_down = shutdown
        self._for_everyone: dict[bytes, Command] = {
            b"cancel job": self._cancel_job,
            b"version": lambda _peer, _: f"OK testenv-broker {self._version}\n".encode(),
        }
        self._for_operators: dict[bytes, Command] = {
            b"status": self._status,
            b"prioritystatus": self._priority_status,
            b"workers": self._workers,
            b"show jobs": self._show_jobs,
            b"show unique jobs": self._show_unique_jobs,
            b"getpid": lambda _peer, _: b"OK %d\n" % os.getpid(),
            b"verbose": lambda _peer, _: b"OK INFO\n",
            b"maxqueue": self._maxqueue,
            b"create function": self._create_function,
            b"drop function": self._drop_function,
            b"shutdown": self._shutdown,
        }

    def answer(self, peer: Peer, line: bytes) -> bytes:
        """The answer to one line, with its line ends; an error is a line too (`ERR CODE text`)."""
        try:
            command, rest = self._find(peer, line)
            return command(peer, rest)
        except Refusal as refusal:
            return f"ERR {refusal.code} {refusal.text.replace(' ', '+')}\n".encode()

    def _find(self, peer: Peer, line: bytes) -> tuple[Command, bytes]:
        words = line.split()
        for count in (3, 2, 1):
            name = b" ".join(words[:count]).lower()
            rest = b" ".join(words[count:])
            if command := self._for_everyone.get(name):
                return command, rest
            if command := self._for_operators.get(name):
                if not peer.identity.operator:
                    raise Refusal("NOT_PERMITTED", f"{name.decode()} is for operators")
                return command, rest
        raise Refusal("UNKNOWN_COMMAND", "Unknown server command")

    def _status(self, _peer: Peer, _: bytes) -> bytes:
        return _listing(
            b"%s\t%d\t%d\t%d" % (view.name, view.queued + view.running, view.running, view.workers)
            for view in self._exchange.functions()
        )

    def _priority_status(self, _peer: Peer, _: bytes) -> bytes:
        return _listing(
            b"\t".join([view.name, *(b"%d" % n for n in (*view.queued_by_priority, view.workers))])
            for view in self._exchange.functions()
        )

    def _workers(self, _peer: Peer, _: bytes) -> bytes:
        return _listing(
            b"%d %s %s : %s"
            % (
                peer.number,
                peer.identity.address.encode(),
                peer.client_id,
                b" ".join(queue.name for queue in peer.functions),
            )
            for peer in self._exchange.peers.values()
        )

    def _show_jobs(self, _peer: Peer, _: bytes) -> bytes:
        # gearmand's columns: handle, retries, whether it is cancelled, whether it is queued.
        return _listing(
            b"%s\t0\t0\t%d" % (job.handle, job.worker is None) for job in self._exchange.jobs()
        )

    def _show_unique_jobs(self, _peer: Peer, _: bytes) -> bytes:
        return _listing(
            printable(job.unique).encode() for job in self._exchange.jobs() if job.unique
        )

    def _cancel_job(self, peer: Peer, handle: bytes) -> bytes:
        self._exchange.cancel(peer, handle)
        return _OK

    def _maxqueue(self, _peer: Peer, rest: bytes) -> bytes:
        function, *numbers = rest.split() or [b""]
        if not function or len(numbers) not in (0, 1, 3) or not all(map(_is_number, numbers)):
            raise Refusal("INVALID_ARGUMENT", "maxqueue FUNCTION [MOST | HIGH NORMAL LOW]")
        limits = [int(number) for number in numbers]
        if len(limits) == 1:
            limits *= len(Priority)
        # gearmand: 0 and less mean that there is no limit.
        chosen = {one: most for one, most in zip(Priority, limits, strict=False) if most > 0}
        self._exchange.limit_queue(_function(function), chosen)
        return _OK

    def _create_function(self, _peer: Peer, rest: bytes) -> bytes:
        self._exchange.create_function(_function(rest))
        return _OK

    def _drop_function(self, _peer: Peer, rest: bytes) -> bytes:
        if not self._exchange.drop_function(_function(rest)):
            raise Refusal("FUNCTION_IN_USE", "It has workers or jobs")
        return _OK

    def _shutdown(self, peer: Peer, rest: bytes) -> bytes:
        # Nobody knows who a peer without a certificate is; one on this machine could kill us too.
        if not (peer.identity.is_verified or ip_address(peer.identity.address).is_loopback):
            raise Refusal("NOT_PERMITTED", "shutdown is for operators with a certificate")
        if rest.lower() not in (b"", b"graceful"):
            raise Refusal("INVALID_ARGUMENT", "shutdown [graceful]")
        self._shut_down(bool(rest))
        return _OK


def _listing(rows: Iterable[bytes]) -> bytes:
    return b"".join(row + b"\n" for row in rows) + _END


def _is_number(word: bytes) -> bool:
    return word.removeprefix(b"-").isdigit() and len(word) <= 10


def _function(name: bytes) -> bytes:
    if not is_function(name):
        what = f"Name one function: 1 to {MAX_FUNCTION} bytes of UTF-8, printable, no white space"
        raise Refusal("INVALID_ARGUMENT", what)
    return name
