"""The guard: a small process that is the command's parent, and ends it whatever else happens.

The client forks it before it has threads, sockets or an event loop, and talks to it over a
socket pair, one JSON array a packet. The guard starts the command in a process group of its own,
lends it the terminal, and tells of its end. When the client dies, even of SIGKILL, the socket
ends, and the guard kills the command with all its descendants. When the guard dies, the command
dies with it, and the client sweeps up the descendants; when both die, the lifeline acts.

The guard also ends the command in time, when the client does not, stopped or not: `Guard.until`.
A command's background processes don't outlive it: they get SIGTERM when the command has exited,
and SIGKILL `kill_after_s` later.
"""

import errno
import json
import os
import select
import signal
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial

from broker.endpoint import Endpoint
from testenv import reaper
from testenv.guard import GUARD_LATER_S, PACKET_BYTES, RELAYED, Event, Happening
from testenv.lifeline import Lifeline
from testenv.terminal import Terminal

_JOB_CONTROL = (signal.SIGTTIN, signal.SIGTTOU)
_STOPPED = (os.CLD_STOPPED, os.CLD_TRAPPED)

_FAREWELL_S = 1.0
_ADOPTION_S = 0.05
"""Adopting an orphan raises no signal: how often leftovers are looked for."""

_NEVER = float("inf")
_NAP_S = 5.0
"""poll(2)'s clock stands still while the machine is suspended: how often ours is looked at."""


class GuardProcess:
    """One command, from its start to the end of its last descendant."""

    def __init__(
        self,
        client: socket.socket,
        argv: Sequence[str],
        kill_after_s: float,
        terminal: Terminal | None,
        ignored: frozenset[signal.Signals],
        lifeline: Lifeline,
        clock: Callable[[], float],
        brokers: Sequence[Endpoint],
    ) -> None:
        self._poll = select.poll()
        self._client = client
        self._argv = argv
        self._kill_after_s = kill_after_s
        self._terminal = terminal
        self._ignored = ignored
        self._lifeline = lifeline
        self._clock = clock
        self._brokers = brokers
        self._last_words = "", b""
        self._command: subprocess.Popen[bytes] | None = None
        self._group = 0
        """The command's process group; 0 once its leader has been waited for."""
        self._kill_at = _NEVER
        """Set as soon as the command is to end: everything left then is killed."""
        self._act_at = _NEVER
        """When the command is to end, whatever the client does; it is killed at..."""
        self._due_kill_at = _NEVER
        self._when_closed: tuple[float, float] | None = None
        self._cut: tuple[float, float] | None = None
        """The same again, counted from the moment in which the link was closed."""
        self._told: set[int] = set()
        """Children that have had their SIGTERM."""
        self._workspace = ""
        self._link: int | None = None
        """The client's connection to its broker, which must not end before the command has."""
        self._is_link_watched = False
        self._farewell = b""
        self._done = False

    def serve(self) -> None:
        """Do as the client says, until all is over or the client is gone."""
        woken, waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._poll.register(woken, select.POLLIN)
        self._poll.register(self._client, select.POLLIN)
        while not self._done:
            for fd, _ in self._poll.poll(self._patience_ms()):
                if fd == woken:
                    with suppress(BlockingIOError):
                        os.read(woken, 4096)
                elif fd == self._link:
                    self._link_closed()
                elif fd == self._client.fileno() and not self._obey(self._receive()):
                    self._abandoned()
                    return
            self._reap()
            self._mind_due()
            self._end_leftovers()
        # Whoever closes a socket with orders unread resets it, and what was told last is lost.
        while packet := self._receive():
            if json.loads(packet)[0] == "over":
                return
        self._abandoned()  # it died before it had given its environment back

    def _patience_ms(self) -> float | None:
        is_ending = self._kill_at < _NEVER
        next_at = min(self._kill_at, self._act_at, self._cut[0] if self._cut else _NEVER)
        if next_at == _NEVER:
            return None
        left = min(max(0.0, next_at - self._clock()), _NAP_S)
        return (min(left, _ADOPTION_S) if is_ending and not self._group else left) * 1000

    def _receive(self) -> bytes:
        try:
            packet, links, *_ = socket.recv_fds(self._client, PACKET_BYTES, 1)
        except ConnectionError:
            return b""
        for link in links:
            # recv_fds ignores MSG_CMSG_CLOEXEC (Python 3.11 to 3.13): the command would inherit it.
            os.set_inheritable(link, False)
            if self._link is not None:
                self._unwatch_link()
                os.close(self._link)
            self._link, self._cut = link, None
            self._poll.register(link, select.POLLRDHUP)
            self._is_link_watched = True
        return packet

    def _unwatch_link(self) -> None:
        if self._link is not None and self._is_link_watched:
            self._poll.unregister(self._link)
        self._is_link_watched = False

    def _link_closed(self) -> None:
        """Its host may have been told so, and takes the client for dead."""
        if not self._is_link_watched:
            return  # the client, heard in the same turn, says that it means nothing
        self._unwatch_link()
        if self._when_closed:
            due_s, kill_after_s = self._when_closed
            self._cut = _deadlines(self._clock() + due_s, kill_after_s)

    def _tell(self, what: Happening, value: int = 0) -> None:
        with suppress(ConnectionError):  # the next receive ends the guard
            self._client.send(Event(what, value).dump())

    def _obey(self, packet: bytes) -> bool:
        """Carry out one order; False when the client is gone."""
        if not packet:
            return False
        order, *values = json.loads(packet)
        match order:
            case "run":
                self._run(*values)
            case "signal":
                self._signal_group(*values)
            case "resume":
                self._resume()
            case "stop":
                self._begin_end(self._clock() + values[0])
            case "until":
                self._act_at, self._due_kill_at = _deadlines(*values)
            case "ignore link":
                self._unwatch_link()
                self._cut = None
            case "will":
                self._farewell = bytes.fromhex(values[0])
        return True

    def _run(
        self,
        environment: Mapping[str, str],
        workspace: str,
        farewell: str,
        function: str,
        words: str,
        when_closed: tuple[float, float] | None,
    ) -> None:
        self._workspace = workspace
        self._farewell = bytes.fromhex(farewell)
        self._last_words = function, bytes.fromhex(words)
        self._when_closed = when_closed
        self._mind_due()
        if self._done:
            return
        terminal = self._terminal if self._terminal and self._terminal.is_stdin else None
        if terminal:
            terminal.lend()
        try:
            self._command = subprocess.Popen(
                self._argv,
                env={**os.environ, **environment},
                close_fds=False,  # what the client inherited (a make job server) is the command's
                process_group=0,
                preexec_fn=partial(self._become_job, terminal) if self._terminal else None,  # noqa: PLW1509 - no threads
            )
        except OSError as exc:
            self._take_terminal(restore=True)
            self._refuse(exc.errno or 0)
            return
        self._group = self._command.pid
        self._lifeline.hold(self._group)
        self._tell(Happening.STARTED)

    def _become_job(self, terminal: Terminal | None) -> None:
        """Between fork and exec: take the terminal, if one is lent, and obey job control."""
        if terminal:
            terminal.give_to(os.getpid())
        for number in _JOB_CONTROL:
            if number not in self._ignored:
                signal.signal(number, signal.SIG_DFL)

    def _signal_group(self, number: int) -> None:
        if self._group:
            reaper.signal_group(self._group, number)

    def _resume(self) -> None:
        """Go on after a stop, on the terminal if the client's job has it."""
        if self._group:
            if self._terminal and self._terminal.is_ours:
                self._terminal.lend()
                self._terminal.give_to(self._group)
            self._signal_group(signal.SIGCONT)

    def _mind_due(self) -> None:
        """End the command, or never start it, when the client should have ended it."""
        now = self._clock()
        if self._cut and now >= self._cut[0]:
            self._act_at, self._due_kill_at = self._cut
            self._cut = None
        if now < self._act_at:
            return
        self._act_at = _NEVER
        if self._command is None:
            self._refuse(errno.ETIME)
        else:
            if self._kill_at == _NEVER:
                self._tell(Happening.DUE)
            self._begin_end(self._due_kill_at)

    def _begin_end(self, kill_at: float) -> None:
        """SIGTERM to the command's group; what is left at `kill_at` is killed.

        Where the end has begun already, it only comes sooner.
        """
        if self._kill_at == _NEVER:
            self._signal_group(signal.SIGTERM)
            self._signal_group(signal.SIGCONT)  # a stopped process would keep it pending
        self._kill_at = min(self._kill_at, kill_at)

    def _reap(self) -> None:
        """Wait for all that has died or stopped: the command, and adopted orphans."""
        peek = os.WEXITED | os.WSTOPPED | os.WNOHANG | os.WNOWAIT
        with suppress(ChildProcessError):
            while found := os.waitid(os.P_ALL, 0, peek):
                if found.si_pid == self._group and found.si_code not in _STOPPED:
                    # Before waiting for the leader, which gives its group's number free.
                    self._begin_end(self._clock() + self._kill_after_s)
                    self._lifeline.release()
                pid, status = os.waitpid(found.si_pid, os.WUNTRACED | os.WNOHANG)
                if not pid:
                    continue  # it was stopped, and goes on already
                self._told.discard(found.si_pid)
                if found.si_pid == self._group:
                    self._command_changed(status)

    def _command_changed(self, status: int) -> None:
        if not os.WIFSTOPPED(status):
            self._group = 0
            self._take_terminal(restore=os.WIFSIGNALED(status))
            if reaper.has_children():
                self._tell(Happening.EXITED, status)
            else:
                self._tell(Happening.ENDED, status)
                self._done = True
        elif self._terminal is None:
            pass  # nobody's job control: whoever stopped it may continue it
        elif os.WSTOPSIG(status) in _JOB_CONTROL and self._terminal.is_ours:
            self._resume()  # it only lacked the terminal, for instance to ask for a password
        else:
            self._terminal.take_back_from(self._group)
            self._tell(Happening.SUSPENDED)

    def _take_terminal(self, *, restore: bool) -> None:
        if self._terminal:
            self._terminal.take_back(restore=restore)

    def _end_leftovers(self) -> None:
        """After the command: SIGTERM to what it left behind, and SIGKILL when time is up."""
        if self._kill_at == _NEVER or self._done:
            return
        if self._clock() >= self._kill_at:
            self._finish(self._kill())
        elif not reaper.has_children():
            self._finish()
        elif not self._group:
            children = set(reaper.children())
            for pid in children - self._told:
                reaper.signal_child(pid, signal.SIGTERM)
                reaper.signal_child(pid, signal.SIGCONT)
            self._told = children

    def _refuse(self, number: int) -> None:
        self._tell(Happening.NOT_STARTED, number)
        self._finish()

    def _finish(self, unkillable: int = 0) -> None:
        if not self._done:
            self._tell(Happening.GONE, unkillable)
            self._done = True

    def _kill(self) -> int:
        self._signal_group(signal.SIGKILL)
        return reaper.kill_children(self._reap)

    def _abandoned(self) -> None:
        """The client is dead: end everything now, and remove the data file's secrets."""
        if not self._kill() and not self._bid_farewell():
            self._say_goodbye()
        if self._workspace:
            import shutil  # rarely needed, and not on the way to the command

            shutil.rmtree(self._workspace, ignore_errors=True)

    def _bid_farewell(self) -> bool:
        """Give the environment back in the client's place: its command is certainly dead.

        A connection that ends without this may have been cut, and its client may live. Returns
        whether the broker has it.
        """
        if self._link is None:
            return False
        with socket.socket(fileno=self._link) as broker, suppress(OSError):
            broker.settimeout(_FAREWELL_S)
            broker.sendall(self._farewell)
            broker.shutdown(socket.SHUT_WR)
            # Whoever closes a socket with bytes unread resets it, and the farewell is lost.
            while broker.recv(PACKET_BYTES):
                pass
            return bool(self._farewell)
        return False

    def _say_goodbye(self) -> None:
        """The same over a connection of our own."""
        function, words = self._last_words
        if function and self._brokers:
            import asyncio  # rarely needed, and not on the way to the command

            from testenv.goodbye import say_goodbye

            asyncio.run(say_goodbye(self._brokers, function, words))


def _deadlines(due_s: float, kill_after_s: float) -> tuple[float, float]:
    """When the guard acts for its client, and when it kills what is left: see `Guard.until`."""
    return due_s + min(GUARD_LATER_S, kill_after_s / 2), due_s + kill_after_s


def guard_main(
    client: socket.socket,
    argv: Sequence[str],
    kill_after_s: float,
    client_group: int,
    ignored: frozenset[signal.Signals],
    lifeline: Lifeline,
    clock: Callable[[], float],
    brokers: Sequence[Endpoint],
) -> None:
    """Be the guard, in a process of its own that ignores RELAYED already."""
    for number in RELAYED:
        if number not in ignored:
            # Caught, not ignored: exec makes that the default again, and ignoring it would not.
            signal.signal(number, lambda *_: None)
    terminal = Terminal.of_job(client_group)
    if terminal:
        for number in _JOB_CONTROL:
            signal.signal(number, signal.SIG_IGN)
    reaper.set_process_name("testenv-guard")
    reaper.become_subreaper()
    GuardProcess(client, argv, kill_after_s, terminal, ignored, lifeline, clock, brokers).serve()
