"""Defects that the model must see: a host and a client that each break one rule."""

from functools import partial

from hosts import state as host_side
from hosts.state import LeaseEvent as HostEvent
from schemas.terms import Terms
from testenv import state as client_side
from testenv.state import LeaseEvent as Event
from testenv.state import LeaseState as State
from tests.unit.lease_host import Host
from tests.unit.lease_rig import Client
from tests.unit.lease_world import Connection, Lease, Leg


class _NoMargin(host_side.Tenure):
    @classmethod
    def offered(cls, terms: Terms, now: float) -> host_side.Tenure:
        return super().offered(terms._replace(margin_s=0.0), now)


class HostWithoutMargin(Host):
    tenures = _NoMargin


class _RestoredTooShort(host_side.Tenure):
    @classmethod
    def restored(cls, terms: Terms, now: float) -> host_side.Tenure:
        return super().restored(terms._replace(ttl_s=0.0), now)


class HostThatRestoresWithoutTtl(Host):
    tenures = _RestoredTooShort


class HostThatEchoesBeforeTheAck(Host):
    """While SUSPECT, over the leg that it has just begun."""

    def reattach(self, lease: Lease, connection: Connection) -> None:
        super().reattach(lease, connection)
        if self._resumes and self._echo is not None:
            leg, client = self._resumes[-1], connection.client
            self.world.to_client(connection, partial(client.echoed, leg, self._echo))


class HostThatConfirmsBeforeTheAck(Host):
    def _offer(self) -> None:
        super()._offer()
        assert self._offered
        self.send_confirm(self._offered)


class HostThatCountsAnOldCut(Host):
    def cut(self, connection: Connection) -> None:
        if self.lease and connection.client is self.lease.client:
            self._leg = self._offered = None
            self.tell(HostEvent.CUT)


class _NeverHurried(client_side.Tenure):
    def after(self, event: Event, now: float, sent: float = 0.0) -> client_side.Tenure:
        moved = super().after(event, now, sent)
        return moved._replace(cut=self.cut) if event is Event.CUT else moved


class ClientThatDoesNotHurry(Client):
    tenures = _NeverHurried


class _HurriedOnTheHostsClock(client_side.Tenure):
    def after(self, event: Event, now: float, sent: float = 0.0) -> client_side.Tenure:
        moved = super().after(event, now, sent)
        if event is Event.CUT:
            return moved._replace(cut=min(self.cut, now + self.terms.reattach_s))
        return moved


class ClientThatTrustsTheClocks(Client):
    """It takes all of `reattach_s`, as its host does."""

    tenures = _HurriedOnTheHostsClock


class _NotHurriedWhileEnding(client_side.Tenure):
    def after(self, event: Event, now: float, sent: float = 0.0) -> client_side.Tenure:
        moved = super().after(event, now, sent)
        return moved._replace(cut=self.cut) if self.state is State.ENDED else moved


class ClientThatEndsItsCommandAtLeisure(Client):
    """A closed connection does not hurry what is being ended already."""

    tenures = _NotHurriedWhileEnding


class ClientThatTakesAnyBrokerForDead(Client):
    """It counts one that answers no more as one that refuses."""

    def _first_look(self) -> None:
        self.tell(Event.SPARED)
        super()._first_look()


class ClientThatStartsLate(Client):
    """It starts its command at whatever confirm comes, also when it has stopped waiting."""

    def confirmed(self, leg: Leg) -> None:
        assert self.lease
        if self.tenure and not self.command:
            self.tenure = self.tenures.acked(self.tenure.terms, 0.0, self.clock.now())
            self._leg = leg
        super().confirmed(leg)


class ClientThatDeclinesItsOwnOffer(Client):
    """A broker may give it out again."""

    def offered(self, lease: Lease, leg: Leg) -> None:
        if self.lease is lease:
            self._report(HostEvent.DECLINED)
        super().offered(lease, leg)


class ClientThatReportsTooEarly(Client):
    def _end_command(self) -> None:
        super()._end_command()
        self._report(HostEvent.COMPLETED)


class ClientWhoseGuardDoesNotWatchTheLink(Client):
    """A client that is stopped goes on as if its connection was still open."""

    def _guard_sees_close(self) -> None:
        pass


class ClientWhoseGuardSleeps(Client):
    """Nobody ends the command of a client that is stopped."""

    def _due(self) -> None:
        if not self.is_stopped:
            super()._due()


DEFECTIVE_HOSTS = (
    HostWithoutMargin,
    HostThatRestoresWithoutTtl,
    HostThatEchoesBeforeTheAck,
    HostThatConfirmsBeforeTheAck,
    HostThatCountsAnOldCut,
)
DEFECTIVE_CLIENTS = (
    ClientThatDoesNotHurry,
    ClientThatTrustsTheClocks,
    ClientThatEndsItsCommandAtLeisure,
    ClientThatTakesAnyBrokerForDead,
    ClientWhoseGuardDoesNotWatchTheLink,
    ClientThatStartsLate,
    ClientThatDeclinesItsOwnOffer,
    ClientThatReportsTooEarly,
    ClientWhoseGuardSleeps,
)
