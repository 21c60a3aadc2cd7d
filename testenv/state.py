"""One lease as its client keeps it: until when the command may live. Pure; time is passed in.

The sibling of hosts/state.py, which says why the two together are safe.
"""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import NamedTuple

from schemas.terms import Terms


class LeaseState(StrEnum):
    OFFERED = "offered"
    """Acked, and not confirmed: no command runs."""
    ACTIVE = "active"
    SUSPECT = "suspect"
    """A leg is lost; the command runs on until `due`."""
    ENDED = "ended"
    """The command has ended, or is being ended."""


class LeaseEvent(StrEnum):
    CONFIRMED = "confirmed"
    """The host has our ack, and keeps the environment for us."""
    ECHOED = "echoed"
    """The host has heard one of our beats."""
    LEG_LOST = "leg lost"
    """The host is silent, or gone from the broker; our connection is not."""
    CUT = "cut"
    """Our connection is closed: the host may be told so, and take us for dead."""
    SPARED = "spared"
    """The broker that closed it has died itself, and has told the host nothing."""
    RESUMED = "resumed"
    """Both legs are back."""
    TOLD = "told to end"
    """The host says that the lease is over."""
    OVER = "command over"
    DUE = "due"
    """`due` has come."""


_EARLY = 0.9
"""The host waits for `reattach_s` without a margin: our clock may be slow, and its clock fast."""

_S, _E = LeaseState, LeaseEvent

LEASE_TRANSITIONS: Mapping[tuple[LeaseState, LeaseEvent], LeaseState] = MappingProxyType(
    {
        (_S.OFFERED, _E.CONFIRMED): _S.ACTIVE,
        (_S.OFFERED, _E.LEG_LOST): _S.ENDED,
        (_S.OFFERED, _E.CUT): _S.ENDED,
        (_S.OFFERED, _E.TOLD): _S.ENDED,
        (_S.OFFERED, _E.DUE): _S.ENDED,
        (_S.ACTIVE, _E.LEG_LOST): _S.SUSPECT,
        (_S.ACTIVE, _E.CUT): _S.SUSPECT,
        (_S.ACTIVE, _E.TOLD): _S.ENDED,
        (_S.ACTIVE, _E.OVER): _S.ENDED,
        (_S.ACTIVE, _E.DUE): _S.ENDED,
        (_S.SUSPECT, _E.RESUMED): _S.ACTIVE,
        (_S.SUSPECT, _E.TOLD): _S.ENDED,
        (_S.SUSPECT, _E.OVER): _S.ENDED,
        (_S.SUSPECT, _E.DUE): _S.ENDED,
    }
)
"""Every transition there is; whatever else comes, late or twice, changes nothing."""


class Tenure(NamedTuple):
    """A lease's state at its client. Times are seconds of the client's monotonic clock.

    `grace_s`: what ending the command takes, with as much time to clean up as its user wants.
    The command must be dead by `until`: by `echoed`, which the beats move, and by `cut`, which may
    be too soon for all of `grace_s`. A NamedTuple, not a dataclass: a client's way to its command
    is measured.
    """

    terms: Terms
    grace_s: float
    state: LeaseState
    echoed: float
    cut: float = float("inf")

    @classmethod
    def acked(cls, terms: Terms, grace_s: float, now: float) -> "Tenure":
        """A lease whose offer is acked now, by the first beat."""
        return cls(terms, grace_s, LeaseState.OFFERED, now + terms.untaken_s)

    @property
    def until(self) -> float:
        """When the command must be dead."""
        return min(self.echoed, self.cut)

    @property
    def stop_s(self) -> float:
        """How long before `until` the command is told to end."""
        if self.state is LeaseState.OFFERED:
            return 0.0
        bound = self.terms.reattach_s / 2 if self.cut < float("inf") else self.terms.ttl_s / 3
        return min(self.grace_s, bound)

    @property
    def due(self) -> float:
        """When the command is told to end; or when the confirm does not come any more."""
        return self.until - self.stop_s

    def after(self, event: LeaseEvent, now: float, sent: float = 0.0) -> "Tenure":
        """The lease after `event`, known of at `now`.

        `sent`: for CONFIRMED and ECHOED, when the beat was sent that the host has heard.
        """
        state = LEASE_TRANSITIONS.get((self.state, event), self.state)
        moved = self._replace(state=state)
        if event is LeaseEvent.CONFIRMED and self.state is LeaseState.OFFERED:
            return moved._replace(echoed=sent + self.terms.ttl_s)
        if event is LeaseEvent.ECHOED and state is LeaseState.ACTIVE:
            return moved._replace(
                echoed=max(self.echoed, sent + self.terms.ttl_s), cut=float("inf")
            )
        if event is LeaseEvent.CUT:  # a command that is being ended has to hurry, too
            return moved._replace(cut=min(self.cut, now + cut_s(self.terms)))
        if event is LeaseEvent.SPARED and state is LeaseState.SUSPECT:
            return moved._replace(cut=float("inf"))
        return moved


def cut_s(terms: Terms) -> float:
    """How long a command may live once its client's connection is closed."""
    return terms.reattach_s * _EARLY
