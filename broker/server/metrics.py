"""What the broker counts. Plain numbers here; `http` turns them into Prometheus' words."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from broker.server.names import IN_PERSON
from broker.server.queue import FunctionView
from schemas.names import LOCK_FUNCTION

WAIT_BUCKETS_S = (0.01, 0.1, 1.0, 10.0, 60.0, 300.0, 900.0, 1800.0, 3600.0, 10800.0)
HOLD_BUCKETS_S = (0.1, 1.0, 10.0, 60.0, 300.0, 900.0, 1800.0, 3600.0, 7200.0, 10800.0, 21600.0)

KINDS = 64
"""Packet types below this are counted one by one, all others as type 0."""

MAX_LABELS = 500
"""Functions that are counted one by one; clients can make up any number of names."""

OTHER = "other"


def family(function: bytes) -> str:
    """The name under which a function is counted."""
    for beginning in IN_PERSON:
        if function.startswith(beginning):
            return f"{beginning.decode()}*"
    return function.decode(errors="backslashreplace")


def label(function: bytes, known: Collection[str]) -> str:
    """The name under which a function is counted beside the `known` ones. Clients that make up
    names can't push out `lockenv`."""
    name = family(function)
    full = len(known) >= MAX_LABELS
    return OTHER if full and name not in known and name != LOCK_FUNCTION else name


class Histogram:
    """Counts of values by upper bound, not cumulated; the last is for what exceeds them all."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        """Count one."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


class Metrics:
    """The exchange's observer, and what connections count on their hot path."""

    def __init__(self) -> None:
        self.received = [0] * KINDS
        self.sent = [0] * KINDS
        self.refusals: Counter[str] = Counter()
        """By code."""
        self.connections: Counter[str] = Counter()
        """That are open now, by role."""
        self.connections_total = 0
        self.waits: dict[str, Histogram] = {}
        self.holds: dict[str, Histogram] = {}
        self.ends: Counter[tuple[str, str]] = Counter()
        """By function and outcome."""

    def assigned(self, function: bytes, waited_s: float) -> None:
        """See exchange.Observer."""
        _histogram(self.waits, function, WAIT_BUCKETS_S).add(waited_s)

    def ended(self, function: bytes, held_s: float, outcome: str) -> None:
        """See exchange.Observer."""
        _histogram(self.holds, function, HOLD_BUCKETS_S).add(held_s)
        name = family(function)
        self.ends[name if name in self.holds else OTHER, outcome] += 1


def _histogram(known: dict[str, Histogram], function: bytes, bounds: Sequence[float]) -> Histogram:
    name = label(function, known)
    if (found := known.get(name)) is None:
        found = known[name] = Histogram(bounds)
    return found


class FamilyView(NamedTuple):
    """A family of functions in numbers."""

    name: str
    queued: int = 0
    running: int = 0
    workers: int = 0
    oldest_queued_s: float = 0.0


def by_family(functions: Iterable[FunctionView]) -> list[FamilyView]:
    """The functions of each family added up; at most MAX_LABELS, those with workers first, and
    the rest under OTHER."""
    sums: dict[str, FamilyView] = {}
    for one in sorted(functions, key=lambda view: not view.workers):
        name = label(one.name, sums)
        sofar = sums.get(name, FamilyView(name))
        sums[name] = FamilyView(
            name,
            sofar.queued + one.queued,
            sofar.running + one.running,
            sofar.workers + one.workers,
            max(sofar.oldest_queued_s, one.oldest_queued_s),
        )
    return list(sums.values())
