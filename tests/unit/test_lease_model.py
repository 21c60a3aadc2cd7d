"""Both tenures in one world that loses, delays and doubles messages, and kills anybody.

After every event of the world: no command runs but that of the lease that its host keeps. So no
command outlives its generation, and nothing is offered under a command that may still run.
"""

from random import Random
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from hosts.state import LeaseState as HostState
from schemas.terms import Terms
from testenv.state import LeaseState as State
from tests.unit.lease_defects import (
    DEFECTIVE_CLIENTS,
    DEFECTIVE_HOSTS,
    ClientThatEndsItsCommandAtLeisure,
    ClientThatStartsLate,
    ClientThatTakesAnyBrokerForDead,
    ClientThatTrustsTheClocks,
    ClientWhoseGuardDoesNotWatchTheLink,
    HostThatEchoesBeforeTheAck,
)
from tests.unit.lease_host import Host
from tests.unit.lease_rig import Client
from tests.unit.lease_world import LATENCY_S, RATES, RETRY_S, TURNOVER_S, World

SLOWEST = min(RATES)
ROUND_TRIP_S = 2 * LATENCY_S
BACK_S = RETRY_S / SLOWEST + 2 * ROUND_TRIP_S
"""What a client needs to re-attach, at most, and to hear that it counts."""

MOMENTS = st.sampled_from((0.0, LATENCY_S / 2, LATENCY_S, 2 * ROUND_TRIP_S, 2 * BACK_S))
"""Enough for a message, a round trip, or all that it takes to meet again, or not."""


@st.composite
def terms(draw: st.DrawFn) -> Terms:
    """Any that docs/leases.md allows."""
    beat_s = draw(st.floats(0.5, 10.0))
    ttl_s = beat_s * draw(st.floats(4.0, 30.0))
    return Terms(
        beat_s=beat_s,
        ttl_s=ttl_s,
        margin_s=0.11 * ttl_s + draw(st.floats(0.1, 20.0)),
        reattach_s=draw(st.floats(4.0, 30.0)),
        untaken_s=draw(st.floats(0.5, ttl_s / 2)),
    )


class Leases(RuleBasedStateMachine):
    """What may happen; the seed decides about latencies, losses and times of death."""

    host_type: ClassVar[type[Host]] = Host
    client_type: ClassVar[type[Client]] = Client

    @initialize(
        terms=st.just(Terms()) | terms(), seed=st.integers(0, 2**32), rate=st.sampled_from(RATES)
    )
    def begin(self, terms: Terms, seed: int, rate: float) -> None:
        random = Random(seed)  # noqa: S311
        self.world = World(terms, random, rate, (self.host_type, self.client_type))
        self.host = self.world.host
        self.world.run(1.0)

    @property
    def client(self) -> Client | None:
        """Whoever the environment is leased or offered to."""
        return self.host.lease.client if self.host.lease else None

    @rule(beats=st.floats(0.0, 4.0))
    def time_passes(self, beats: float) -> None:
        self.world.run(beats * self.world.terms.beat_s)

    @rule()
    def the_next_is_offered_it(self) -> None:
        """The hand-over has begun: what comes next happens in the midst of it."""
        for command in tuple(self.world.commands):
            command.die()
        offers, end = self.host.offers, self.world.now + 2 * TURNOVER_S
        while self.host.offers == offers and self.world.now < end:
            self.world.run(LATENCY_S / 4)

    @rule(share=st.floats(0.3, 1.5))
    def much_time_passes(self, share: float) -> None:
        self.world.run(share * (self.world.terms.ttl_s + self.world.terms.margin_s))

    @rule(with_guard=st.booleans(), after=MOMENTS)
    def client_is_killed(self, with_guard: bool, after: float) -> None:
        self.world.run(after)
        if self.client:
            self.client.kill(with_guard)

    @rule(both_ways=st.booleans(), after=MOMENTS)
    def client_is_cut_off(self, both_ways: bool, after: float) -> None:
        self.world.run(after)
        if self.client:
            self.client.cut_off(both_ways)

    @rule(after=MOMENTS)
    def client_is_back(self, after: float) -> None:
        self.world.run(after)
        if self.client:
            self.client.heal()

    @rule(after=MOMENTS)
    def client_gives_up(self, after: float) -> None:
        self.world.run(after)
        if self.client:
            self.client.give_up()

    @rule(then_cut_off=st.booleans(), after=MOMENTS)
    def connection_is_reset(self, then_cut_off: bool, after: float) -> None:
        """Something between client and broker closes it for both, and may let no other pass."""
        self.world.run(after)
        if client := self.client:
            self.world.reset(client.connection)
            if then_cut_off:
                client.cut_off(both_ways=True)

    @rule(after=MOMENTS)
    def client_is_stopped(self, after: float) -> None:
        self.world.run(after)
        if self.client:
            self.client.stop()

    @rule(beats=st.floats(0.0, 4.0), after=MOMENTS)
    def client_stalls(self, beats: float, after: float) -> None:
        self.world.run(after)
        if client := self.client:
            client.stop()
            self.world.run(beats * self.world.terms.beat_s)
            client.resume()

    @rule(after=MOMENTS)
    def client_is_continued(self, after: float) -> None:
        self.world.run(after)
        if self.client:
            self.client.resume()

    @rule(after=MOMENTS)
    def command_ends(self, after: float) -> None:
        self.world.run(after)
        for command in tuple(self.world.commands):
            command.die()

    @rule(after=MOMENTS)
    def lease_is_revoked(self, after: float) -> None:
        self.world.run(after)
        self.host.revoke()

    @precondition(lambda self: self.host.is_alive)
    @rule(after=MOMENTS)
    def agent_is_killed(self, after: float) -> None:
        self.world.run(after)
        self.host.kill()

    @precondition(lambda self: not self.host.is_alive)
    @rule(after=MOMENTS)
    def agent_is_started(self, after: float) -> None:
        self.world.run(after)
        self.host.start()

    @precondition(lambda self: self.world.broker_up)
    @rule(after=MOMENTS)
    def broker_is_killed(self, after: float) -> None:
        self.world.run(after)
        self.world.kill_broker()

    @precondition(lambda self: not self.world.broker_up)
    @rule(after=MOMENTS)
    def broker_is_started(self, after: float) -> None:
        self.world.run(after)
        self.world.start_broker()

    @rule()
    def all_are_back(self) -> None:
        """Who is back in time keeps the lease."""
        self.world.calm_down()
        lease = self.host.lease
        keeps = self._is_in_time()
        self.world.run(BACK_S + 3 * self.world.terms.beat_s / SLOWEST)
        if keeps:
            assert lease
            assert self.host.lease is lease, "a lease whose parties are back goes on"
            assert lease.client.tenure
            assert self.host.tenure
            assert lease.client.tenure.state is State.ACTIVE
            assert self.host.tenure.state is HostState.ACTIVE
            assert lease.client.command
            assert lease.client.command.is_alive
        self.world.is_noisy = True

    def _is_in_time(self) -> bool:
        """Whether both sides are before their due by what it takes to meet again."""
        client, host = self.client, self.host
        if not client or not client.is_alive or not client.tenure or not host.tenure:
            return False
        if not client.command or client.command.is_told or not client.command.is_alive:
            return False
        if host.tenure.state not in (HostState.ACTIVE, HostState.SUSPECT):
            return False
        needed = BACK_S
        if client.tenure.state is State.ACTIVE:  # it goes on beating, and re-attaches no sooner
            needed += 2 * self.world.terms.beat_s / SLOWEST
        return (
            client.tenure.state in (State.ACTIVE, State.SUSPECT)
            and client.tenure.due - client.clock.now() > needed / SLOWEST
            and host.tenure.due - host.clock.now() > needed / SLOWEST
        )

    def teardown(self) -> None:
        """Without messages every lease ends; with them, the environment is offered again."""
        if not hasattr(self, "world"):
            return
        terms = self.world.terms
        self.host.start()
        self.world.kill_broker()
        self.world.run((terms.ttl_s + terms.margin_s + terms.untaken_s) / SLOWEST + TURNOVER_S)
        assert not self.world.commands, "every command ends"
        assert not self.host.lease, "every lease ends"
        offers = self.host.offers
        self.world.start_broker()
        self.world.run(2 * RETRY_S)
        assert self.host.offers > offers, "every environment is offered again"


PROFILE = settings(
    max_examples=300,
    stateful_step_count=30,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate, Phase.shrink],
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)

DEFECT_PROFILE = settings(
    PROFILE, max_examples=3000, stateful_step_count=15, phases=[Phase.generate]
)
FEW_RULES: dict[type[Host | Client], tuple[str, ...]] = {
    HostThatEchoesBeforeTheAck: ("client_gives_up", "client_is_cut_off", "much_time_passes"),
    ClientThatStartsLate: ("the_next_is_offered_it", "client_stalls", "client_is_cut_off"),
    ClientThatEndsItsCommandAtLeisure: (
        "lease_is_revoked",
        "client_gives_up",
        "time_passes",
        "all_are_back",
    ),
    ClientThatTakesAnyBrokerForDead: ("connection_is_reset", "time_passes"),
    ClientWhoseGuardDoesNotWatchTheLink: (
        "connection_is_reset",
        "client_is_stopped",
        "time_passes",
    ),
    ClientThatTrustsTheClocks: ("client_gives_up", "client_is_cut_off", "time_passes"),
}


def test_no_two_commands_overlap_and_every_lease_ends() -> None:
    run_state_machine_as_test(Leases, settings=PROFILE)


@pytest.mark.parametrize("host", DEFECTIVE_HOSTS)
def test_the_model_sees_a_defective_host(host: type[Host]) -> None:
    with pytest.raises(AssertionError, match="overlap"):
        run_state_machine_as_test(_defective(host, Client), settings=DEFECT_PROFILE)


@pytest.mark.parametrize("client", DEFECTIVE_CLIENTS)
def test_the_model_sees_a_defective_client(client: type[Client]) -> None:
    with pytest.raises(AssertionError, match="overlap"):
        run_state_machine_as_test(_defective(Host, client), settings=DEFECT_PROFILE)


def _defective(host: type[Host], client: type[Client]) -> type[Leases]:
    """The machine with few rules for a defect that all of them would need minutes to hit."""
    rules = FEW_RULES.get(host) or FEW_RULES.get(client)
    left_out = {
        name: None
        for name, member in vars(Leases).items()
        if rules and hasattr(member, "hypothesis_stateful_rule") and name not in rules
    }
    return type("Defective", (Leases,), {"host_type": host, "client_type": client, **left_out})
