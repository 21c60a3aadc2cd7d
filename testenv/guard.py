"""The guard as its client sees it: how it is forked, told, and heard.

The guard (testenv.guard_process) is a small process that is the command's parent. The two talk
over a socket pair, one JSON array a packet; the socket's end tells either of the other's death.
"""

import json
import os
import select
import signal
import socket
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from enum import StrEnum
from typing import NamedTuple, NoReturn, Self

from broker.endpoint import Endpoint
from testenv.lifeline import Lifeline

RELAYED = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGTSTP,
)
"""Signals that the client passes on to the command."""

PACKET_BYTES = 65536

GUARD_LATER_S = 1.0
"""How much later than `due_s` the guard acts: a client that lives says why first."""

_END_S = 10.0
"""More than a guard needs to kill whatever is left."""


def boottime() -> float:
    """Seconds since this machine was booted, including those that it was suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Happening(StrEnum):
    """What a guard tells of its command, and what the event's `value` means then."""

    STARTED = "started"
    """It runs."""
    NOT_STARTED = "not started"
    """exec failed; its errno. ETIME: it was due to end before it was started."""
    SUSPENDED = "suspended"
    """It was stopped from the terminal, which is the client's again."""
    DUE = "due"
    """The guard ends it, which was its client's part."""
    EXITED = "exited"
    """It has ended; waitpid(2)'s status. Descendants may be left."""
    ENDED = "ended"
    """EXITED, and nothing of it is left: the usual end, told at once."""
    GONE = "gone"
    """Nothing of it is left, but for so many processes that even SIGKILL did not end."""


class Event(NamedTuple):
    """A packet from the guard."""

    what: Happening
    value: int = 0

    def dump(self) -> bytes:
        """For the socket."""
        return json.dumps(self).encode()

    @classmethod
    def parse(cls, packet: bytes) -> Self:
        """The inverse of `dump`."""
        what, value = json.loads(packet)
        return cls(Happening(what), value)


class LastWill(NamedTuple):
    """What the guard needs to keep the lease's promises when its client cannot.

    `link`: the descriptor of the broker connection. The guard keeps a copy, so that the broker
    hears of a killed client only when nothing of the command is left. `farewell`: what it writes
    there then, for the agent to know that for certain; empty over TLS, where only the client can
    write. `function` and `words` are another way to tell it, over a new connection, where that one
    is no use; a version 1 host has none.

    `when_closed`: as `Guard.until`, but counted from when that connection is closed, and besides
    it: a client that is stopped, or busy, sees that late.
    """

    link: int
    farewell: bytes
    function: str = ""
    words: bytes = b""
    when_closed: tuple[float, float] | None = None


class Guard:
    """A guard process that waits for its orders; use it as a context, for it must be waited for.

    An order to a dead guard is void; that it is dead, its socket's end tells. So is one to a guard
    that has not read for so long that its socket is full.
    """

    def __init__(
        self,
        pid: int,
        link: socket.socket,
        lifeline: Lifeline,
        kill_after_s: float,
    ) -> None:
        self.pid = pid
        self.socket = link
        self._lifeline = lifeline
        self._kill_after_s = kill_after_s
        self._is_over = False
        """Whether it has been waited for: its pid may be another's then."""

    @classmethod
    def fork(
        cls,
        argv: Sequence[str],
        kill_after_s: float,
        clock: Callable[[], float] = boottime,
        brokers: Sequence[Endpoint] = (),
    ) -> Self:
        """Fork the guard of the command `argv`. `clock` is what `due_s` of `until` is on.

        `brokers`: where it may say goodbye for a killed client.

        To be called while this process has no threads, sockets or event loop, and before it
        handles signals: the command inherits what is ignored now.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ignored = frozenset(
            n for n in signal.valid_signals() if signal.getsignal(n) is signal.SIG_IGN
        )
        group = os.getpgrp()
        lifeline = Lifeline()
        pid = os.fork()
        if pid == 0:
            ours.close()
            _be_guard(theirs, argv, kill_after_s, group, ignored, lifeline, clock, brokers)
        theirs.close()
        lifeline.start()
        return cls(pid, ours, lifeline, kill_after_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.socket.fileno() >= 0:
            self._order("over")
        self.socket.close()
        self.wait()

    def wait(self) -> None:
        """Wait for its end, which its socket's end has announced, or ours brings about."""
        if self._is_over:
            return
        watch = select.poll()
        with os.fdopen(os.pidfd_open(self.pid)) as fd:
            watch.register(fd, select.POLLIN)
            if not watch.poll(_END_S * 1000):
                self.kill()
        os.waitpid(self.pid, 0)
        self._is_over = True
        self._lifeline.dismiss()

    def kill(self) -> None:
        """SIGKILL: for a guard that does not do its duty any more."""
        if not self._is_over:
            os.kill(self.pid, signal.SIGKILL)

    def run(self, environment: Mapping[str, str], workspace: str, will: LastWill) -> None:
        """Start the command with `environment` added; `workspace` goes if the client is killed."""
        last_words = (will.farewell.hex(), will.function, will.words.hex())
        self._order(
            "run", dict(environment), workspace, *last_words, will.when_closed, link=will.link
        )

    def will(self, link: int, farewell: bytes) -> None:
        """Replace `link` and `farewell` of the LastWill: the lease is on another connection.

        The guard closes its copy of the old one; that ends it, once the client has closed its own.
        """
        self._order("will", farewell.hex(), link=link)

    def ignore_link(self) -> None:
        """That the will's `link` is closed, or will be, means nothing: `until` alone holds."""
        self._order("ignore link")

    def until(self, due_s: float, kill_after_s: float) -> None:
        """The command has to end at `due_s`, and is killed `kill_after_s` later.

        `due_s` is in seconds of CLOCK_BOOTTIME (see `boottime`). Each call replaces the last, may
        come before `run`, and holds whatever becomes of the client (SIGSTOP). It is the client's
        part to `stop` at `due_s`: the guard tells the command to end GUARD_LATER_S after it (half
        of `kill_after_s`, if that is less), and kills what is left at `due_s + kill_after_s`, at
        once if that has passed. An end that has begun is not taken back.
        """
        self._order("until", due_s, kill_after_s)

    def signal(self, number: int) -> None:
        """Pass a signal on to the command's process group."""
        self._order("signal", number)

    def resume(self) -> None:
        """Continue a suspended command, on the terminal if the client's job has it."""
        self._order("resume")

    def stop(self, kill_after_s: float | None = None) -> None:
        """SIGTERM to the command's group, and SIGKILL to all that is left `kill_after_s` later.

        None stands for what the guard was forked with. Stopping again can only hasten the SIGKILL.
        """
        self._order("stop", self._kill_after_s if kill_after_s is None else kill_after_s)

    def _order(self, *order: object, link: int | None = None) -> None:
        links = [] if link is None else [link]
        with suppress(ConnectionError, BlockingIOError):
            socket.send_fds(self.socket, [json.dumps(order).encode()], links)


def _be_guard(
    client: socket.socket,
    argv: Sequence[str],
    kill_after_s: float,
    client_group: int,
    ignored: frozenset[signal.Signals],
    lifeline: Lifeline,
    clock: Callable[[], float],
    brokers: Sequence[Endpoint],
) -> NoReturn:
    """The guard's life in the forked child, whose stack is the client's: nothing may unwind it."""
    status = 1
    try:
        os.setpgid(0, 0)  # a kill of the client's group must not reach its guard
        for number in RELAYED:
            signal.signal(number, signal.SIG_IGN)
        # Imported here, so that it happens while the client imports its own.
        from testenv.guard_process import guard_main

        guard_main(client, argv, kill_after_s, client_group, ignored, lifeline, clock, brokers)
        status = 0
    except BaseException:  # noqa: BLE001 - whatever it is, it ends here
        traceback.print_exc()
    finally:
        os._exit(status)
