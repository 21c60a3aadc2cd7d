"""The states of an environment, and of its lease as its host keeps it. Pure; time is passed in.

The client's command may live until (send time of its last echoed beat) + `ttl_s`. The host waits
until (receive time of the last beat that it echoed) + `ttl_s` + `margin_s`. A beat is received
after it was sent, so the command is dead before the environment moves, as long as the two clocks
do not differ by more than `margin_s` in `ttl_s`. testenv/state.py is the client's side.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from types import MappingProxyType

from schemas.status import EnvState
from schemas.terms import Terms


class Event(StrEnum):
    """What happens to an environment."""

    BUILT = "built"
    GRANTED = "granted"
    """A lock request was assigned to it."""
    LEASE_ENDED = "lease ended"
    UNTOUCHED = "lease ended untouched"
    """No command was allowed to start in it."""
    TURNED_OVER = "turned over"
    FAILED = "failed"
    """Building or turnover failed."""
    RETRY = "retry"
    DISTRUSTED = "quarantined"
    """It, or its leases, failed too often."""
    CLEARED = "cleared"
    """An operator trusts it again."""
    DIFFERS = "differs from its plan"
    """Somebody has changed it while it waited for a lease."""
    KEPT = "held"
    """It is to be held, for a person, and no lease runs in it (any more)."""
    UNHELD = "not held any more"
    REBUILD = "rebuild"
    """An operator has it made anew, and no lease runs in it (any more)."""


class Effect(StrEnum):
    """What has to be done on the way into a state."""

    BUILD = "build"
    OFFER = "offer"
    TURN_OVER = "turn over"
    WAIT = "wait"
    """Wait before the next try."""
    SERVE = "serve"
    """Run the lease to its end."""
    REST = "rest"
    """Wait for an operator."""
    KEEP = "keep"
    """Keep it as it is, until its hold ends."""


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
        (EnvState.READY, Event.DIFFERS): EnvState.DIRTY,
        (EnvState.LEASED, Event.LEASE_ENDED): EnvState.DIRTY,
        (EnvState.LEASED, Event.UNTOUCHED): EnvState.READY,
        (EnvState.DIRTY, Event.TURNED_OVER): EnvState.READY,
        (EnvState.DIRTY, Event.FAILED): EnvState.BROKEN,
        (EnvState.BROKEN, Event.RETRY): EnvState.BUILDING,
        (EnvState.BROKEN, Event.CLEARED): EnvState.BUILDING,
        (EnvState.BUILDING, Event.DISTRUSTED): EnvState.QUARANTINED,
        (EnvState.DIRTY, Event.DISTRUSTED): EnvState.QUARANTINED,
        (EnvState.QUARANTINED, Event.CLEARED): EnvState.BUILDING,
        (EnvState.READY, Event.KEPT): EnvState.HELD,
        (EnvState.DIRTY, Event.KEPT): EnvState.HELD,
        (EnvState.BROKEN, Event.KEPT): EnvState.HELD,
        (EnvState.HELD, Event.UNHELD): EnvState.DIRTY,
        (EnvState.READY, Event.REBUILD): EnvState.BUILDING,
        (EnvState.DIRTY, Event.REBUILD): EnvState.BUILDING,
        (EnvState.BROKEN, Event.REBUILD): EnvState.BUILDING,
        (EnvState.QUARANTINED, Event.REBUILD): EnvState.BUILDING,
    }
)
"""Every transition there is. Whatever may have been touched is turned over before it is READY."""

EFFECTS: Mapping[EnvState, Effect] = MappingProxyType(
    {
        EnvState.BUILDING: Effect.BUILD,
        EnvState.READY: Effect.OFFER,
        EnvState.LEASED: Effect.SERVE,
        EnvState.DIRTY: Effect.TURN_OVER,
        EnvState.BROKEN: Effect.WAIT,
        EnvState.HELD: Effect.KEEP,
        EnvState.QUARANTINED: Effect.REST,
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


class LeaseState(StrEnum):
    OFFERED = "offered"
    """No command has been allowed to start."""
    ACTIVE = "active"
    """Confirmed; the client is heard."""
    SUSPECT = "suspect"
    """A leg is lost. The command may run; beats of before do not count any more."""
    ENDING = "ending"
    """The client is told to end, and its beats are not echoed any more."""
    ENDED = "ended"


class LeaseEvent(StrEnum):
    ACKED = "acked"
    """The client has taken the offer, and starts its command when it is confirmed."""
    BEAT = "beat"
    DECLINED = "declined"
    UNREACHED = "unreached"
    """Our connection to the broker is lost, or we were: nothing is known of the client."""
    CUT = "cut"
    """The broker says that the client has closed its connection: it is dead, most likely."""
    RESUMED = "resumed"
    """Both legs are back."""
    COMPLETED = "completed"
    """The client, or its guard, says that the command is dead."""
    TOLD = "told to end"
    """Revoked, or out of time."""
    DUE = "due"
    """Nothing has come in time."""


_S, _E = LeaseState, LeaseEvent

LEASE_TRANSITIONS: Mapping[tuple[LeaseState, LeaseEvent], LeaseState] = MappingProxyType(
    {
        (_S.OFFERED, _E.ACKED): _S.ACTIVE,
        (_S.OFFERED, _E.DECLINED): _S.ENDED,
        (_S.OFFERED, _E.UNREACHED): _S.ENDED,
        (_S.OFFERED, _E.CUT): _S.ENDED,
        (_S.OFFERED, _E.COMPLETED): _S.ENDED,
        (_S.OFFERED, _E.TOLD): _S.ENDED,
        (_S.OFFERED, _E.DUE): _S.ENDED,
        (_S.ACTIVE, _E.UNREACHED): _S.SUSPECT,
        (_S.ACTIVE, _E.CUT): _S.SUSPECT,
        (_S.ACTIVE, _E.DECLINED): _S.ENDED,
        (_S.ACTIVE, _E.COMPLETED): _S.ENDED,
        (_S.ACTIVE, _E.TOLD): _S.ENDING,
        (_S.ACTIVE, _E.DUE): _S.ENDED,
        (_S.SUSPECT, _E.RESUMED): _S.ACTIVE,
        (_S.SUSPECT, _E.DECLINED): _S.ENDED,
        (_S.SUSPECT, _E.COMPLETED): _S.ENDED,
        (_S.SUSPECT, _E.TOLD): _S.ENDING,
        (_S.SUSPECT, _E.DUE): _S.ENDED,
        (_S.ENDING, _E.DECLINED): _S.ENDED,
        (_S.ENDING, _E.COMPLETED): _S.ENDED,
        (_S.ENDING, _E.DUE): _S.ENDED,
    }
)
"""Every transition there is; whatever else comes, late or twice, changes nothing."""


@dataclass(frozen=True)
class Tenure:
    """A lease's state at its host. Times are monotonic seconds of the host's clock.

    `due`: when it ends unless something comes. `touched`: whether a command may have started, so
    that the environment must be turned over.
    """

    terms: Terms
    state: LeaseState
    due: float
    touched: bool = False

    @classmethod
    def offered(cls, terms: Terms, now: float) -> "Tenure":
        """A lease whose offer goes out now."""
        return cls(terms, LeaseState.OFFERED, now + terms.untaken_s)

    @classmethod
    def restored(cls, terms: Terms, now: float) -> "Tenure":
        """A lease that the journal says was live when the last agent ended, whenever that was."""
        return cls(terms, LeaseState.SUSPECT, now + _silence_s(terms), touched=True)

    def after(self, event: LeaseEvent, now: float) -> "Tenure":
        """The lease after `event`, which is known of at `now`."""
        state = LEASE_TRANSITIONS.get((self.state, event), self.state)
        return replace(
            self,
            state=state,
            due=self._due_after(event, state, now),
            touched=self.touched or state is LeaseState.ACTIVE,
        )

    def echoes(self, event: LeaseEvent) -> bool:
        """Whether the client may be told that `event`, a beat, has come: only if it counts."""
        return event is LeaseEvent.BEAT and self.state is LeaseState.ACTIVE

    def _due_after(self, event: LeaseEvent, state: LeaseState, now: float) -> float:
        heard = event in (LeaseEvent.ACKED, LeaseEvent.BEAT, LeaseEvent.RESUMED)
        if heard and state is LeaseState.ACTIVE:
            return now + _silence_s(self.terms)
        if event is LeaseEvent.CUT and state is not LeaseState.ENDED:
            return min(self.due, now + self.terms.reattach_s)
        return self.due


def _silence_s(terms: Terms) -> float:
    return terms.ttl_s + terms.margin_s
