"""What became of a request: `--report`, a JSON document for the program that called us."""

import json
import os
from enum import StrEnum
from pathlib import Path
from typing import Any

from schemas.errors import (
    BrokerError,
    CommandError,
    LeaseLost,
    LeaseTimeout,
    NoEnvironment,
    OfferRefused,
    TestenvError,
)
from testenv.errors import RequestFailed


class Reason(StrEnum):
    """Why the client ended; tells a command's own exit status 70 from a lost lease."""

    EXITED = "exited"
    """The command ended by itself; `exit_code` is its status."""
    SIGNALLED = "signalled"
    """A signal ended the command; `exit_code` is 128 + its number."""
    INTERRUPTED = "interrupted"
    """A signal ended the wait, before any command ran."""
    NO_BROKER = "no-broker"
    NO_ENVIRONMENT = "no-environment"
    REQUEST_FAILED = "request-failed"
    """The lock request ended before any environment was offered."""
    OFFER_REFUSED = "offer-refused"
    LEASE_LOST = "lease-lost"
    LEASE_TIMEOUT = "lease-timeout"
    NOT_STARTED = "command-not-started"
    INTERNAL = "internal-error"


_REASONS: tuple[tuple[type[TestenvError], Reason], ...] = (
    (BrokerError, Reason.NO_BROKER),
    (NoEnvironment, Reason.NO_ENVIRONMENT),
    (OfferRefused, Reason.OFFER_REFUSED),
    (LeaseLost, Reason.LEASE_LOST),
    (LeaseTimeout, Reason.LEASE_TIMEOUT),
    (RequestFailed, Reason.REQUEST_FAILED),
    (CommandError, Reason.NOT_STARTED),
)


def reason_of(error: TestenvError) -> Reason:
    """The reason that stands for `error`."""
    return next((reason for kind, reason in _REASONS if isinstance(error, kind)), Reason.INTERNAL)


class Report:
    """Filled in as things happen; None is what was never known. Its attributes are the report's
    keys."""

    def __init__(self, exit_code: int | None = None, reason: Reason | None = None) -> None:
        self.lease: str | None = None
        self.environment: str | None = None
        self.waited_s: float | None = None
        """From the start to the offer, or to the end of waiting."""
        self.ran_s: float | None = None
        """From the command's start to its end."""
        self.exit_code = exit_code
        """The client's exit status."""
        self.reason = reason
        self.message: str | None = None
        """What the client said on stderr about it."""

    def name_lease(self, document: dict[str, Any]) -> None:
        """Note the lease and environment that a data file names, if it does (v1's do not)."""
        extension = document.get("testenv")
        lease = extension.get("lease") if isinstance(extension, dict) else None
        if isinstance(lease, dict):
            self.lease = _text(lease.get("id"))
            self.environment = _text(lease.get("environment"))

    def write(self, path: Path) -> None:
        """Write all or nothing. Raises OSError."""
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        draft.unlink(missing_ok=True)
        # "x": somebody's link of that name is not followed.
        with draft.open("x") as file:
            file.write(json.dumps(vars(self), indent=2) + "\n")
        draft.replace(path)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
