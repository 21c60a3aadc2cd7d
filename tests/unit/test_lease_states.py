"""Every pair of a lease's state and an event, at its host and at its client."""

import math
from itertools import product

import pytest

from hosts import state as host_side
from hosts.state import LeaseEvent as HostEvent
from hosts.state import LeaseState as HostState
from schemas.terms import Terms
from testenv import state as client_side
from testenv.state import LeaseEvent as Event
from testenv.state import LeaseState as State

TERMS = Terms(beat_s=1, ttl_s=60, margin_s=7, reattach_s=10, untaken_s=5)
SILENCE_S = TERMS.ttl_s + TERMS.margin_s
GRACE_S = 3.0
NOW = 1000.0
SOON, LATE = NOW + 1.0, NOW + 200.0
NEVER = math.inf
"""A due, or until, that nearly has come; and one that is later than any event would set it."""

HOST_PAIRS = list(product(HostState, HostEvent))
PAIRS = list(product(State, Event))

HOST_TABLE = """
           offered  active   suspect  ending   ended
ACKED      active   active   suspect  ending   ended
BEAT       offered  active   suspect  ending   ended
DECLINED   ended    ended    ended    ended    ended
UNREACHED  ended    suspect  suspect  ending   ended
CUT        ended    suspect  suspect  ending   ended
RESUMED    offered  active   active   ending   ended
COMPLETED  ended    ended    ended    ended    ended
TOLD       ended    ending   ending   ending   ended
DUE        ended    ended    ended    ended    ended
"""

CLIENT_TABLE = """
           offered  active   suspect  ended
CONFIRMED  active   active   suspect  ended
ECHOED     offered  active   suspect  ended
LEG_LOST   ended    suspect  suspect  ended
CUT        ended    suspect  suspect  ended
SPARED     offered  active   suspect  ended
RESUMED    offered  active   active   ended
TOLD       ended    ended    ended    ended
OVER       offered  ended    ended    ended
DUE        ended    ended    ended    ended
"""


def parsed(table: str) -> dict[tuple[str, str], str]:
    """Which state follows a state and the name of an event."""
    header, *rows = (line.split() for line in table.strip().splitlines())
    return {
        (state, event): following
        for event, *cells in rows
        for state, following in zip(header, cells, strict=True)
    }


HOST_NEXT, CLIENT_NEXT = parsed(HOST_TABLE), parsed(CLIENT_TABLE)


def at_host(state: HostState, due: float = LATE, touched: bool = False) -> host_side.Tenure:
    return host_side.Tenure(TERMS, state, due, touched)


def at_client(state: State, echoed: float = LATE, cut: float = NEVER) -> client_side.Tenure:
    return client_side.Tenure(TERMS, GRACE_S, state, echoed, cut)


def test_the_tables_here_know_every_pair() -> None:
    assert set(HOST_NEXT) == {(str(state), event.name) for state, event in HOST_PAIRS}
    assert set(CLIENT_NEXT) == {(str(state), event.name) for state, event in PAIRS}


@pytest.mark.parametrize(("state", "event"), HOST_PAIRS)
def test_an_event_leads_its_host_to_one_state(state: HostState, event: HostEvent) -> None:
    assert at_host(state).after(event, NOW).state == HOST_NEXT[state, event.name]


@pytest.mark.parametrize(("state", "event"), PAIRS)
def test_an_event_leads_its_client_to_one_state(state: State, event: Event) -> None:
    assert at_client(state).after(event, NOW, NOW - 1).state == CLIENT_NEXT[state, event.name]


HEARD = {
    (HostState.OFFERED, HostEvent.ACKED),
    (HostState.ACTIVE, HostEvent.ACKED),
    (HostState.ACTIVE, HostEvent.BEAT),
    (HostState.ACTIVE, HostEvent.RESUMED),
    (HostState.SUSPECT, HostEvent.RESUMED),
}
CUT_SHORT = {
    (state, HostEvent.CUT) for state in (HostState.ACTIVE, HostState.SUSPECT, HostState.ENDING)
}


@pytest.mark.parametrize(("state", "event"), HOST_PAIRS)
@pytest.mark.parametrize("due", [SOON, LATE])
def test_only_a_client_that_is_heard_or_cut_moves_the_hosts_due(
    state: HostState, event: HostEvent, due: float
) -> None:
    expected = due
    if (state, event) in HEARD:
        expected = NOW + SILENCE_S
    if (state, event) in CUT_SHORT:
        expected = min(due, NOW + TERMS.reattach_s)
    assert at_host(state, due).after(event, NOW).due == expected


@pytest.mark.parametrize(("state", "event"), PAIRS)
@pytest.mark.parametrize("echoed", [SOON, LATE])
@pytest.mark.parametrize("cut", [SOON, NEVER])
def test_beats_move_one_of_the_clients_bounds_and_a_closed_connection_the_other(
    state: State, event: Event, echoed: float, cut: float
) -> None:
    sent = NOW - 2
    expected = echoed, cut
    if (state, event) == (State.OFFERED, Event.CONFIRMED):
        expected = sent + TERMS.ttl_s, cut
    if (state, event) == (State.ACTIVE, Event.ECHOED):
        expected = max(echoed, sent + TERMS.ttl_s), NEVER
    if event is Event.CUT:
        expected = echoed, min(cut, NOW + 0.9 * TERMS.reattach_s)
    if (state, event) == (State.SUSPECT, Event.SPARED):
        expected = echoed, NEVER
    tenure = at_client(state, echoed, cut).after(event, NOW, sent)
    assert (tenure.echoed, tenure.cut) == expected
    assert tenure.until == min(expected)


@pytest.mark.parametrize("event", HostEvent)
def test_nothing_changes_a_lease_that_its_host_has_ended(event: HostEvent) -> None:
    for touched in (False, True):
        ended = at_host(HostState.ENDED, SOON, touched)
        assert ended.after(event, NOW) == ended


@pytest.mark.parametrize("event", Event)
def test_nothing_gives_time_to_a_command_that_is_being_ended(event: Event) -> None:
    ended = at_client(State.ENDED).after(event, NOW, NOW)
    assert ended.state is State.ENDED
    assert ended.until <= LATE


def test_due_ends_a_lease_in_any_state() -> None:
    assert {at_host(s).after(HostEvent.DUE, NOW).state for s in HostState} == {HostState.ENDED}
    assert {at_client(s).after(Event.DUE, NOW).state for s in State} == {State.ENDED}


def test_a_lease_that_has_not_ended_has_a_due_within_the_terms() -> None:
    """Whatever two events come first: what is never heard of again ends by itself."""
    for first, second in product(HostEvent, HostEvent):
        for begun in (
            host_side.Tenure.offered(TERMS, NOW),
            host_side.Tenure.restored(TERMS, NOW),
        ):
            host = begun.after(first, NOW).after(second, NOW)
            assert host.due <= NOW + SILENCE_S
    for one, other in product(Event, Event):
        client = client_side.Tenure.acked(TERMS, GRACE_S, NOW)
        client = client.after(one, NOW, NOW).after(other, NOW, NOW)
        assert math.isfinite(client.due)
        assert client.due <= client.until <= NOW + TERMS.ttl_s


@pytest.mark.parametrize(("state", "event"), HOST_PAIRS)
def test_a_lease_is_touched_once_it_was_active(state: HostState, event: HostEvent) -> None:
    for touched in (False, True):
        after = at_host(state, touched=touched).after(event, NOW)
        assert after.touched == (touched or after.state is HostState.ACTIVE)


def test_only_an_active_lease_echoes_and_nothing_but_beats() -> None:
    echoed = {(state, event) for state, event in HOST_PAIRS if at_host(state).echoes(event)}
    assert echoed == {(HostState.ACTIVE, HostEvent.BEAT)}


def test_an_offer_waits_as_long_as_its_client_may_take() -> None:
    assert host_side.Tenure.offered(TERMS, NOW) == at_host(HostState.OFFERED, NOW + TERMS.untaken_s)


def test_a_restarted_agent_waits_as_if_it_had_just_heard_the_client() -> None:
    assert host_side.Tenure.restored(TERMS, NOW) == at_host(
        HostState.SUSPECT, NOW + SILENCE_S, touched=True
    )


def test_a_client_waits_for_its_confirm_to_the_last_moment() -> None:
    tenure = client_side.Tenure.acked(TERMS, GRACE_S, NOW)
    assert tenure.state is State.OFFERED
    assert tenure.due == tenure.until == NOW + TERMS.untaken_s


@pytest.mark.parametrize("state", [State.ACTIVE, State.SUSPECT])
@pytest.mark.parametrize(
    ("grace_s", "cut", "stop_s"),
    [(3.0, NEVER, 3.0), (30.0, NEVER, 20.0), (3.0, LATE, 3.0), (30.0, LATE, 5.0)],
)
def test_a_command_is_told_to_end_as_early_as_its_grace_needs_and_the_terms_allow(
    state: State, grace_s: float, cut: float, stop_s: float
) -> None:
    tenure = client_side.Tenure(TERMS, grace_s, state, LATE, cut)
    assert tenure.due == LATE - stop_s


def test_an_echo_of_an_older_beat_takes_no_time_away() -> None:
    tenure = client_side.Tenure.acked(TERMS, GRACE_S, NOW).after(Event.CONFIRMED, NOW, NOW)
    later = tenure.after(Event.ECHOED, NOW + 9, NOW + 8)
    assert later.after(Event.ECHOED, NOW + 9, NOW + 3) == later
