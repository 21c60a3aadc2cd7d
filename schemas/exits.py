"""Exit statuses of our own commands. `testenv-client` otherwise exits as its command did."""

from enum import IntEnum


class ExitStatus(IntEnum):
    """Documented in docs/testenv-client.md and docs/testenv.md.

    64 to 78 follow BSD's sysexits.h.
    """

    OK = 0
    FAILED = 1
    """An operator's or host's command found something wrong (`check`, unknown host)."""
    USAGE = 2
    """Bad option or configuration."""
    STILL_LEASED = 3
    """`testenv drain` and `rebuild`: leases, or work, were left at the deadline."""
    NO_BROKER = 69
    """No Gearman broker could be reached (EX_UNAVAILABLE)."""
    LEASE_LOST = 70
    """The lease was lost or refused while or before the command ran (EX_SOFTWARE)."""
    NO_ENVIRONMENT = 75
    """No environment came free within --wait-timeout (EX_TEMPFAIL)."""
    LEASE_TIMEOUT = 124
    """The command outlived --timeout; the same status as coreutils' timeout(1)."""
    INTERNAL = 125
    """A defect of ours, or of the machine."""
    NOT_EXECUTABLE = 126
    NOT_FOUND = 127


SIGNAL_BASE = 128
"""A command ended by signal n gives 128 + n, as a POSIX shell reports it."""
