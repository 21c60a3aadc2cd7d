"""What TLS keeps out of testenv-broker while files change and strangers crowd in."""

import asyncio
import shutil
import signal
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from broker.protocol import Kind
from broker.server.tls import read_trust
from broker.tls import TlsFiles, client_context
from broker.wire import request
from schemas.broker import TlsSection
from tests.functional.service_rig import (
    PROGRAM,
    Service,
    packets,
    received,
    service,
    tls_peer,
    tls_section,
)
from tests.functional.tls_rig import Fleet, run
from tests.functional.wire_peers import BOUND_S
from tests.unit.test_transport import listening

HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
"""How a handshake begins; nothing follows."""

FEW_DESCRIPTORS = ["prlimit", "--nofile=400"]


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    pytest.importorskip("cryptography", reason="needs the broker extra")
    return Fleet(tmp_path / "fleet", "127.0.0.1")


class SlowHandshake:
    """A TLS peer whose handshake stops after its first byte, until it is told to go on."""

    def __init__(self, broker: Service, files: TlsFiles) -> None:
        self.socket = broker.connect()
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = client_context(files).wrap_bio(
            self._incoming, self._outgoing, server_hostname="127.0.0.1"
        )
        with pytest.raises(ssl.SSLWantReadError):
            self._tls.do_handshake()
        hello = self._outgoing.read()
        self.socket.sendall(hello[:1])
        self._rest = hello[1:]

    def close(self) -> None:
        """Hang up."""
        self.socket.close()

    def goes_on(self) -> bytes:
        """Finish the handshake, and read what the broker has to say then."""
        self.socket.sendall(self._rest)
        while True:
            try:
                self._tls.do_handshake()
                self.socket.sendall(self._outgoing.read())
                return self._tls.read()
            except ssl.SSLWantReadError:
                self.socket.sendall(self._outgoing.read())
                assert self._incoming.write(self.socket.recv(65536)), "no word, and no end"


def stay(peer: ssl.SSLSocket) -> bool:
    """Whether a connection is of use."""
    peer.sendall(b"version\n")
    return peer.recv(100).startswith(b"OK ")


def renew_authority(fleet: Fleet, folder: Path) -> Fleet:
    """Put another authority's files in the place of this one's."""
    other = Fleet(folder / "other", "127.0.0.1")
    for name in ("ca.crt", "crl.pem", "broker.crt", "broker.key"):
        shutil.copy(other.pki / name, fleet.pki / name)
    return other


async def test_certificate_revoked_during_its_handshake_is_turned_away(
    tmp_path: Path, fleet: Fleet
) -> None:
    document = tls_section(fleet)
    files = fleet.issue("job", "bad")
    with service(tmp_path, document) as broker, closing(SlowHandshake(broker, files)) as peer:
        # A connection that comes later is served: the slow one's handshake has begun.
        with closing(tls_peer(broker, files)) as other:
            assert stay(other)
        fleet.revoke("job/bad")
        await broker.reload(document)
        (error,) = packets(await asyncio.to_thread(peer.goes_on))
    assert error.data.startswith(b"UNKNOWN_CERTIFICATE\0the certificate has been revoked")


async def test_authority_that_is_replaced_takes_its_connections_with_it(
    tmp_path: Path, fleet: Fleet
) -> None:
    document = tls_section(fleet)
    files = fleet.issue("job", "ci")
    with service(tmp_path, document) as broker, closing(tls_peer(broker, files)) as old:
        assert stay(old)
        other = renew_authority(fleet, tmp_path)
        await broker.reload(document)
        (error,) = packets(await asyncio.to_thread(received, old))
        assert error.data.startswith(b"UNKNOWN_CERTIFICATE\0the authority")
        with closing(tls_peer(broker, other.issue("job", "ci"))) as new:
            assert stay(new)


# Files that would keep everybody out


def expired_list(fleet: Fleet) -> Path:
    return revocation_list(fleet, datetime.now(UTC) - timedelta(days=4000))


def list_of_tomorrow(fleet: Fleet) -> Path:
    return revocation_list(fleet, datetime.now(UTC) + timedelta(days=1))


def revocation_list(fleet: Fleet, now: datetime) -> Path:
    """A list of the fleet's authority, as it would be made at that time."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization

    authority = x509.load_pem_x509_certificate((fleet.pki / "ca.crt").read_bytes())
    key = serialization.load_pem_private_key((fleet.pki / "ca.key").read_bytes(), None)
    builder = x509.CertificateRevocationListBuilder(
        authority.subject, last_update=now, next_update=now + timedelta(days=3650)
    )
    signed = builder.sign(key, hashes.SHA256())  # type: ignore[arg-type]
    file = fleet.pki / "odd.pem"
    file.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    return file


def list_of_another(fleet: Fleet) -> Path:
    return Fleet(fleet.pki / "another", "127.0.0.1").pki / "crl.pem"


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (expired_list, "tls.crl: is valid from "),
        (list_of_tomorrow, "tls.crl: is valid from "),
        (list_of_another, "tls.crl: is not of the authority in tls.ca"),
    ],
)
async def test_revocation_list_that_keeps_everybody_out_is_refused(
    tmp_path: Path, fleet: Fleet, make: Callable[[Fleet], Path], complaint: str
) -> None:
    bad = tls_section(fleet).replace(str(fleet.pki / "crl.pem"), str(make(fleet)))
    await refused(tmp_path, fleet, bad, complaint)


@pytest.mark.parametrize("name", ["crl.pem", "broker.crt"])
async def test_authority_that_is_none_is_refused(tmp_path: Path, fleet: Fleet, name: str) -> None:
    bad = tls_section(fleet).replace(str(fleet.pki / "ca.crt"), str(fleet.pki / name))
    await refused(tmp_path, fleet, bad, "tls.ca: ")


async def refused(folder: Path, fleet: Fleet, document: str, complaint: str) -> None:
    """At the start, and at a reload, after which the old settings stay."""
    path = folder / "refused.toml"
    path.write_text(document)
    done = await asyncio.to_thread(run, PROGRAM, "run", "--config", path)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert complaint in done.stderr
    with service(folder, tls_section(fleet)) as broker:
        await broker.reload(document)
        assert complaint in await broker.logs("not reloaded")
        with closing(tls_peer(broker, fleet.issue("job", "ci"))) as peer:
            assert stay(peer)


async def test_first_packet_after_the_handshake_is_acknowledged_at_once(fleet: Fleet) -> None:
    cert, key, ca = fleet.broker
    trust = read_trust(TlsSection(cert=cert, key=key, ca=ca))
    context = client_context(fleet.issue("job", "ci"))
    async with listening(trust=trust) as broker, asyncio.timeout(BOUND_S):
        _, writer = await asyncio.open_connection(
            *broker.address, ssl=context, server_hostname="127.0.0.1"
        )
        while not broker.board.connections:
            await asyncio.sleep(0.01)
        (connection,) = broker.board.connections
        assert connection._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK)
        writer.close()


# Crowds of strangers


@contextmanager
def strangers(broker: Service, addresses: range, each: int) -> Iterator[None]:
    """Half handshakes, `each` from every 127.0.0.<address>."""
    to = (broker.endpoint.host, broker.endpoint.port)
    with ExitStack() as crowd:
        for address in addresses:
            for _ in range(each):
                source = (f"127.0.0.{address}", 0)
                peer = crowd.enter_context(socket.create_connection(to, BOUND_S, source))
                peer.sendall(HELLO)
        yield


async def test_strangers_take_no_certificates_place(tmp_path: Path, fleet: Fleet) -> None:
    limits = "[limits]\nconnections = 100\nhandshakes = 100\n"
    files = fleet.issue("job", "ci")
    with (
        service(tmp_path, limits + tls_section(fleet)) as broker,
        strangers(broker, range(2, 8), 50),
        closing(tls_peer(broker, files)) as peer,
    ):
        assert stay(peer)


async def test_strangers_without_certificate_keep_no_revocation_from_being_read(
    tmp_path: Path, fleet: Fleet
) -> None:
    document = tls_section(fleet)
    files = fleet.issue("job", "bad")
    with (
        service(tmp_path, document, under=FEW_DESCRIPTORS) as broker,
        closing(tls_peer(broker, files)) as peer,
    ):
        assert stay(peer)
        fleet.revoke("job/bad")
        with strangers(broker, range(2, 5), 200):
            await broker.reload(document)
            (error,) = packets(await asyncio.to_thread(received, peer))
        assert error.data.startswith(b"UNKNOWN_CERTIFICATE\0")
        assert "Too many open files" not in broker.log


async def test_stranger_who_comes_in_a_loop_does_not_fill_the_log(
    tmp_path: Path, fleet: Fleet
) -> None:
    with service(tmp_path, tls_section(fleet)) as broker:
        for _ in range(200):
            with closing(broker.connect()) as peer:
                peer.sendall(request(Kind.ECHO_REQ, b""))
                await asyncio.to_thread(received, peer)
        broker.process.send_signal(signal.SIGHUP)
        await broker.logs("reloaded")
        assert 1 <= broker.log.count("plain text") <= 20
