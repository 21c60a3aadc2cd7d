"""Log lines about those who do not get in: strangers, and they must not fill the disk."""

import logging
from collections import Counter

from broker.server.clock import Clock

log = logging.getLogger(__name__)

WINDOW_S = 60.0

LINES = 10
"""About one address in a window; what exceeds them becomes one line at its end."""

ADDRESSES = 100
"""In a window; all others count as one."""

OTHERS = "other addresses"


class Complaints:
    """Warnings, by address."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._made: Counter[str] = Counter()
        """In this window, by address."""

    def warn(self, address: str, text: str, *values: object) -> None:
        """Log a warning about `address`, as logging does; or just count it."""
        if not self._made:
            self._clock.call_later(WINDOW_S, self._sum_up)
        if address not in self._made and len(self._made) >= ADDRESSES:
            address = OTHERS
        self._made[address] += 1
        if self._made[address] <= LINES:
            log.warning(text, *values)

    def _sum_up(self) -> None:
        for address, made in self._made.items():
            if made > LINES:
                log.warning("%d more lines like those about %s", made - LINES, address)
        self._made.clear()
