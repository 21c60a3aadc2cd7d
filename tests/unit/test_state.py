"""Every (state, event) pair either is in the one table or is refused."""

from itertools import product

import pytest

from hosts.state import EFFECTS, TRANSITIONS, Effect, Event, ForbiddenTransition, step
from schemas.status import EnvState

PAIRS = list(product(EnvState, Event))


@pytest.mark.parametrize(("state", "event"), [pair for pair in PAIRS if pair in TRANSITIONS])
def test_an_allowed_event_leads_to_a_state_with_its_effect(state: EnvState, event: Event) -> None:
    following, effect = step(state, event)
    assert following is TRANSITIONS[state, event]
    assert effect is EFFECTS[following]


@pytest.mark.parametrize(("state", "event"), [pair for pair in PAIRS if pair not in TRANSITIONS])
def test_any_other_event_is_refused(state: EnvState, event: Event) -> None:
    with pytest.raises(ForbiddenTransition) as refused:
        step(state, event)
    assert (refused.value.state, refused.value.event) == (state, event)


def test_only_ready_is_offered() -> None:
    assert [state for state, effect in EFFECTS.items() if effect is Effect.OFFER] == [
        EnvState.READY
    ]


def test_an_ended_lease_leads_to_ready_through_turnover_building_or_untouched_only() -> None:
    before_ready = {pair for pair, to in TRANSITIONS.items() if to is EnvState.READY}
    assert before_ready == {
        (EnvState.BUILDING, Event.BUILT),
        (EnvState.LEASED, Event.UNTOUCHED),
        (EnvState.DIRTY, Event.TURNED_OVER),
    }
    assert TRANSITIONS[EnvState.LEASED, Event.LEASE_ENDED] is EnvState.DIRTY


def test_only_a_ready_environment_is_leased() -> None:
    assert [pair for pair, to in TRANSITIONS.items() if to is EnvState.LEASED] == [
        (EnvState.READY, Event.GRANTED)
    ]


def test_a_quarantined_environment_leaves_only_when_an_operator_has_it_built() -> None:
    leaving = {pair: to for pair, to in TRANSITIONS.items() if pair[0] is EnvState.QUARANTINED}
    assert leaving == {
        (EnvState.QUARANTINED, Event.CLEARED): EnvState.BUILDING,
        (EnvState.QUARANTINED, Event.REBUILD): EnvState.BUILDING,
    }


def test_an_environment_is_rebuilt_from_any_state_in_which_nobody_uses_or_makes_it() -> None:
    rebuilt = {state: to for (state, event), to in TRANSITIONS.items() if event is Event.REBUILD}
    assert set(rebuilt) == {
        EnvState.READY,
        EnvState.DIRTY,
        EnvState.BROKEN,
        EnvState.QUARANTINED,
    }
    assert set(rebuilt.values()) == {EnvState.BUILDING}


def test_what_is_held_is_turned_over_and_is_nothing_that_is_made_leased_or_distrusted() -> None:
    held = {state for (state, event), to in TRANSITIONS.items() if to is EnvState.HELD}
    assert held == {EnvState.READY, EnvState.DIRTY, EnvState.BROKEN}
    leaving = {pair: to for pair, to in TRANSITIONS.items() if pair[0] is EnvState.HELD}
    assert leaving == {(EnvState.HELD, Event.UNHELD): EnvState.DIRTY}


def test_every_state_has_an_effect() -> None:
    assert set(EFFECTS) == set(EnvState)
