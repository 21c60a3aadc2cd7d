"""Fuzzing for a given time: hypothesis counts examples, CI counts seconds."""

import os
import sys
import time
from collections.abc import Callable

from hypothesis import HealthCheck, settings

SECONDS = float(os.environ.get("FUZZ_SECONDS", "3"))
"""For all fuzz targets together."""

ROUND = settings(
    max_examples=200,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
"""What one call of a target does; each call tries other examples."""


def fuzz(name: str, target: Callable[[], None], share: float) -> None:
    """Call a hypothesis test again and again for its share of the time, and say how it went."""
    start = time.monotonic()
    rounds = 0
    while not rounds or time.monotonic() < start + SECONDS * share:
        target()
        rounds += 1
    seconds = time.monotonic() - start
    examples = rounds * ROUND.max_examples
    sys.stderr.write(f"\nfuzz: {name}: {examples} examples in {seconds:.1f} s\n")
