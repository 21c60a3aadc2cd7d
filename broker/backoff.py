"""Delays between attempts to reach a broker."""

from collections.abc import Iterator


def backoff(first: float = 0.05, cap: float = 5.0) -> Iterator[float]:
    """Endless delays in seconds: doubling from `first` to `cap`, each cut by up to half.

    The first is short, so that a broker's restart costs little; the jitter keeps a fleet from
    knocking in step.
    """
    import random  # not on the way of a client whose first attempt succeeds

    delay = first
    while True:
        yield delay * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, guards no secret
        delay = min(delay * 2, cap)
