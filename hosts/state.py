"""One environment's states, and the only way from one to the next. Pure."""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType

from schemas.status import EnvState


class Event(StrEnum):
    """What happens to an environment."""

    BUILT = "built"
    GRANTED = "granted"
    """A lock request was assigned to it."""
    LEASE_ENDED = "lease ended"
    TURNED_OVER = "turned over"
    FAILED = "failed"
    """Building or turnover failed."""
    RETRY = "retry"


class Effect(StrEnum):
    """What has to be done on the way into a state."""

    BUILD = "build"
    OFFER = "offer"
    TURN_OVER = "turn over"
    WAIT = "wait"
    """Wait before the next try."""
    SERVE = "serve"
    """Run the lease to its end."""


class ForbiddenTransition(Exception):
    """A defect: `event` cannot happen to an environment in `state`."""

    def __init__(self, state: EnvState, event: Event) -> None:
        self.state = state
        self.event = event
        super().__init__(f"{event} cannot happen to an environment that is {state}")


TRANSITIONS: Mapping[tuple[EnvState, Event], EnvState] = MappingProxyType(
    {
        (EnvState.BUILDING, Event.BUILT): EnvState.READY,
        (EnvState.BUILDING, Event.FAILED): EnvState.BROKEN,
        (EnvState.READY, Event.GRANTED): EnvState.LEASED,
        (EnvState.LEASED, Event.LEASE_ENDED): EnvState.DIRTY,
        (EnvState.DIRTY, Event.TURNED_OVER): EnvState.READY,
        (EnvState.DIRTY, Event.FAILED): EnvState.BROKEN,
        (EnvState.BROKEN, Event.RETRY): EnvState.BUILDING,
    }
)
"""Every transition there is. Only building and turnover lead to READY after a lease."""

EFFECTS: Mapping[EnvState, Effect] = MappingProxyType(
    {
        EnvState.BUILDING: Effect.BUILD,
        EnvState.READY: Effect.OFFER,
        EnvState.LEASED: Effect.SERVE,
        EnvState.DIRTY: Effect.TURN_OVER,
        EnvState.BROKEN: Effect.WAIT,
        EnvState.HELD: Effect.WAIT,
    }
)


def step(state: EnvState, event: Event) -> tuple[EnvState, Effect]:
    """The state that `event` leads to, and what has to be done there.

    Raises ForbiddenTransition for a pair that is not in TRANSITIONS.
    """
    try:
        following = TRANSITIONS[state, event]
    except KeyError:
        raise ForbiddenTransition(state, event) from None
    return following, EFFECTS[following]
