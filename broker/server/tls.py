"""The server's side of TLS: whom to trust, and who a client's certificate says it is."""

import ssl
from asyncio import sslproto
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, cast

from broker.server.access import Identity, UnknownSubject, verified
from schemas.broker import AccessSection, TlsSection
from schemas.errors import ConfigError

# asyncio (3.11 to 3.13) allocates and zeroes this much for every TLS connection: with its own
# 256 KiB, 10,000 peers take 2.5 GiB. A TLS record has at most 16 KiB.
sslproto.SSLProtocol.max_size = 16 * 1024

_SHORT = {
    "commonName": "CN",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "countryName": "C",
    "localityName": "L",
    "stateOrProvinceName": "ST",
}


class Trust(NamedTuple):
    """Whom the TLS files let in."""

    context: ssl.SSLContext
    authority: bytes
    """Who signs the certificates of clients, in PEM."""
    revoked: frozenset[int]
    """Serial numbers of certificates."""


def read_trust(section: TlsSection) -> Trust:
    """Read the TLS files. Raises ConfigError for one that is bad, or would keep everybody out."""
    context = _server_context(section)
    with _blaming(section.ca, "tls.ca"):
        authority = section.ca.read_bytes()
        # What is not ASCII is a comment in a bundle.
        context.load_verify_locations(cadata=authority.decode("ascii", "ignore"))
    if not context.cert_store_stats()["x509_ca"]:
        raise ConfigError(section.ca, "has no authority's certificate", key="tls.ca")
    revoked = frozenset[int]()
    if section.crl:
        revoked = _revoked_serials(section.crl, authority)
        with _blaming(section.crl, "tls.crl"):
            context.load_verify_locations(section.crl)
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    return Trust(context, authority, revoked)


def _server_context(section: TlsSection) -> ssl.SSLContext:
    """TLS 1.2 or newer, for clients with a certificate only; it trusts none so far."""
    context = _Context(ssl.PROTOCOL_TLS_SERVER)
    context.sslobject_class = _Object
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    # A resumed session is not verified again, and could outlive its certificate's revocation.
    context.options |= ssl.OP_NO_TICKET
    context.num_tickets = 0
    with _blaming(section.cert, "tls.cert"):
        section.cert.read_bytes()
    with _blaming(section.key, "tls.key"):
        # Without a password OpenSSL would ask for one on the terminal.
        context.load_cert_chain(section.cert, section.key, password="")
    return context


def _revoked_serials(file: Path, authority: bytes) -> frozenset[int]:
    """The serial numbers in a revocation list.

    OpenSSL loads a list of another authority, or of another time, without a word, and then lets
    nobody in.
    """
    # Imported here: a broker without a revocation list does without it.
    from cryptography import x509

    with _blaming(file, "tls.crl"):
        crl = x509.load_pem_x509_crl(file.read_bytes())
        signers = x509.load_pem_x509_certificates(authority)
    keys: list[Any] = [one.public_key() for one in signers if one.subject == crl.issuer]
    if not any(map(crl.is_signature_valid, keys)):
        raise ConfigError(file, "is not of the authority in tls.ca", key="tls.crl")
    now = datetime.now(UTC)
    begin, end = crl.last_update_utc, crl.next_update_utc
    if not begin <= now <= (end or now):
        raise ConfigError(
            file,
            f"is valid from {begin} to {end} only",
            key="tls.crl",
            remedy="any `testenv-broker pki revoke` writes a new one",
        )
    return frozenset(entry.serial_number for entry in crl)


def identify(certificate: Mapping[str, Any], address: str, access: AccessSection) -> Identity:
    """Who a verified certificate (ssl's getpeercert()) says that it is. Raises UnknownSubject."""
    subject: dict[str, str] = {}
    for part in certificate.get("subject", ()):
        for attribute, value in part:
            name = _SHORT.get(attribute, attribute)
            if name in subject:
                raise UnknownSubject(f"a certificate with more than one {name}: {value!r}")
            subject[name] = value
    return verified(subject, int(certificate["serialNumber"], 16), address, access)


class _Object(ssl.SSLObject):
    """Keeps OpenSSL's alert, the reason that the client is to hear: asyncio throws it away."""

    outgoing: ssl.MemoryBIO

    def do_handshake(self) -> None:
        """As ssl has it; an error gets an attribute `alert`, the bytes to send."""
        try:
            super().do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError, ssl.SSLSyscallError):
            raise
        except ssl.SSLError as error:
            error.alert = self.outgoing.read()  # type: ignore[attr-defined]
            raise


class _Context(ssl.SSLContext):
    def wrap_bio(
        self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, *args: Any, **kwargs: Any
    ) -> ssl.SSLObject:
        wrapped = super().wrap_bio(incoming, outgoing, *args, **kwargs)
        cast("_Object", wrapped).outgoing = outgoing
        return wrapped


def alert_of(error: ssl.SSLError) -> bytes:
    """What to tell the client whose handshake ended in `error`."""
    return getattr(error, "alert", b"")


def handshake_failure(error: OSError) -> str:
    """Why a handshake failed, in a few words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is refused: {error.verify_message}"
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.lower().replace("_", " ")
    return str(error) or type(error).__name__


@contextmanager
def _blaming(file: Path, key: str) -> Iterator[None]:
    """Trouble in here is `file`'s, and so `key`'s."""
    try:
        yield
    except ssl.SSLError as exc:
        why = (exc.reason or "no PEM data").lower().replace("_", " ")
        raise ConfigError(file, f"cannot be used: {why}", key=key) from exc
    except OSError as exc:
        raise ConfigError(file, f"cannot be read: {exc.strerror or exc}", key=key) from exc
    except ValueError as exc:
        raise ConfigError(file, "is not PEM of the kind wanted here", key=key) from exc
