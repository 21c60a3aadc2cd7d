"""One environment's host in a world of simulated time: the real tenure, and the shortest driver."""

from functools import partial

from hosts import state as host_side
from hosts.state import LeaseEvent as HostEvent
from hosts.state import LeaseState as HostState
from tests.unit.lease_world import (
    RATES,
    RETRY_S,
    TICK_S,
    TURNOVER_S,
    Clock,
    Connection,
    Lease,
    Leg,
    World,
)


class Host:
    """The agent with its one environment; `lease` and `generation` are its journal."""

    tenures = host_side.Tenure

    def __init__(self, world: World, rate: float) -> None:
        self.world = world
        self.clock = Clock(world, rate)
        self.is_alive = True
        self.link = 0
        """A number for each connection to the broker; 0 for none."""
        self.generation = 1
        self.lease: Lease | None = None
        self.tenure: host_side.Tenure | None = None
        self.offers = 0
        self.is_ready = True
        self._offered: Leg | None = None
        self._leg: Leg | None = None
        self._resumes: list[Leg] = []
        self._echo: int | None = None
        self._life = 0
        self._tick()

    def legs(self) -> list[Leg]:
        return [leg for leg in (self._offered, self._leg, *self._resumes) if leg]

    def _tick(self) -> None:
        """Reach the broker; offer what is free."""
        self.world.after(RETRY_S, self._tick)
        if self.is_alive and self.world.broker_up and not self.link:
            self.link = next(self.world.numbers)
        if self.is_alive and self.link and self.is_ready:
            self._offer()

    def _offer(self) -> None:
        world = self.world
        world.check()
        self.is_ready = False
        self.offers += 1
        client = world.client_type(world, world.random.choice(RATES))
        self.lease = Lease(next(world.numbers), client, self.generation)
        self.tenure = self.tenures.offered(world.terms, self.clock.now())
        self._offered = Leg(next(world.numbers), client.connection)
        self._watch()
        world.to_client(client.connection, partial(client.offered, self.lease, self._offered))

    def tell(self, event: HostEvent) -> None:
        """What happens to the lease, if there is one."""
        if not self.is_alive or not self.tenure:
            return
        self.tenure = self.tenure.after(event, self.clock.now())
        if self.tenure.state is HostState.ENDED:
            self._end(self.tenure.touched)
        else:
            self._watch()

    def _watch(self) -> None:
        assert self.tenure
        self.world.at(self.clock.when(self.tenure.due) + TICK_S, self._due)

    def _due(self) -> None:
        if self.is_alive and self.tenure and self.clock.now() >= self.tenure.due:
            self.tell(HostEvent.DUE)

    def _end(self, touched: bool) -> None:
        self.lease = self.tenure = None
        self._drop_legs()
        if touched:
            self.generation += 1
            self._turn_over()
        else:
            self.is_ready = True

    def _turn_over(self) -> None:
        life = self._life

        def done() -> None:
            self.is_ready = self.is_ready or self._life == life

        self.world.after(self.world.random.uniform(0.1, TURNOVER_S), done)

    def _drop_legs(self) -> None:
        self._offered = self._leg = self._echo = None
        self._resumes = []

    def acked(self, lease: Lease, leg: Leg, beat: int) -> None:
        if lease is not self.lease or not self.tenure:
            return
        if leg == self._offered:
            self._offered, self._leg, self._echo = None, leg, beat
            self.tell(HostEvent.ACKED)
            if self.tenure.state is HostState.ACTIVE:
                self.send_confirm(leg)
                self._beat(leg)
        elif leg in self._resumes:
            self._resumes = [one for one in self._resumes if one.number > leg.number]
            self.tell(HostEvent.RESUMED)
            self._leg, self._echo = leg, beat
            self._beat(leg)
            if self.tenure and self.tenure.state is HostState.ENDING:
                self._send_end(lease, leg.connection)
        elif leg == self._leg:
            if self.tenure.echoes(HostEvent.BEAT):
                self._echo = beat
            self.tell(HostEvent.BEAT)

    def send_confirm(self, leg: Leg) -> None:
        client = leg.connection.client
        self.world.to_client(leg.connection, partial(client.confirmed, leg))

    def _beat(self, leg: Leg) -> None:
        if not self.is_alive or leg != self._leg or not self.tenure:
            return
        self.send_echo(leg)
        self.world.after(self.clock.when(self.world.terms.beat_s), partial(self._beat, leg))

    def send_echo(self, leg: Leg) -> None:
        if self.tenure and self.tenure.state is HostState.ACTIVE and self._echo is not None:
            client = leg.connection.client
            self.world.to_client(leg.connection, partial(client.echoed, leg, self._echo))

    def reattach(self, lease: Lease, connection: Connection) -> None:
        """The client has come back over `connection`."""
        client = lease.client
        if lease is not self.lease or not self.tenure or self.tenure.state is HostState.ENDING:
            self._send_end(lease, connection)
            return
        leg = Leg(next(self.world.numbers), connection)
        self._resumes.append(leg)
        self.world.to_client(connection, partial(client.resumed, leg))

    def over(self, lease: Lease, event: HostEvent) -> None:
        if lease is self.lease:
            self.tell(event)

    def cut(self, connection: Connection) -> None:
        if any(leg and leg.connection is connection for leg in (self._leg, self._offered)):
            self._leg = self._offered = None
            self.tell(HostEvent.CUT)

    def unlink(self) -> None:
        """The connection to the broker is lost."""
        if self.link:
            self.link = 0
            for leg in self.legs():
                self.world.leg_lost(leg)
            self._drop_legs()
            self.tell(HostEvent.UNREACHED)

    def revoke(self) -> None:
        lease, leg = self.lease, self._leg
        self.tell(HostEvent.TOLD)
        if lease and leg:
            self._send_end(lease, leg.connection)

    def _send_end(self, lease: Lease, connection: Connection) -> None:
        self.world.to_client(connection, partial(lease.client.told, lease))

    def kill(self) -> None:
        for leg in self.legs():
            self.world.leg_lost(leg)
        self.is_alive, self.link = False, 0
        self._life += 1
        self._drop_legs()

    def start(self) -> None:
        if self.is_alive:
            return
        self.is_alive = True
        if self.lease and self.tenure and self.tenure.touched:
            was_ending = self.tenure.state is HostState.ENDING
            self.tenure = self.tenures.restored(self.world.terms, self.clock.now())
            self._watch()
            if was_ending:
                self.tell(HostEvent.TOLD)
        elif self.lease:
            self._end(touched=False)
        elif not self.is_ready:
            self._turn_over()
