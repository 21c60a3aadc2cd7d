"""The guard: a small process that is the command's parent, and ends it whatever else happens.

The client forks it before it has threads, sockets or an event loop, and talks to it over a
socket pair, one JSON array a packet. The guard starts the command in a process group of its own,
lends it the terminal, and tells of its end. When the client dies, even of SIGKILL, the socket
ends, and the guard kills the command with all its descendants. When the guard dies, the command
dies with it, and the client sweeps up the descendants; when both die, the lifeline acts.

A command's background processes don't outlive it: they get SIGTERM when the command has exited,
and SIGKILL `kill_after_s` later.
"""

import json
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial

from testenv import reaper
from testenv.guard import PACKET_BYTES, RELAYED, Event, Happening
from testenv.lifeline import Lifeline
from testenv.terminal import Terminal

_JOB_CONTROL = (signal.SIGTTIN, signal.SIGTTOU)
_STOPPED = (os.CLD_STOPPED, os.CLD_TRAPPED)

_FAREWELL_S = 1.0
_ADOPTION_S = 0.05
"""Adopting an orphan raises no signal: how often leftovers are looked for."""


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
    ) -> None:
        self._client = client
        self._argv = argv
        self._kill_after_s = kill_after_s
        self._terminal = terminal
        self._ignored = ignored
        self._lifeline = lifeline
        self._command: subprocess.Popen[bytes] | None = None
        self._group = 0
        """The command's process group; 0 once its leader has been waited for."""
        self._kill_at: float | None = None
        """Set as soon as the command is to end: everything left then is killed."""
        self._told: set[int] = set()
        """Children that have had their SIGTERM."""
        self._workspace = ""
        self._links: list[int] = []
        """The client's connection to its broker, which must not end before the command has."""
        self._farewell = b""
        self._stop_at = float("inf")
        """When the lease is over, whatever the client does."""
        self._done = False

    def serve(self) -> None:
        """Do as the client says, until all is over or the client is gone."""
        woken, waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        poll = select.poll()
        poll.register(woken, select.POLLIN)
        poll.register(self._client, select.POLLIN)
        while not self._done:
            for fd, _ in poll.poll(self._patience_ms()):
                if fd == woken:
                    with suppress(BlockingIOError):
                        os.read(woken, 4096)
                elif not self._obey(self._receive()):
                    self._abandoned()
                    return
            self._reap()
            if time.monotonic() >= self._stop_at:
                self._begin_end()
            self._end_leftovers()
        # Whoever closes a socket with orders unread resets it, and what was told last is lost.
        while self._receive():
            pass

    def _patience_ms(self) -> float | None:
        if self._kill_at is None:
            if self._stop_at == float("inf"):
                return None
            return max(0.0, self._stop_at - time.monotonic()) * 1000
        left = max(0.0, self._kill_at - time.monotonic())
        return (left if self._group else min(left, _ADOPTION_S)) * 1000

    def _receive(self) -> bytes:
        try:
            packet, links, *_ = socket.recv_fds(self._client, PACKET_BYTES, 1)
        except ConnectionError:
            return b""
        for link in links:
            # recv_fds ignores MSG_CMSG_CLOEXEC (Python 3.11 to 3.13): the command would inherit it.
            os.set_inheritable(link, False)
        self._links += links
        return packet

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
                self._begin_end()
        return True

    def _run(
        self, environment: Mapping[str, str], workspace: str, farewell: str, time_s: float
    ) -> None:
        self._workspace = workspace
        self._farewell = bytes.fromhex(farewell)
        self._stop_at = time.monotonic() + time_s
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
            self._tell(Happening.NOT_STARTED, exc.errno or 0)
            self._finish()
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

    def _begin_end(self) -> None:
        """SIGTERM to the command's group; what is left after `kill_after_s` is killed."""
        if self._kill_at is None:
            self._kill_at = time.monotonic() + self._kill_after_s
            self._signal_group(signal.SIGTERM)
            self._signal_group(signal.SIGCONT)  # a stopped process would keep it pending

    def _reap(self) -> None:
        """Wait for all that has died or stopped: the command, and adopted orphans."""
        peek = os.WEXITED | os.WSTOPPED | os.WNOHANG | os.WNOWAIT
        with suppress(ChildProcessError):
            while found := os.waitid(os.P_ALL, 0, peek):
                if found.si_pid == self._group and found.si_code not in _STOPPED:
                    # Before waiting for the leader, which gives its group's number free.
                    self._begin_end()
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
        if self._kill_at is None or self._done:
            return
        if time.monotonic() >= self._kill_at:
            self._finish(self._kill())
        elif not reaper.has_children():
            self._finish()
        elif not self._group:
            children = set(reaper.children())
            for pid in children - self._told:
                reaper.signal_child(pid, signal.SIGTERM)
                reaper.signal_child(pid, signal.SIGCONT)
            self._told = children

    def _finish(self, unkillable: int = 0) -> None:
        self._tell(Happening.GONE, unkillable)
        self._done = True

    def _kill(self) -> int:
        self._signal_group(signal.SIGKILL)
        return reaper.kill_children(self._reap)

    def _abandoned(self) -> None:
        """The client is dead: end everything now, and remove the data file's secrets."""
        if not self._kill():
            self._bid_farewell()
        if self._workspace:
            import shutil  # rarely needed, and not on the way to the command

            shutil.rmtree(self._workspace, ignore_errors=True)

    def _bid_farewell(self) -> None:
        """Give the environment back in the client's place: its command is certainly dead.

        A connection that ends without this may have been cut, and its client may live.
        """
        for link in self._links:
            with socket.socket(fileno=link) as broker, suppress(OSError):
                broker.settimeout(_FAREWELL_S)
                broker.sendall(self._farewell)
                broker.shutdown(socket.SHUT_WR)
                # Whoever closes a socket with bytes unread resets it, and the farewell is lost.
                while broker.recv(PACKET_BYTES):
                    pass
        self._links.clear()


def guard_main(
    client: socket.socket,
    argv: Sequence[str],
    kill_after_s: float,
    client_group: int,
    ignored: frozenset[signal.Signals],
    lifeline: Lifeline,
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
    GuardProcess(client, argv, kill_after_s, terminal, ignored, lifeline).serve()
