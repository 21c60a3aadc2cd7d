"""How much of the broker each group has: submissions that wait, and bytes of jobs."""

from collections import Counter

from broker.server.refusal import Refusal
from schemas.broker import LimitsSection


class Quota:
    """A group is whom limits count by: a certificate's subject, or an address.

    A job waits until it has a worker; a submission that joined it waits for its end. Bytes count
    until the job has ended.
    """

    def __init__(self) -> None:
        self._waiting: Counter[str] = Counter()
        self._bytes: Counter[str] = Counter()

    def check(self, group: str, size: int, limits: LimitsSection) -> None:
        """Raises Refusal if another submission, of `size` bytes, is too much.

        Not a Breach: all that bear the certificate, or work at the address, share the quota.
        """
        most = limits.queued_per_subject
        if self._waiting[group] >= most:
            raise Refusal("QUEUE_LIMIT", f"{most} submissions of {group} wait already")
        most = limits.job_bytes_per_subject
        if self._bytes[group] + size > most:
            raise Refusal("QUEUE_LIMIT", f"more than {most} bytes in jobs of {group}")

    def wait(self, group: str, change: int) -> None:
        """So many submissions more (or, below 0, less) wait."""
        _add(self._waiting, group, change)

    def hold(self, group: str, change: int) -> None:
        """So many bytes more (or, below 0, less) are in jobs."""
        _add(self._bytes, group, change)


def _add(counts: Counter[str], group: str, change: int) -> None:
    """Forgets whoever has nothing."""
    counts[group] += change
    if not counts[group]:
        del counts[group]
