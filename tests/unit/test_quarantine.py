"""A bad environment is told from bad jobs by comparing it with its peers."""

from itertools import combinations

import pytest

from hosts.journal_rows import Ended
from hosts.lease import End
from hosts.quarantine import Rules, Tally, chance_of, failed_leases, failed_turnovers, has_failed
from schemas.legs import INTERRUPTED

ENV, PEER = "te1/1", "te1/2"
RULES = Rules(turnovers=3, window=20, min_leases=5, chance=0.001)


def leases(environment: str, *, bad: int = 0, good: int = 0) -> list[Ended]:
    return [Ended(environment, End.COMPLETED, code) for code in [1] * bad + [0] * good]


@pytest.mark.parametrize(
    ("reason", "exit_code", "failed"),
    [
        (End.COMPLETED, 0, False),
        (End.COMPLETED, 1, True),
        ("exited", 143, True),
        (End.COMPLETED, None, False),
        (End.CUT, None, True),
        (End.SILENT, None, True),
        (End.OUT_OF_TIME, None, True),
        (INTERRUPTED, -15, False),
        (INTERRUPTED, 143, False),
    ],
)
def test_a_lease_fails_by_its_exit_code_or_by_being_lost(
    reason: str, exit_code: int | None, failed: bool
) -> None:
    assert has_failed(Ended(ENV, reason, exit_code)) is failed


@pytest.mark.parametrize("reason", [End.DECLINED, End.UNTAKEN, End.NOT_JOURNALLED])
def test_a_lease_in_which_nothing_ran_does_not_count(reason: str) -> None:
    assert Tally.of([Ended(ENV, reason, None)]) == Tally(0, 0)


def test_it_is_distrusted_at_the_last_failed_turnover_that_is_allowed() -> None:
    assert failed_turnovers(2, RULES) == ""
    assert failed_turnovers(3, RULES) == (
        "3 failures to make it ready, without a good turnover in between"
    )


def test_an_environment_whose_jobs_all_fail_while_its_peers_do_not_is_distrusted() -> None:
    ended = leases(ENV, bad=6) + leases(PEER, bad=1, good=19)
    assert failed_leases(ENV, ended, RULES) == (
        "6 of its last 6 leases failed, and 1 of the 20 that its peers had meanwhile:"
        " by chance once in 32,890"
    )
    assert failed_leases(PEER, ended, RULES) == ""


def test_bad_jobs_that_fail_everywhere_put_nobody_into_quarantine() -> None:
    ended = leases(ENV, bad=18, good=2) + leases(PEER, bad=34, good=6)
    assert failed_leases(ENV, ended, RULES) == ""


def test_too_few_leases_of_its_own_or_of_its_peers_say_nothing() -> None:
    assert failed_leases(ENV, leases(ENV, bad=4) + leases(PEER, good=50), RULES) == ""
    assert failed_leases(ENV, leases(ENV, bad=20) + leases(PEER, good=4), RULES) == ""
    assert failed_leases(ENV, leases(ENV, bad=20), RULES) == ""


def test_an_environment_without_a_failure_is_trusted_whatever_the_chance() -> None:
    ended = leases(ENV, good=20) + leases(PEER, bad=20)
    assert failed_leases(ENV, ended, Rules(chance=0.5)) == ""


@pytest.mark.parametrize(("own", "peers"), [(Tally(3, 2), Tally(4, 1)), (Tally(4, 0), Tally(4, 3))])
def test_the_chance_is_that_of_drawing_the_failures_from_all_leases(
    own: Tally, peers: Tally
) -> None:
    """Every way in which the failures may have fallen, one by one."""
    failed = own.failed + peers.failed
    ways = list(combinations(range(own.leases + peers.leases), failed))
    hits = sum(sum(lease < own.leases for lease in way) >= own.failed for way in ways)
    assert chance_of(own, peers) == pytest.approx(hits / len(ways))
