"""A small public key infrastructure: who is who to a broker with TLS. No files here.

One authority signs the brokers' certificates and their peers'. A certificate's subject is
`OU=<role>,CN=<name>`, from which a broker tells what its bearer may do. Keys are EC P-256.
"""

import ipaddress
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

BROKER = "broker"
"""The role of a broker's own certificate: good for a server, and for nothing else."""

AUTHORITY_DAYS = 3650
"""How long an authority is good for. So is a revocation list: OpenSSL turns everybody away when
that has expired."""

_CLOCK_SKEW = timedelta(minutes=10)
"""A peer's clock may be slow, and a certificate is to be good at once."""


class Pair(NamedTuple):
    """A certificate and its private key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def key_pem(self) -> bytes:
        """The key, as a file that needs no password."""
        return self.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )


def pem(document: x509.Certificate | x509.CertificateRevocationList) -> bytes:
    """As a file."""
    return document.public_bytes(serialization.Encoding.PEM)


def subject_of(certificate: x509.Certificate) -> tuple[str, str]:
    """Role and name; empty where the subject has none."""
    role, name = (
        next((str(one.value) for one in certificate.subject.get_attributes_for_oid(oid)), "")
        for oid in (NameOID.ORGANIZATIONAL_UNIT_NAME, NameOID.COMMON_NAME)
    )
    return role, name


def new_authority(now: datetime) -> Pair:
    """An authority whose name is like no other's."""
    key = ec.generate_private_key(ec.SECP256R1())
    serial = x509.random_serial_number()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"testenv CA {serial:x}"[:20])])
    builder = (
        x509.CertificateBuilder(name, name, key.public_key(), serial)
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + timedelta(days=AUTHORITY_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(authority=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return Pair(builder.sign(key, hashes.SHA256()), key)


def issue(
    authority: Pair, role: str, names: Sequence[str], now: datetime, days: int | None = None
) -> Pair:
    """A certificate for a role and a name; a broker's is for all host names and addresses given.

    It ends after `days` (None: as late as it can), and not later than the authority's own.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    last = authority.certificate.not_valid_after_utc
    end = last if days is None else min(last, now + timedelta(days=days))
    # RFC 5280 limits a common name to 64 characters; who checks a broker looks at all names.
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, role),
            x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64]),
        ]
    )
    purpose = ExtendedKeyUsageOID.SERVER_AUTH if role == BROKER else ExtendedKeyUsageOID.CLIENT_AUTH
    builder = (
        x509.CertificateBuilder(
            authority.certificate.subject, subject, key.public_key(), x509.random_serial_number()
        )
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(_issuer_key(authority), critical=False)
    )
    if role == BROKER:
        alternatives = x509.SubjectAlternativeName([general_name(name) for name in names])
        builder = builder.add_extension(alternatives, critical=False)
    return Pair(builder.sign(authority.key, hashes.SHA256()), key)


def revocation_list(
    authority: Pair,
    serials: Iterable[int],
    now: datetime,
    previous: x509.CertificateRevocationList | None = None,
) -> x509.CertificateRevocationList:
    """A list of what `previous` has, and of `serials`."""
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(authority.certificate.subject)
        .last_update(now - _CLOCK_SKEW)
        .next_update(now + timedelta(days=AUTHORITY_DAYS))
        .add_extension(_issuer_key(authority), critical=False)
        .add_extension(x509.CRLNumber(_number(previous) + 1), critical=False)
    )
    for entry in previous or ():
        builder = builder.add_revoked_certificate(entry)
    for serial in serials:
        revoked = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now)
        builder = builder.add_revoked_certificate(revoked.build())
    return builder.sign(authority.key, hashes.SHA256())


def is_address(text: str) -> bool:
    """Whether it is an IP address."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def general_name(text: str) -> x509.GeneralName:
    """A host name or an address, as a certificate has it."""
    if is_address(text):
        return x509.IPAddress(ipaddress.ip_address(text))
    return x509.DNSName(text)


def _number(crl: x509.CertificateRevocationList | None) -> int:
    if crl is None:
        return 0
    return crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number


def _issuer_key(authority: Pair) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())


def _usage(*, authority: bool) -> x509.KeyUsage:
    """An authority's key signs certificates and lists; any other signs its own handshakes."""
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
