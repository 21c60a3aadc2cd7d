"""TLS towards a broker: our certificate, the authority that we trust, and failures in words.

Cheap to import: `ssl` is loaded where TLS is on, or has failed.
"""

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from schemas.errors import ConfigError

if TYPE_CHECKING:
    import ssl

CERT_VARIABLE = "TESTENV_TLS_CERT"
KEY_VARIABLE = "TESTENV_TLS_KEY"
CA_VARIABLE = "TESTENV_TLS_CA"
"""The environment variables that name the files where no option does."""

OPTIONS = "--tls-cert, --tls-key, --tls-ca"

HANDSHAKE_S = 5.0
"""Something that does not speak TLS may just wait for more; a broker takes milliseconds."""

ALERT = b"\x15\x03"
"""How TLS answers what is not TLS."""

SPEAKS_TLS = f"it speaks TLS: give {OPTIONS}"

_NOT_TLS = (
    "WRONG_VERSION_NUMBER",
    "RECORD_LAYER_FAILURE",
    "UNKNOWN_PROTOCOL",
    "HTTP_REQUEST",
    "PACKET_LENGTH_TOO_LONG",
    "BAD_RECORD_TYPE",
    "UNEXPECTED_MESSAGE",
)
"""OpenSSL's reasons when what it reads is no TLS record."""

_ALERTS = {
    "CERTIFICATE_REVOKED": "it refuses our certificate: revoked",
    "CERTIFICATE_EXPIRED": "it refuses our certificate: expired",
    "CERTIFICATE_REQUIRED": "it wants a certificate",
    "UNKNOWN_CA": "it refuses our certificate: it does not know the CA that signed it",
    "BAD_CERTIFICATE": "it refuses our certificate",
    "UNSUPPORTED_CERTIFICATE": "it refuses our certificate: not one for clients",
    "CERTIFICATE_UNKNOWN": "it refuses our certificate",
    "ACCESS_DENIED": "it refuses our certificate: access denied",
    "PROTOCOL_VERSION": "it speaks no version of TLS from 1.2 on",
    "UNSUPPORTED_PROTOCOL": "it speaks no version of TLS from 1.2 on",
}
"""What a broker's alert means, by the end of OpenSSL's name for it."""


_NO_AUTHORITY = "is not the PEM file of a certificate authority"


class TlsFiles(NamedTuple):
    """PEM files: our certificate and its key, and the authority that signs the broker's."""

    cert: Path
    key: Path
    ca: Path


def tls_files(cert: str | None, key: str | None, ca: str | None) -> TlsFiles | None:
    """What the options name; None if they name nothing. Raises ConfigError for one or two."""
    given = dict(zip(OPTIONS.split(", "), (cert, key, ca), strict=True))
    missing = [option for option, file in given.items() if not file]
    if len(missing) == len(given):
        return None
    if missing:
        what = "TLS takes all three files" if len(missing) > 1 else "TLS takes this file too"
        raise ConfigError(", ".join(missing), what)
    return TlsFiles(*(Path(file) for file in given.values() if file))


def client_context(files: TlsFiles) -> "ssl.SSLContext":
    """The context for connections to brokers: TLS 1.2 or later, the broker's name is checked.

    Cheap to call again: the files are only loaded when they have changed, so that a renewed
    certificate is used from the next connection on. Raises ConfigError naming the file.
    """
    return _context(files, tuple(_content(file) for file in files))


@lru_cache(maxsize=4)
def _context(files: TlsFiles, _contents: tuple[bytes, ...]) -> "ssl.SSLContext":
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_verify_locations(files.ca)
    except ssl.SSLError as exc:
        raise ConfigError(files.ca, _NO_AUTHORITY) from exc
    if not context.cert_store_stats()["x509_ca"]:
        raise ConfigError(files.ca, _NO_AUTHORITY)
    try:
        # The empty password: OpenSSL would ask for it on the terminal.
        context.load_cert_chain(files.cert, files.key, password=b"")
    except ssl.SSLError as exc:
        if exc.reason == "KEY_VALUES_MISMATCH":
            raise ConfigError(files.key, f"is not the key of {files.cert}") from exc
        what = f"is not the PEM file of a key without a password, or {files.cert} of a certificate"
        raise ConfigError(files.key, what) from exc
    return context


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as exc:
        raise ConfigError(file, f"cannot be read: {exc.strerror}") from exc


def explain(error: BaseException) -> str | None:
    """A TLS failure in a few words, about the peer; None if it is none."""
    import ssl

    if isinstance(error, ssl.SSLCertVerificationError):
        return _explain_distrust(error)
    if isinstance(error, ssl.SSLEOFError):
        return "it ended the TLS connection without a goodbye"
    if isinstance(error, ConnectionError) and error.errno is None:
        return _explain_handshake(error)
    if not isinstance(error, ssl.SSLError):
        return None
    reason = error.reason or ""
    if any(reason.endswith(each) for each in _NOT_TLS):
        return "it does not speak TLS: give no TLS files, or its TLS port"
    alert = next((words for name, words in _ALERTS.items() if reason.endswith(name)), None)
    return alert or f"TLS failed: {reason.lower().replace('_', ' ') or error}"


def _explain_handshake(error: ConnectionError) -> str | None:
    """asyncio's own errors have no number, and say "SSL handshake" or nothing."""
    if isinstance(error, ConnectionResetError) and not error.args:
        return "it hung up in the TLS handshake: does it speak TLS?"
    if str(error).startswith("SSL handshake"):
        return f"no TLS handshake within {HANDSHAKE_S:g} s: does it speak TLS?"
    return None


def _explain_distrust(error: "ssl.SSLCertVerificationError") -> str:
    if error.verify_code in _UNKNOWN_ISSUER:
        return f"its certificate is not signed by our CA ({error.verify_message})"
    if error.verify_code == _EXPIRED:
        return "its certificate has expired"
    return f"its certificate is not to be trusted: {error.verify_message.rstrip('.')}"


_UNKNOWN_ISSUER = (2, 7, 18, 19, 20, 21)
_EXPIRED = 10
"""X509_V_ERR_*; Python's ssl has no names for them."""
