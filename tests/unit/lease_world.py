"""A world in simulated time: its clocks, its network and its broker. lease_rig.py peoples it.

A leg is known by the offer or resume that began it: whatever comes over an older one is ignored.
"""

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from random import Random
from typing import TYPE_CHECKING, NamedTuple

from schemas.terms import Terms

if TYPE_CHECKING:
    from tests.unit.lease_host import Host
    from tests.unit.lease_rig import Client, Command

LATENCY_S = 0.2
RETRY_S = 0.5
TURNOVER_S = 3.0
SILENCE_S = 20.0
"""A client that hears nothing for so long gives its connection up."""
RATES = (0.95, 1.05)
TO_CLIENT, TO_HOST = "to client", "to host"
TICK_S = 1e-6
"""How late a timer is: more than what rounding takes."""


class Clock:
    """A monotonic clock that runs `rate` times as fast as the world's."""

    def __init__(self, world: "World", rate: float) -> None:
        self._world = world
        self._rate = rate

    def now(self) -> float:
        return self._world.now * self._rate

    def when(self, time: float) -> float:
        """The world's time when this clock shows `time`."""
        return time / self._rate


@dataclass(eq=False)
class Connection:
    """A client's connection to the broker. `broker`: the run of the broker that it is to."""

    client: "Client"
    broker: int
    free_at: dict[str, float] = field(default_factory=dict)
    """For each direction, when its last message arrives: the next one does not overtake it."""


class Leg(NamedTuple):
    number: int
    connection: Connection


class Lease(NamedTuple):
    number: int
    client: "Client"
    generation: int


class World:
    """The event queue, the broker, and the network."""

    def __init__(
        self,
        terms: Terms,
        random: Random,
        rate: float,
        types: "tuple[type[Host], type[Client]]",
    ) -> None:
        self.terms = terms
        self.random = random
        self.now = 0.0
        self.is_noisy = True
        self.broker = 1
        self.broker_up = True
        self.numbers = count(1)
        self.commands: list[Command] = []
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self.client_type = types[1]
        self.host = types[0](self, rate)

    def at(self, when: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (max(when, self.now), next(self.numbers), action))

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        self.at(self.now + seconds, action)

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self._queue and self._queue[0][0] <= end:
            self.now, _, action = heapq.heappop(self._queue)
            action()
            self.check()
        self.now = end

    def check(self) -> None:
        """No command runs but that of the lease that its host keeps, in its generation."""
        for command in self.commands:
            lease = self.host.lease
            assert command.lease is lease, f"overlap: {command.lease.number} at {self.now:.3f}"
            assert command.lease.generation == self.host.generation

    def latency(self) -> float:
        return self.random.choice((0.0, 0.001, self.random.uniform(0, LATENCY_S)))

    def carry(self, connection: Connection, direction: str, deliver: Callable[[], None]) -> None:
        """Deliver in the order of `connection` and `direction`; maybe twice, or not at all."""
        if self.is_noisy and self.random.random() < 0.03:
            return
        self.carry_surely(connection, direction, deliver)
        if self.is_noisy and self.random.random() < 0.05:
            arrive = partial(self._arrive, connection, direction, deliver)
            self.after(self.random.uniform(0, 3 * self.terms.beat_s), arrive)

    def carry_surely(
        self, connection: Connection, direction: str, deliver: Callable[[], None]
    ) -> None:
        when = max(self.now + self.latency(), connection.free_at.get(direction, 0.0))
        connection.free_at[direction] = when
        self.at(when, partial(self._arrive, connection, direction, deliver))

    def _arrive(self, connection: Connection, direction: str, deliver: Callable[[], None]) -> None:
        client = connection.client
        if client.is_cut_off or (client.is_deaf and direction == TO_CLIENT):
            client.held.append(partial(self.carry_surely, connection, direction, deliver))
        elif connection.broker == self.broker and self.broker_up:
            deliver()

    def to_host(self, connection: Connection, deliver: Callable[[], None]) -> None:
        link = self.host.link

        def arrive() -> None:
            if self.host.link == link and link:
                deliver()

        self.carry(connection, TO_HOST, arrive)

    def to_client(self, connection: Connection, deliver: Callable[[], None]) -> None:
        self.carry(connection, TO_CLIENT, partial(connection.client.receive, connection, deliver))

    def closed(self, connection: Connection) -> None:
        """The client's end is closed: the broker hears of it, and tells the host."""
        arrive = partial(self.host.cut, connection)
        self.carry_surely(connection, TO_HOST, arrive)

    def reset(self, connection: Connection) -> None:
        """Close it for both, at once: whoever is between them can, if the client is reached."""
        if not connection.client.is_deaf:
            self.closed(connection)
            connection.client.broker_lost(connection)

    def leg_lost(self, leg: Leg) -> None:
        """The broker tells the client that the host's side of `leg` is gone."""
        client = leg.connection.client
        lost = partial(client.receive, leg.connection, partial(client.leg_lost, leg))
        self.carry_surely(leg.connection, TO_CLIENT, lost)

    def kill_broker(self) -> None:
        if self.broker_up:
            self.broker_up = False
            self.after(self.latency(), self.host.unlink)
            if self.host.lease:
                client = self.host.lease.client
                self.after(self.latency(), partial(client.broker_lost, client.connection))

    def start_broker(self) -> None:
        if not self.broker_up:
            self.broker_up = True
            self.broker += 1

    def calm_down(self) -> None:
        """Everything that lives is up, connected and heard from now on."""
        self.is_noisy = False
        self.start_broker()
        self.host.start()
        if self.host.lease:
            self.host.lease.client.heal()
            self.host.lease.client.resume()
