"""One client after another, in a world of simulated time.

The tenures are the real ones; the drivers around them are the shortest that keep DESIGN section 4.
"""

from collections.abc import Callable
from functools import partial

from hosts.state import LeaseEvent as HostEvent
from testenv import state as client_side
from testenv.state import LeaseEvent as Event
from testenv.state import LeaseState as State
from tests.unit.lease_world import (
    RETRY_S,
    SILENCE_S,
    TICK_S,
    Clock,
    Connection,
    Lease,
    Leg,
    World,
)


class Command:
    """What a client runs; `on_end` is called when it is dead."""

    def __init__(self, world: World, lease: Lease, on_end: Callable[[], None]) -> None:
        self.lease = lease
        self.is_alive = True
        self.is_told = False
        self._world = world
        self._on_end = on_end
        world.commands.append(self)

    def end(self, latest: float) -> None:
        """It will be dead at some time between now and `latest`, and rather late."""
        self.is_told = True
        early = self._world.random.uniform(self._world.now, max(latest, self._world.now))
        self._world.at(self._world.random.choice((early, latest, latest)), self.die)

    def die(self) -> None:
        if self.is_alive:
            self.is_alive = False
            self._world.commands.remove(self)
            self._on_end()


class Client:
    """A client, its guard, and its command."""

    tenures = client_side.Tenure

    def __init__(self, world: World, rate: float) -> None:
        self.world = world
        self.clock = Clock(world, rate)
        self.is_alive = True
        self.is_stopped = False
        self.is_deaf = False
        self.is_cut_off = False
        self.held: list[Callable[[], None]] = []
        """Packets that the network keeps until the partition heals."""
        self.connection = Connection(self, world.broker)
        self.is_connected = True
        self.lease: Lease | None = None
        self.tenure: client_side.Tenure | None = None
        self.command: Command | None = None
        self._leg: Leg | None = None
        self._sent: list[float] = []
        self._inbox: list[Callable[[], None]] = []

    def receive(self, connection: Connection, deliver: Callable[[], None]) -> None:
        if self.is_stopped:
            self._inbox.append(partial(self.receive, connection, deliver))
        elif self.is_alive and self.is_connected and connection is self.connection:
            deliver()

    def tell(self, event: Event, sent: float = 0.0) -> None:
        if not self.tenure:
            return
        before = self.tenure.state
        self.tenure = self.tenure.after(event, self.clock.now(), sent)
        if before is State.OFFERED and self.tenure.state is State.ENDED:
            self._report(HostEvent.DECLINED)
        if self.command and self.tenure.state is State.ENDED:
            self._end_command()
        self._watch()

    def _watch(self) -> None:
        assert self.tenure
        self.world.at(self.clock.when(self.tenure.due) + TICK_S, self._due)

    def _due(self) -> None:
        """The guard minds it as well, for a client that is stopped."""
        if not self.tenure or not self.is_alive or self.clock.now() < self.tenure.due:
            return
        if not self.is_stopped and self.tenure.state is not State.ENDED:
            self.tell(Event.DUE)
        elif self.command:
            self._end_command()

    def _end_command(self) -> None:
        assert self.command
        assert self.tenure
        graced = self.clock.now() + self.tenure.grace_s
        self.command.end(self.clock.when(min(graced, self.tenure.until)))

    def _report(self, event: HostEvent) -> None:
        """DECLINED or COMPLETED: nothing of the lease's command is alive."""
        if self.lease and self.is_connected and not self.is_stopped:
            self.world.to_host(self.connection, partial(self.world.host.over, self.lease, event))

    def _command_died(self) -> None:
        if self.is_alive and not self.is_stopped:
            self.tell(Event.OVER)
            self._report(HostEvent.COMPLETED)

    def offered(self, lease: Lease, leg: Leg) -> None:
        if self.lease:  # its own offer a second time; declining that would end the lease
            return
        grace = self.world.random.choice((0.0, 60.0))
        self.lease, self._leg = lease, leg
        self.tenure = self.tenures.acked(self.world.terms, grace, self.clock.now())
        self._watch()
        self._say()

    def _say(self) -> None:
        """A beat, which an ack is as well."""
        if not self.lease or not self._leg or not self.is_connected:
            return
        self._sent.append(self.clock.now())
        number = len(self._sent) - 1
        self.world.to_host(
            self.connection, partial(self.world.host.acked, self.lease, self._leg, number)
        )

    def _beat(self, leg: Leg) -> None:
        if not self.is_alive or leg != self._leg or not self.tenure:
            return
        if not self.is_stopped and self.tenure.state is State.ACTIVE:
            self._say()
        self.world.after(self.clock.when(self.world.terms.beat_s), partial(self._beat, leg))

    def confirmed(self, leg: Leg) -> None:
        if leg != self._leg or not self.tenure or not self.lease:
            return
        if self.tenure.state is State.OFFERED and self.clock.now() < self.tenure.due:
            self.tell(Event.CONFIRMED, self._sent[0])
            self.command = Command(self.world, self.lease, self._command_died)
            self._beat(leg)

    def echoed(self, leg: Leg, beat: int) -> None:
        if leg == self._leg:
            self.tell(Event.ECHOED, self._sent[beat])

    def resumed(self, leg: Leg) -> None:
        if not self.tenure or self.tenure.state not in (State.ACTIVE, State.SUSPECT):
            return
        if self._leg is None or leg.number > self._leg.number:
            self._leg = leg
            self.tell(Event.RESUMED)
            self._beat(leg)

    def told(self, lease: Lease) -> None:
        if lease is self.lease:
            self.tell(Event.TOLD)

    def leg_lost(self, leg: Leg) -> None:
        if leg == self._leg:
            self._leg = None
            self.tell(Event.LEG_LOST)
            self._reattach()

    def broker_lost(self, connection: Connection) -> None:
        if self.is_deaf or not self.is_connected or connection is not self.connection:
            return
        if self.is_stopped:
            self._inbox.append(partial(self.broker_lost, connection))
            self._guard_sees_close()
        elif self.is_alive:
            has_leg, self.is_connected, self._leg = bool(self._leg), False, None
            if has_leg:
                self.tell(Event.CUT)
                self._first_look()

    def _guard_sees_close(self) -> None:
        """It hurries in place of a client that is stopped, without being told."""
        if self.tenure and self.command and self._leg:
            self.tenure = self.tenure.after(Event.CUT, self.clock.now())
            self._watch()

    def _first_look(self) -> None:
        """Whether the broker that closed our connection has died."""
        if not self.world.broker_up and not self.is_deaf:
            self.tell(Event.SPARED)
        self._reattach()

    def give_up(self) -> None:
        """Close a connection that is silent, or seems so."""
        if self.is_alive and not self.is_stopped and self.is_connected:
            self.is_connected, self._leg = False, None
            self.tell(Event.CUT)
            self.world.closed(self.connection)
            self._reattach()

    def _reattach(self) -> None:
        if not self.is_alive or not self.lease or not self.tenure:
            return
        if self.tenure.state is not State.SUSPECT:
            return
        self.world.after(self.clock.when(RETRY_S), self._reattach)
        if self.is_stopped or self.is_deaf or not self.world.broker_up:
            return
        if not self.is_connected:
            self.connection, self.is_connected = Connection(self, self.world.broker), True
        self.world.to_host(
            self.connection, partial(self.world.host.reattach, self.lease, self.connection)
        )

    def cut_off(self, both_ways: bool) -> None:
        """No packet gets through to us any more, or from us either, and nobody is told."""
        self.is_cut_off = self.is_cut_off or both_ways
        if not self.is_deaf:
            self.is_deaf = True
            patience = self.world.random.uniform(0, SILENCE_S)
            self.world.after(patience, self._notice_silence)

    def _notice_silence(self) -> None:
        if self.is_deaf:
            self.give_up()
            if self.is_stopped:
                self.world.after(RETRY_S, self._notice_silence)

    def heal(self) -> None:
        self.is_deaf = self.is_cut_off = False
        held, self.held = self.held, []
        for packet in held:
            packet()
        if self.is_connected and self.connection.broker != self.world.broker:
            self.broker_lost(self.connection)

    def stop(self) -> None:
        """SIGSTOP; the guard lives."""
        self.is_stopped = self.is_alive

    def resume(self) -> None:
        """SIGCONT."""
        if not self.is_stopped:
            return
        self.is_stopped = False
        inbox, self._inbox = self._inbox, []
        self._due()
        for packet in inbox:
            packet()
        if self.command and not self.command.is_alive:
            self._command_died()

    def kill(self, with_guard: bool) -> None:
        """SIGKILL. The guard, or else the lifeline, kills the command; then the link closes."""
        if not self.is_alive:
            return
        self.is_alive = False
        if self.command:
            self.command.die()
        if self.is_connected:
            if not with_guard and self.world.random.random() < 0.5:
                self.is_stopped = False
                self._report(HostEvent.COMPLETED)
            self.is_connected = False
            self.world.closed(self.connection)
