"""What the two sides of a lease say to each other in version 2, beside their beats.

The lock leg is the client's job (`lockenv`, later `lease_<id>`), the callback leg the agent's
(`callback_<job>`). All documents are JSON objects with the one key `testenv`, which a version 1
peer ignores. Named tuples rather than pydantic: a client's way to its command is measured.
"""

import json
from typing import Any, NamedTuple

from schemas.errors import OfferRefused
from schemas.lock import for_people, load
from schemas.terms import Terms

MAX_EXIT_CODE = 255
"""Of a command; less than 0 is a signal's number, as in Python's subprocess."""

MAX_BEAT = 999_999_999
"""gearmand 1.1.20 relays numbers of at most nine digits; at a beat a second, thirty years."""


MAX_HOLD_S = 31 * 24 * 3600
"""No hold is longer, whatever its host would allow: every hold ends."""

INTERRUPTED = "interrupted"
"""A Result's reason: somebody has cancelled the job, which says nothing of its environment."""


class BadMessage(ValueError):
    """A document that says nothing we understand; nothing is done for it."""


class Offered(NamedTuple):
    """What a client takes from the offer's `testenv.lease`: it is version 2 if `terms` are there.

    `terms` has what concerns the client; the rest of it is as by default.
    """

    id: str
    environment: str
    generation: int
    secret: str
    terms: Terms

    @classmethod
    def of(cls, document: dict[str, Any]) -> "Offered | None":
        """From a data file; None if a version 1 agent has made it.

        Raises OfferRefused for terms that can't be kept: to take such an offer as version 1 would
        be to start a command that its host knows nothing of.
        """
        lease = _ours(document).get("lease")
        if not isinstance(lease, dict) or lease.get("terms") is None:
            return None
        try:
            return cls(
                _text(lease, "id"),
                _text(lease, "environment"),
                int(lease["generation"]),
                _text(lease, "secret"),
                _terms(lease["terms"]),
            )
        except (BadMessage, KeyError, TypeError, ValueError, OverflowError) as exc:
            raise OfferRefused(f"its lease can't be read: {exc}") from exc


class Resume(NamedTuple):
    """The argument of a callback that is no offer: the agent of a live lease is back.

    `leg` tells a newer one from an older, which gearmand makes again when its client is back: it
    grows from one to the next, also over the agent's restart. 0 if the agent does not say.
    """

    lease: str
    generation: int
    leg: int = 0

    def dump(self) -> bytes:
        """For the wire."""
        return _dump({"resume": self.lease, "generation": self.generation, "leg": self.leg})

    @classmethod
    def parse(cls, data: bytes) -> "Resume | None":
        """None if it is an offer."""
        ours = _parsed(data)
        lease, generation, leg = (ours.get(key) for key in ("resume", "generation", "leg"))
        if isinstance(lease, str) and isinstance(generation, int):
            return cls(lease, generation, leg if isinstance(leg, int) else 0)
        return None


class Attach(NamedTuple):
    """The argument of a `lease_<id>` job.

    `callback`: where the agent resumes; empty for a client whose legs are lost, and the guard of a
    killed one. They report with `result`, a Result's reason, that nothing of the command is left.
    """

    lease: str
    generation: int
    secret: str
    callback: str = ""
    result: str = ""
    exit_code: int | None = None
    hold_s: float | None = None

    @property
    def told(self) -> "Result | None":
        """How the command has ended, if that is what is said."""
        return Result(self.result, self.exit_code, self.hold_s) if self.result else None

    def dump(self) -> bytes:
        """For the wire."""
        return _dump(self._asdict())

    @classmethod
    def parse(cls, data: bytes) -> "Attach":
        """Raises BadMessage."""
        ours = _parsed(data)
        generation = ours.get("generation")
        if not isinstance(generation, int):
            raise BadMessage("no generation")
        callback, result = (_text(ours, key, empty=True) for key in ("callback", "result"))
        lease, secret = _text(ours, "lease"), _text(ours, "secret")
        code, hold_s = _exit_code(ours), _hold_s(ours)
        return cls(lease, generation, secret, callback, for_people(result), code, hold_s)


class Result(NamedTuple):
    """What a client completes its callback with: why its command ended, and how.

    A command that outlived its time has the client's own exit status, 124. `hold_s`: for how long
    it wishes its environment kept as it is; None if it does not.
    """

    reason: str
    exit_code: int | None = None
    hold_s: float | None = None

    def dump(self) -> bytes:
        """For the wire."""
        return _dump(self._asdict())

    @classmethod
    def parse(cls, data: bytes) -> "Result | None":
        """None if a version 1 client has completed it."""
        ours = _parsed(data)
        reason = ours.get("reason")
        if not isinstance(reason, str):
            return None
        return cls(for_people(reason), _exit_code(ours), _hold_s(ours))


def confirmation(lease_id: str) -> bytes:
    """WORK_DATA on the lock leg: the client may start its command."""
    return _dump({"confirm": lease_id})


def is_confirmation(data: bytes, lease_id: str) -> bool:
    """Whether it is that, for `lease_id`."""
    return _parsed(data).get("confirm") == lease_id


def _exit_code(ours: dict[str, Any]) -> int | None:
    code = ours.get("exit_code")
    return code if isinstance(code, int) and abs(code) <= MAX_EXIT_CODE else None


def _hold_s(ours: dict[str, Any]) -> float | None:
    told = ours.get("hold_s")
    return float(told) if isinstance(told, int | float) and 0 < told <= MAX_HOLD_S else None


def _dump(ours: dict[str, Any]) -> bytes:
    return json.dumps({"testenv": ours}).encode()


def _parsed(data: bytes) -> dict[str, Any]:
    try:
        document = load(data)
    except ValueError:
        return {}
    return _ours(document) if isinstance(document, dict) else {}


def _ours(document: dict[str, Any]) -> dict[str, Any]:
    ours = document.get("testenv")
    return ours if isinstance(ours, dict) else {}


def _text(ours: dict[str, Any], key: str, *, empty: bool = False) -> str:
    text = ours.get(key)
    if not isinstance(text, str) or not (text or empty):
        raise BadMessage(f"no {key}")
    try:
        text.encode()
    except UnicodeEncodeError as exc:  # JSON may hold half a surrogate pair
        raise BadMessage(f"{key} is no text") from exc
    return text


def _terms(told: Any) -> Terms:
    """Raises BadMessage for times that nobody could keep to, TypeError, ValueError."""
    if not isinstance(told, dict):
        raise BadMessage("terms are no JSON object")
    known = {key: float(told[key]) for key in Terms._fields if key in told}
    terms = Terms(**known)
    if not all(0 < seconds < 1e6 for seconds in terms):
        raise BadMessage(f"terms out of range: {terms}")
    return terms
