"""The PKI's folder: authority, revocation list, and every certificate that was issued.

    ca.crt, ca.key            the authority
    crl.pem                   what it has revoked
    issued/<serial>.crt       the index: the certificates themselves

All is written as a whole or not at all; one command at a time changes a folder.
"""

import fcntl
import logging
import os
import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from broker import pki
from broker.server.access import MAX_SUBJECT, NAME, Role
from schemas.errors import ConfigError, PkiError

log = logging.getLogger(__name__)

SECRET = 0o600
PUBLIC = 0o644

_HOST_NAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*")


class State(StrEnum):
    """Whether a broker lets its bearer in."""

    LIVE = "live"
    EXPIRED = "expired"
    REVOKED = "revoked"


class Issued(NamedTuple):
    """A certificate in the index."""

    role: str
    name: str
    serial: int
    issued: datetime
    expires: datetime
    state: State

    @property
    def label(self) -> str:
        """`<role>/<name>`, as brokers call its bearer."""
        return f"{self.role}/{self.name}"


class Store:
    """One folder. `now` is when all happens, in UTC. Methods raise PkiError and ConfigError."""

    def __init__(self, folder: Path, now: datetime | None = None) -> None:
        self._folder = folder
        self._now = now or datetime.now(UTC)
        self._ca = folder / "ca.crt"
        self._ca_key = folder / "ca.key"
        self._crl = folder / "crl.pem"
        self._index = folder / "issued"

    def init(self, broker_names: Sequence[str]) -> list[Path]:
        """A new authority, an empty revocation list, the broker's certificate: the files made."""
        names = _broker_names(broker_names)
        with _complaints():
            self._index.mkdir(parents=True, exist_ok=True, mode=0o755)
        certificate, key = self._folder / "broker.crt", self._folder / "broker.key"
        with self._locked():
            self._refuse_leftovers(self._ca_key, self._crl, certificate, key)
            authority = pki.new_authority(self._now)
            pair = pki.issue(authority, pki.BROKER, names, self._now)
            crl = pki.revocation_list(authority, (), self._now)
            self._record(pair)
            made = {
                self._crl: pki.pem(crl),
                certificate: pki.pem(pair.certificate),
                key: pair.key_pem,
                self._ca_key: authority.key_pem,
                # The last: with it, the folder is one.
                self._ca: pki.pem(authority.certificate),
            }
            for path, content in made.items():
                _create(path, content, SECRET if path.suffix == ".key" else PUBLIC)
        return list(made)

    def issue(
        self, role: str, names: Sequence[str], days: int, out: Path, *, again: bool = False
    ) -> list[Path]:
        """A certificate with its key, and the authority's beside them: the files, in `out`.

        A second one for a bearer whose first is live is refused, but for `again`.
        """
        names = _broker_names(names) if role == pki.BROKER else [_name(role, names)]
        stem = pki.BROKER if role == pki.BROKER else f"{role}-{names[0]}"
        certificate, key, ca = out / f"{stem}.crt", out / f"{stem}.key", out / "ca.crt"
        with self._locked():
            authority = self._authority()
            if (end := authority.certificate.not_valid_after_utc) <= self._now:
                raise PkiError(
                    f"the authority in {self._folder} ended on {end:%Y-%m-%d}",
                    remedy="make another one with testenv-broker pki init, in another folder",
                )
            if not again and self._live(role, names[0]):
                raise PkiError(
                    f"{role}/{names[0]} has a live certificate",
                    remedy="issue a second one with --again, or revoke it first",
                )
            with _complaints():
                out.mkdir(parents=True, exist_ok=True)
                same_ca = ca.exists() and ca.read_bytes() == self._ca.read_bytes()
            _refuse_existing(certificate, key, *([] if same_ca else [ca]))
            pair = pki.issue(authority, role, names, self._now, days)
            self._record(pair)
            _create(key, pair.key_pem, SECRET)
            _create(certificate, pki.pem(pair.certificate), PUBLIC)
            if not same_ca:
                _create(ca, pki.pem(authority.certificate), PUBLIC)
        return [certificate, key, ca]

    def revoke(self, serials: Sequence[int]) -> Path:
        """Add to the revocation list: its file. What is on it already stays on it once."""
        with self._locked():
            revoked = self._revoked()
            known = {entry.serial_number for entry in revoked}
            new = [serial for serial in serials if serial not in known]
            crl = pki.revocation_list(self._authority(), new, self._now, revoked)
            _replace(self._crl, pki.pem(crl))
        return self._crl

    def live(self, who: str) -> list[Issued]:
        """The live certificates of `NAME` or `ROLE/NAME`; of one bearer, or PkiError."""
        role, slash, name = who.rpartition("/")
        matching = self._live(role if slash else None, name)
        bearers = sorted({one.label for one in matching})
        if len(bearers) > 1:
            raise PkiError(f"{who} may be {' or '.join(bearers)}", remedy="name its role too")
        if not matching:
            raise PkiError(f"no live certificate of {who}", remedy="see testenv-broker pki list")
        return matching

    def issued(self) -> list[Issued]:
        """All certificates of this authority but its own, by bearer and age.

        Passes over those of another authority that had this folder before.
        """
        authority = self._authority_certificate().subject
        revoked = {entry.serial_number for entry in self._revoked()}
        found = [self._entry(one, revoked) for one in self._indexed() if one.issuer == authority]
        return sorted(found, key=lambda one: (one.role, one.name, one.issued, one.serial))

    def _indexed(self) -> Iterator[x509.Certificate]:
        """Whatever lies in the index and is a certificate; a stray file must not stop anybody
        from revoking one."""
        with _complaints():
            contents = [(path, path.read_bytes()) for path in sorted(self._index.glob("*.crt"))]
        for path, content in contents:
            try:
                yield _certificate(path, content)
            except PkiError as exc:
                log.warning("%s: passed over", exc)

    def _entry(self, certificate: x509.Certificate, revoked: set[int]) -> Issued:
        state = State.LIVE
        if certificate.not_valid_after_utc <= self._now:
            state = State.EXPIRED
        if certificate.serial_number in revoked:
            state = State.REVOKED
        return Issued(
            *pki.subject_of(certificate),
            certificate.serial_number,
            certificate.not_valid_before_utc,
            certificate.not_valid_after_utc,
            state,
        )

    def _live(self, role: str | None, name: str) -> list[Issued]:
        return [
            one
            for one in self.issued()
            if one.state is State.LIVE and one.name == name and role in (None, one.role)
        ]

    def _record(self, pair: pki.Pair) -> None:
        """Before anything leaves the folder: what is not in the index can't be revoked."""
        path = self._index / f"{pair.certificate.serial_number:x}.crt"
        _create(path, pki.pem(pair.certificate), PUBLIC)

    def _authority_certificate(self) -> x509.Certificate:
        return _certificate(self._ca, self._read(self._ca))

    def _refuse_leftovers(self, *others: Path) -> None:
        """Make no authority where there is one, or half of one."""
        _refuse_existing(self._ca)
        if left := [str(path) for path in others if os.path.lexists(path)]:
            raise PkiError(
                f"{self._folder} has an authority's files, but no ca.crt: was init interrupted?",
                remedy=f"if so, remove {' '.join(left)}, or name another folder",
            )

    def _authority(self) -> pki.Pair:
        certificate = self._authority_certificate()
        try:
            key = load_pem_private_key(self._read(self._ca_key), None)
        except (ValueError, TypeError) as exc:
            raise PkiError(f"{self._ca_key} is not a key without a password") from exc
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise PkiError(f"{self._ca_key} is not an EC key")
        if key.public_key() != certificate.public_key():
            raise PkiError(f"{self._ca_key} is not the key of {self._ca}")
        return pki.Pair(certificate, key)

    def _revoked(self) -> x509.CertificateRevocationList:
        try:
            return x509.load_pem_x509_crl(self._read(self._crl))
        except ValueError as exc:
            raise PkiError(f"{self._crl} is not a revocation list") from exc

    def _read(self, path: Path) -> bytes:
        try:
            return path.read_bytes()
        except FileNotFoundError as exc:
            raise PkiError(
                f"{path} does not exist",
                remedy="make an authority with testenv-broker pki init, or name its folder (--dir)",
            ) from exc
        except OSError as exc:
            raise PkiError(f"{path} cannot be read: {exc.strerror}") from exc

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with _complaints():
            handle = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)  # held for milliseconds
            yield
        finally:
            os.close(handle)


def _certificate(path: Path, content: bytes) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(content)
    except ValueError as exc:
        raise PkiError(f"{path} is not a certificate") from exc


def _name(role: str, names: Sequence[str]) -> str:
    longest = MAX_SUBJECT - len(role) - 1
    if role not in set(Role) or len(names) != 1:
        raise ConfigError(f"pki issue {role}", "takes exactly one NAME")
    [name] = names
    if not NAME.fullmatch(name) or len(name) > longest:
        what = f"{name!r} is not a name: letters, digits, . _ -, at most {longest}"
        raise ConfigError(f"pki issue {role}", what)
    return name


def _broker_names(names: Sequence[str]) -> list[str]:
    for name in names:
        is_host_name = _HOST_NAME.fullmatch(name) and len(name) <= 253
        if not is_host_name and not pki.is_address(name):
            raise ConfigError("BROKER_NAME", f"{name!r} is neither a host name nor an address")
    return list(dict.fromkeys(names))


def _refuse_existing(*paths: Path) -> None:
    for path in paths:
        if os.path.lexists(path):
            raise PkiError(f"{path} exists", remedy="move it away, or name another folder")


@contextmanager
def _complaints() -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise PkiError(f"{exc.filename}: {exc.strerror}") from exc


@contextmanager
def _draft(path: Path, content: bytes, mode: int) -> Iterator[Path]:
    """A complete file beside `path`, which does not outlive the context."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    with _complaints():
        try:
            with os.fdopen(os.open(draft, flags, mode), "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            yield draft
        finally:
            draft.unlink(missing_ok=True)


def _create(path: Path, content: bytes, mode: int) -> None:
    """Make a file that does not exist yet."""
    with _draft(path, content, mode) as draft:
        path.hardlink_to(draft)  # unlike a rename, it never replaces anything


def _replace(path: Path, content: bytes) -> None:
    with _draft(path, content, PUBLIC) as draft:
        draft.replace(path)
