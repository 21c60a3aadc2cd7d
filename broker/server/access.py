"""Who a peer is, and what it may do. Roles by certificate subject; gear's ACL entries decide.

A connection without TLS is `unverified`: nobody knows who it is, and two of them can't be told
apart but by their address.
"""

import re
from collections.abc import Iterable, Mapping
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import NamedTuple

from gear.acl import ACLEntry

from schemas.broker import AccessSection
from schemas.names import UNVERIFIED

MAX_SUBJECT = 44
"""Bytes. A subject is part of each job handle, and C libraries cut handles off at 63 bytes."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""Names that a certificate may have as its CN: those that a host may have."""


class Role(StrEnum):
    """What a peer is there for."""

    OPERATOR = "operator"
    HOST = "host"
    JOB = "job"


class Identity(NamedTuple):
    """Who is behind a connection, as far as the broker knows.

    `subject`: `<role>/<name>` of a verified certificate, else `unverified`.
    `serial`: of the certificate, to find it in a revocation list.
    """

    subject: str
    address: str
    acl: ACLEntry
    operator: bool
    """Whether it may use admin commands, and look at others' jobs."""
    serial: int | None = None

    @property
    def is_verified(self) -> bool:
        """Whether a certificate says who it is."""
        return self.serial is not None

    @property
    def group(self) -> str:
        """What limits and fairness count by: the subject, or the address where there is none."""
        return self.subject if self.is_verified else self.address

    def may_register(self, function: bytes) -> bool:
        """Whether it may offer `function`."""
        return bool(self.acl.canRegister(function))

    def may_invoke(self, function: bytes) -> bool:
        """Whether it may submit jobs of `function`."""
        return bool(self.acl.canInvoke(function))


class UnknownSubject(ValueError):
    """A valid certificate that fits no role, or whose name can't be used; says why."""


_LOCK = rb"lockenv(:.*)?"
_LEASE = rb"lease_.*"
_CALLBACK = rb"callback_.*"


def _register(role: Role, name: str) -> bytes | None:
    match role:
        case Role.JOB:
            return _CALLBACK
        case Role.HOST:
            own = b"host\\." + re.escape(name.encode())
            return b"|".join((_LOCK, _LEASE, own))
        case Role.OPERATOR:
            return None


_INVOKE = {
    Role.JOB: b"|".join((_LOCK, _LEASE)),
    Role.HOST: _CALLBACK,
    Role.OPERATOR: rb"host\..*",
}


def _entry(subject: str, register: Iterable[bytes], invoke: Iterable[bytes]) -> ACLEntry:
    """gear matches at the beginning only, and only bytes: names on the wire are bytes."""

    def exactly(patterns: Iterable[bytes]) -> bytes | None:
        alternatives = b"|".join(patterns)
        return b"(?s:" + alternatives + rb")\Z" if alternatives else None

    return ACLEntry(subject, register=exactly(register), invoke=exactly(invoke))


def verified(
    subject: Mapping[str, str], serial: int, address: str, access: AccessSection
) -> Identity:
    """The identity that a verified certificate gives. `subject`: its attributes, by short name.

    Raises UnknownSubject.
    """
    role = next((role for role in Role if _fits(subject, getattr(access, role))), None)
    # It is logged: a line end would forge a line, and a terminal obeys control characters.
    shown = ",".join(f"{key}={ascii(value)[1:-1]}" for key, value in subject.items())
    if role is None:
        raise UnknownSubject(f"no role for the certificate of {shown}")
    name = subject.get("CN", "")
    label = f"{role}/{name}"
    if not NAME.fullmatch(name) or len(label) > MAX_SUBJECT:
        raise UnknownSubject(
            f"the certificate of {shown} has an unusable CN: letters, digits, . _ -,"
            f" at most {MAX_SUBJECT - len(role) - 1}"
        )
    register = _register(role, name)
    entry = _entry(label, [register] if register else [], [_INVOKE[role]])
    return Identity(label, address, entry, operator=role is Role.OPERATOR, serial=serial)


def unverified(address: str, access: AccessSection) -> Identity:
    """The identity of a connection without TLS."""
    if access.unverified == "any":
        return Identity(UNVERIFIED, address, _entry(UNVERIFIED, [b".*"], [b".*"]), operator=True)
    roles = [Role(name) for name in access.unverified]
    # Nobody knows its name: any host may be meant.
    register = [rb"host\..*"] if Role.HOST in roles else []
    register += [pattern for role in roles if (pattern := _register(role, ""))]
    entry = _entry(UNVERIFIED, register, [_INVOKE[role] for role in roles])
    return Identity(UNVERIFIED, address, entry, operator=Role.OPERATOR in roles)


def _fits(subject: Mapping[str, str], patterns: Iterable[str]) -> bool:
    """Whether a subject fits one of the patterns (see AccessSection)."""
    return any(
        all(
            key.strip() in subject and fnmatchcase(subject[key.strip()], glob.strip())
            for key, _, glob in (part.partition("=") for part in pattern.split(","))
        )
        for pattern in patterns
    )
