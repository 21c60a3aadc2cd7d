"""What all connections share: who may come in, what they are worth, and where packets go."""

import asyncio
from collections import Counter
from itertools import count
from typing import TYPE_CHECKING

from broker.server.access import Identity
from broker.server.complaints import Complaints
from broker.server.exchange import Exchange
from broker.server.metrics import Metrics
from broker.server.outbox import Outbox
from broker.server.refusal import Breach
from broker.server.requests import Requests
from broker.server.text import AdminCommands
from broker.server.tls import Trust
from schemas.broker import AccessSection, LimitsSection

if TYPE_CHECKING:
    from broker.server.transport import ServerConnection


class Switchboard:
    """Knows all connections. `access` and `trust` may be replaced at any time, as the exchange's
    limits; without `trust` everything is plain text."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        exchange: Exchange,
        commands: AdminCommands,
        metrics: Metrics,
        access: AccessSection,
        trust: Trust | None = None,
    ) -> None:
        self.loop = loop
        self.exchange = exchange
        self.requests = Requests(exchange)
        self.commands = commands
        self.metrics = metrics
        self.access = access
        self.trust = trust
        self.complaints = Complaints(loop)
        self.outbox = Outbox(loop.call_soon)
        self.numbers = count(1)
        self.sockets = 0
        """That are open: those of all that are in, and of those that are told why they are not."""
        self._connections: dict[ServerConnection, Identity] = {}
        self._by_group: Counter[str] = Counter()

    @property
    def limits(self) -> LimitsSection:
        """What one connection may cost."""
        return self.exchange.limits

    @property
    def connections(self) -> "list[ServerConnection]":
        """All that are in now."""
        return list(self._connections)

    def __len__(self) -> int:
        return len(self._connections)

    def admit(self, connection: "ServerConnection", identity: Identity) -> None:
        """Let a connection in. Raises Breach if that is one too many."""
        limits = self.limits
        if len(self._connections) >= limits.connections:
            raise Breach("LIMIT_EXCEEDED", f"more than {limits.connections} connections")
        most = limits.connections_per_subject
        if self._by_group[identity.group] >= most:
            raise Breach("LIMIT_EXCEEDED", f"more than {most} connections of {identity.group}")
        self._connections[connection] = identity
        self._by_group[identity.group] += 1
        self.metrics.connections[_role(identity)] += 1

    def dismiss(self, connection: "ServerConnection") -> None:
        """It is gone. No effect if it never was in."""
        if (identity := self._connections.pop(connection, None)) is None:
            return
        self.metrics.connections[_role(identity)] -= 1
        self._by_group[identity.group] -= 1
        if not self._by_group[identity.group]:
            del self._by_group[identity.group]


def _role(identity: Identity) -> str:
    return identity.subject.partition("/")[0]
