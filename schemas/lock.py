"""The lock request: what a client queues as the arguments of its `lockenv` job.

Version 1 is toci's: `{"callback_name": "callback_<jobnum>", "timeout": "10800"}`, scalars as
strings, further keys ignored. What is new stands under one key, `testenv`, which a v1 peer
ignores. Named tuples rather than pydantic: a client's way from spawn to command is measured.
"""

import json
from typing import Any, NamedTuple

from schemas.errors import OfferRefused
from schemas.names import (
    LEASE_FUNCTION_PREFIX,
    MAX_FUNCTION,
    host_of_function,
    is_lock_function,
)

DEFAULT_TIMEOUT_S = 10800
"""How long a lease lasts where neither side says otherwise; toci's default, three hours."""

MAX_TIMEOUT_S = 31 * 24 * 3600
"""No lease is longer, whatever its client wishes: every lease ends."""

MAX_KILL_AFTER_S = 3600.0
"""An agent waits for a client that needs longer to stop, but not for ever."""

KILL_AFTER_S = 10.0
"""How long a command that is told to end (SIGTERM) has to clean up before SIGKILL."""


_MAX_TEXT = 200


class BadLockRequest(ValueError):
    """The arguments of a `lockenv` job that name no callback; nobody can be served."""


class LockRequest(NamedTuple):
    """One client's wish for one environment.

    `timeout_s`: how long the client may hold it, None to leave that to the agent.
    `holder` and `job`: who asks, and for which job, for people to read.
    `version`: 2 for a client that acks, beats and re-attaches (schemas/legs.py), 1 for toci's.
    """

    callback: str
    timeout_s: float | None = None
    holder: str = ""
    job: str = ""
    version: int = 1

    def dump(self) -> bytes:
        """The job's arguments, readable by toci's own worker."""
        document: dict[str, Any] = {"callback_name": self.callback}
        if self.timeout_s is not None:
            document["timeout"] = str(int(self.timeout_s))
        document["testenv"] = {
            "version": self.version,
            "holder": self.holder,
            "job": self.job,
        }
        return json.dumps(document).encode()

    @classmethod
    def parse(cls, arguments: bytes) -> "LockRequest":
        """Read a job's arguments, of toci's client or ours.

        Raises BadLockRequest if no callback is named or the timeout is not a positive number.
        """
        try:
            document = load(arguments)
        except ValueError as exc:
            raise BadLockRequest(f"arguments are not JSON: {exc}") from exc
        if not isinstance(document, dict):
            raise BadLockRequest("arguments are not a JSON object")
        callback = document.get("callback_name")
        if not isinstance(callback, str) or not _can_be_called(callback):
            raise BadLockRequest("no callback_name that a broker would take")
        ours = document.get("testenv")
        ours = ours if isinstance(ours, dict) else {}
        version = ours.get("version")
        return cls(
            callback=callback,
            timeout_s=_seconds(document, "timeout", MAX_TIMEOUT_S),
            holder=_named(ours.get("holder"), document.get("job_identifier"), callback),
            job=_named(ours.get("job"), document.get("job_identifier"), callback),
            # Of what a later version adds, an agent of this one is not asked.
            version=2 if isinstance(version, int) and version >= 2 else 1,
        )


def load(data: bytes) -> Any:
    """JSON from a stranger. Raises ValueError, also for what is nested too deeply to be read."""
    try:
        return json.loads(data)
    except RecursionError as exc:
        raise ValueError("nested too deeply") from exc


def _can_be_called(callback: str) -> bool:
    """Whether `callback` may be a client's function: a name that brokers take, and no agent's."""
    if not callback.isprintable() or not 0 < len(callback.encode()) <= MAX_FUNCTION:
        return False
    if callback.startswith(LEASE_FUNCTION_PREFIX) or is_lock_function(callback):
        return False
    return host_of_function(callback) is None


def _named(*names: object) -> str:
    """The first of what a stranger calls itself, fit for a terminal."""
    return for_people(next((name for name in names if isinstance(name, str) and name), ""))


def for_people(text: str) -> str:
    """What a stranger says, as one short line without control characters."""
    return "".join(c if c.isprintable() else "?" for c in text[:_MAX_TEXT])


def _seconds(document: dict[str, Any], key: str, most: float) -> float | None:
    value = document.get(key)
    if value is None or value == "":
        return None
    try:
        seconds = float(value)
    except (TypeError, ValueError, OverflowError) as exc:
        raise BadLockRequest(f"{key} is not a number of seconds: {value!r}") from exc
    if not 0 < seconds <= most:
        raise BadLockRequest(f"{key} is not between 0 and {most} seconds: {value!r}")
    return seconds


def parse_offer(data: bytes) -> dict[str, Any]:
    """The data file that an agent offers, as the JSON object that it must be.

    Raises OfferRefused: toci's workers put error texts in the data file's place.
    """
    try:
        document = load(data)
    except ValueError as exc:
        start = data[:80].decode(errors="replace").strip()
        raise OfferRefused(f"its data is not JSON: {start!r}" if start else "no data file") from exc
    if not isinstance(document, dict) or not document:
        raise OfferRefused("its data is not a JSON object with keys")
    return document
