"""Which environment is not to be trusted any more. Pure.

An environment fails in two ways: it can't be made, or the jobs in it fail. Jobs fail for reasons of
their own, too, and all at once when what they test is broken; so an environment's leases are
compared with those that its peers on this host had in the same time. The test is Fisher's exact
one (one-sided): had the failures of that time fallen on leases by chance, how probable is it that
so many of them, or more, hit this environment?
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

from hosts.journal_rows import Ended
from hosts.lease import End
from schemas.legs import INTERRUPTED

_UNUSED = frozenset({End.DECLINED, End.UNTAKEN, End.NOT_JOURNALLED})
"""Nobody's command ran: such a lease says nothing of its environment."""
_LOST = frozenset({End.CUT, End.SILENT, End.OUT_OF_TIME})
"""The command was never heard of again, as when it, or what it waits for, hangs."""


@dataclass(frozen=True)
class Rules:
    """`turnovers`: failures without one good turnover in between that are too many; the others are
    for leases: at least `min_leases` of the environment and of its peers among the last `window` of
    its own and what those had meanwhile, and failures less probable than `chance`."""

    turnovers: int = 3
    window: int = 20
    min_leases: int = 5
    chance: float = 0.001


@dataclass(frozen=True)
class Tally:
    leases: int
    failed: int

    @classmethod
    def of(cls, ended: Sequence[Ended]) -> "Tally":
        """Only leases in which a command may have run."""
        used = [each for each in ended if each.reason not in _UNUSED]
        return cls(len(used), sum(has_failed(each) for each in used))


def has_failed(lease: Ended) -> bool:
    """Whether its command is known to have failed, or was lost; a version 1 client never tells.

    One that somebody has cancelled has not failed.
    """
    if lease.reason == INTERRUPTED:
        return False
    return lease.exit_code not in (None, 0) or lease.reason in _LOST


def failed_turnovers(count: int, rules: Rules) -> str:
    """Why an environment that has failed `count` times is not trusted; "" if it is."""
    if count < rules.turnovers:
        return ""
    return f"{count} failures to make it ready, without a good turnover in between"


def failed_leases(environment: str, ended: Sequence[Ended], rules: Rules) -> str:
    """Why `environment` is not trusted; "" if it is, or if too little is known.

    `ended`: its last leases, and those of its peers in the same time.
    """
    own = Tally.of([each for each in ended if each.environment == environment])
    peers = Tally.of([each for each in ended if each.environment != environment])
    if min(own.leases, peers.leases) < rules.min_leases:
        return ""
    chance = chance_of(own, peers)
    if chance >= rules.chance:
        return ""
    return (
        f"{own.failed} of its last {own.leases} leases failed, and {peers.failed} of the"
        f" {peers.leases} that its peers had meanwhile: by chance once in {1 / chance:,.0f}"
    )


def chance_of(own: Tally, peers: Tally) -> float:
    """How probable it is that `own` gets as many failures as it has, or more, if all those of `own`
    and `peers` fall on their leases at random (the upper tail of the hypergeometric
    distribution)."""
    leases, failed = own.leases + peers.leases, own.failed + peers.failed
    hits = sum(
        comb(failed, each) * comb(leases - failed, own.leases - each)
        for each in range(own.failed, min(failed, own.leases) + 1)
    )
    return hits / comb(leases, own.leases)
