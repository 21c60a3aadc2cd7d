"""The workers that wait to be woken for one function's jobs."""

from collections import OrderedDict

from broker.server.peer import Peer


class Sleepers:
    """One row of them: hosts take turns, and on each the worker that sleeps longest is next."""

    __slots__ = ("_hosts",)

    def __init__(self) -> None:
        self._hosts: OrderedDict[str, OrderedDict[Peer, None]] = OrderedDict()

    def add(self, peer: Peer, host: str) -> None:
        """`peer`, of `host`, has gone to sleep."""
        self._hosts.setdefault(host, OrderedDict())[peer] = None

    def remove(self, peer: Peer, host: str) -> None:
        """No effect if it does not sleep here."""
        if (peers := self._hosts.get(host)) is not None:
            peers.pop(peer, None)
            if not peers:
                del self._hosts[host]

    def next(self) -> Peer | None:
        """Who is to be woken next; the host's turn is over."""
        if not self._hosts:
            return None
        host, peers = next(iter(self._hosts.items()))
        self._hosts.move_to_end(host)
        return next(iter(peers))
