"""The guard by itself: what it does in time, and says, though its client does nothing."""

import errno
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from testenv.guard import (
    GUARD_LATER_S,
    PACKET_BYTES,
    Event,
    Guard,
    Happening,
    LastWill,
    boottime,
)

BOUND_S = 15.0
SLACK_S = 0.7
"""What a busy machine may add to what a guard does in milliseconds."""

CUT_S = 0.3
"""How long a command may live after its client's connection was closed."""

OBEDIENT = "trap 'exit 7' TERM; echo >up; while :; do sleep 0.02; done"
STUBBORN = "trap '' TERM; echo >up; while :; do sleep 0.02; done"


class Client:
    """What a client does with its guard, one step at a time."""

    def __init__(self, guard: Guard, folder: Path) -> None:
        self.guard = guard
        self.broker, self._link = socket.socketpair()
        self._folder = folder
        for end in (self.broker, guard.socket):
            end.settimeout(BOUND_S)

    def order(self) -> None:
        """Order the start."""
        will = LastWill(self._link.fileno(), b"first", when_closed=(CUT_S, 10))
        self.guard.run({}, "", will)

    def start(self) -> None:
        """Start the command, and wait until it has set its traps."""
        self.order()
        assert self.hears() == Event(Happening.STARTED)
        wait_until((self._folder / "up").exists)

    def hears(self) -> Event:
        """The guard's next word."""
        return Event.parse(self.guard.socket.recv(PACKET_BYTES))

    def move(self) -> socket.socket:
        """Go to another connection, and let go of the first. Returns the new broker's end."""
        broker, link = socket.socketpair()
        broker.settimeout(BOUND_S)
        with link:
            self.guard.will(link.fileno(), b"second")
        self.let_go()
        return broker

    def let_go(self) -> None:
        """Close our own end of the connection; the guard may have another."""
        self._link.close()

    def close(self) -> None:
        self.let_go()
        self.broker.close()


class SuspendableClock:
    """The machine's clock, for this process and its guard, as if it had been suspended."""

    def __init__(self, slept: Path) -> None:
        self._slept = slept
        self.suspend(0)

    def __call__(self) -> float:
        return boottime() + float(self._slept.read_text())

    def suspend(self, seconds: float) -> None:
        new = self._slept.with_suffix(".new")
        new.write_text(str(seconds))
        new.replace(self._slept)


@contextmanager
def client_of(
    script: str, folder: Path, kill_after_s: float = 10, clock: Callable[[], float] = boottime
) -> Iterator[Client]:
    command = ("sh", "-c", f"cd '{folder}'; {script}")
    with Guard.fork(command, kill_after_s, clock) as guard:
        client = Client(guard, folder)
        try:
            yield client
        finally:
            client.close()


def wait_until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + BOUND_S
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def ended_when_due(client: Client) -> int:
    """As `ended_by`, of a command that its guard has ended in its client's place."""
    assert client.hears() == Event(Happening.DUE)
    return ended_by(client.hears())


def ended_by(event: Event) -> int:
    """The exit status, or minus the signal, of a command that is over."""
    assert event.what in (Happening.EXITED, Happening.ENDED)
    return os.waitstatus_to_exitcode(event.value)


def test_command_is_told_to_end_a_moment_after_it_is_due(tmp_path: Path) -> None:
    """In that moment a client that lives says why, and does it itself."""
    with client_of(OBEDIENT, tmp_path) as client:
        client.start()
        due = boottime() + 0.3
        client.guard.until(due, kill_after_s=10)
        assert ended_when_due(client) == 7
        assert GUARD_LATER_S <= boottime() - due < GUARD_LATER_S + SLACK_S


def test_stubborn_command_is_dead_its_grace_after_it_was_due(tmp_path: Path) -> None:
    with client_of(STUBBORN, tmp_path) as client:
        client.start()
        due = boottime() + 0.3
        client.guard.until(due, kill_after_s=1.5)
        assert ended_when_due(client) == -signal.SIGKILL
        assert 1.5 <= boottime() - due < 1.5 + SLACK_S


def test_due_before_the_start_holds_for_the_command(tmp_path: Path) -> None:
    with client_of(OBEDIENT, tmp_path) as client:
        due = boottime() + 0.3
        client.guard.until(due, kill_after_s=10)
        client.start()
        assert ended_when_due(client) == 7
        assert GUARD_LATER_S <= boottime() - due < GUARD_LATER_S + SLACK_S


def test_lease_s_time_is_its_first_due_and_can_be_moved(tmp_path: Path) -> None:
    with client_of(OBEDIENT, tmp_path) as client:
        client.guard.until(boottime() + 0.2, kill_after_s=10)
        client.start()
        due = boottime() + 1
        client.guard.until(due, kill_after_s=10)
        assert ended_when_due(client) == 7
        assert GUARD_LATER_S <= boottime() - due < GUARD_LATER_S + SLACK_S


def test_command_lives_on_as_long_as_each_beat_moves_its_end(tmp_path: Path) -> None:
    with client_of(OBEDIENT, tmp_path) as client:
        client.start()
        for _ in range(8):
            due = boottime() + 0.1
            client.guard.until(due, kill_after_s=10)
            time.sleep(0.3)
        assert ended_when_due(client) == 7
        assert GUARD_LATER_S <= boottime() - due < GUARD_LATER_S + SLACK_S


def test_command_is_not_started_once_it_is_due(tmp_path: Path) -> None:
    with client_of("touch ran", tmp_path) as client:
        client.guard.until(boottime() - GUARD_LATER_S, kill_after_s=10)
        client.order()
        assert client.hears() == Event(Happening.NOT_STARTED, errno.ETIME)
        assert client.hears() == Event(Happening.GONE)
    assert not (tmp_path / "ran").exists()


def test_end_that_has_begun_is_not_taken_back(tmp_path: Path) -> None:
    script = "trap 'touch told' TERM; echo >up; while :; do sleep 0.02; done"
    with client_of(script, tmp_path) as client:
        client.start()
        client.guard.until(boottime() - GUARD_LATER_S, kill_after_s=GUARD_LATER_S + 0.5)
        wait_until((tmp_path / "told").exists)
        client.guard.until(boottime() + 60, kill_after_s=10)
        assert ended_when_due(client) == -signal.SIGKILL


def test_command_due_while_the_machine_was_suspended_is_killed_when_it_is_back(
    tmp_path: Path,
) -> None:
    """Its grace is over too: the environment may be somebody else's by now."""
    clock = SuspendableClock(tmp_path / "slept")
    with client_of(STUBBORN, tmp_path, clock=clock) as client:
        client.start()
        client.guard.until(clock() + 60, kill_after_s=20)
        time.sleep(0.2)
        clock.suspend(3600)
        back = time.monotonic()
        assert ended_when_due(client) == -signal.SIGKILL
        assert time.monotonic() - back < 5 + SLACK_S


def test_command_due_while_the_machine_was_suspended_is_not_started_after_it(
    tmp_path: Path,
) -> None:
    clock = SuspendableClock(tmp_path / "slept")
    with client_of("touch ran", tmp_path, clock=clock) as client:
        client.guard.until(clock() + 60, kill_after_s=20)
        time.sleep(0.2)
        clock.suspend(3600)
        client.order()
        assert client.hears() == Event(Happening.NOT_STARTED, errno.ETIME)
    assert not (tmp_path / "ran").exists()


def test_closed_connection_is_seen_for_a_client_that_is_stopped(tmp_path: Path) -> None:
    with client_of(OBEDIENT, tmp_path) as client:
        client.guard.until(boottime() + 60, kill_after_s=10)
        client.start()
        client.broker.close()
        closed = boottime()
        client.guard.until(boottime() + 60, kill_after_s=10)  # of before the client saw it
        assert ended_when_due(client) == 7
        bound = CUT_S + GUARD_LATER_S
        assert bound <= boottime() - closed < bound + SLACK_S


def test_closed_connection_may_be_said_to_mean_nothing(tmp_path: Path) -> None:
    with client_of(OBEDIENT, tmp_path) as client:
        client.guard.until(boottime() + 60, kill_after_s=10)
        client.start()
        client.broker.close()
        time.sleep(0.1)
        client.guard.ignore_link()
        due = boottime() + CUT_S + 1
        client.guard.until(due, kill_after_s=10)
        assert ended_when_due(client) == 7
        assert boottime() >= due + GUARD_LATER_S


def test_client_that_sees_its_connection_closed_late_gains_no_time(tmp_path: Path) -> None:
    with client_of(OBEDIENT, tmp_path) as client:
        client.guard.until(boottime() + 60, kill_after_s=10)
        client.start()
        client.broker.close()
        closed = boottime()
        time.sleep(0.8)
        client.guard.until(boottime() + 10, kill_after_s=10)
        assert ended_when_due(client) == 7
        assert boottime() - closed < CUT_S + GUARD_LATER_S + SLACK_S


def test_guard_that_sees_a_close_and_hears_at_once_that_it_means_nothing_goes_by_its_client(
    tmp_path: Path,
) -> None:
    with client_of(OBEDIENT, tmp_path) as client:
        client.guard.until(boottime() + 60, kill_after_s=10)
        client.start()
        os.kill(client.guard.pid, signal.SIGSTOP)
        client.broker.close()
        client.guard.ignore_link()
        due = boottime() + CUT_S + 1
        client.guard.until(due, kill_after_s=10)
        os.kill(client.guard.pid, signal.SIGCONT)
        assert ended_when_due(client) == 7
        assert boottime() >= due + GUARD_LATER_S


def test_connection_that_the_client_has_left_may_be_closed(tmp_path: Path) -> None:
    with client_of(OBEDIENT, tmp_path) as client:
        client.start()
        with client.move():
            client.broker.close()
            due = boottime() + CUT_S + 1
            client.guard.until(due, kill_after_s=10)
            assert ended_when_due(client) == 7
        assert boottime() >= due + GUARD_LATER_S


def test_stop_takes_another_grace_and_a_second_one_only_hastens_it(tmp_path: Path) -> None:
    with client_of(STUBBORN, tmp_path, kill_after_s=60) as client:
        client.start()
        client.guard.stop()
        client.guard.stop(kill_after_s=0.5)
        client.guard.stop(kill_after_s=30)
        stopped = time.monotonic()
        assert ended_by(client.hears()) == -signal.SIGKILL
        assert 0.4 < time.monotonic() - stopped < 0.5 + SLACK_S


def test_due_hastens_a_stop_with_a_longer_grace(tmp_path: Path) -> None:
    with client_of(STUBBORN, tmp_path, kill_after_s=60) as client:
        client.start()
        due = boottime() + 0.2
        client.guard.until(due, kill_after_s=1.2)
        client.guard.stop()
        assert ended_by(client.hears()) == -signal.SIGKILL
        assert 1.2 <= boottime() - due < 1.2 + SLACK_S


@pytest.mark.parametrize("moves", [0, 1, 2])
def test_guard_says_farewell_on_the_connection_that_its_lease_has_now(
    tmp_path: Path, moves: int
) -> None:
    with client_of(STUBBORN, tmp_path) as client:
        client.start()
        broker, farewell = client.broker, b"first"
        for _ in range(moves):
            old, broker, farewell = broker, client.move(), b"second"
            assert old.recv(100) == b""
            old.close()
        client.let_go()
        client.guard.socket.close()
        with broker:
            assert broker.recv(100) == farewell
            broker.shutdown(socket.SHUT_RDWR)


def test_beats_to_a_guard_that_hangs_do_not_hang_the_client(tmp_path: Path) -> None:
    with client_of(OBEDIENT, tmp_path) as client:
        client.start()
        client.guard.socket.setblocking(False)
        os.kill(client.guard.pid, signal.SIGSTOP)
        try:
            for _ in range(5000):
                client.guard.until(boottime() + 60, kill_after_s=10)
        finally:
            os.kill(client.guard.pid, signal.SIGCONT)
