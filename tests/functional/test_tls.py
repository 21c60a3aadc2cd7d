"""TLS to a broker: what works, and the words for everything that does not."""

import asyncio
import ssl
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from socket import create_server

import pytest

pytest.importorskip("cryptography", reason="needs the broker extra")

from broker import admin
from broker.client import Outcome, submit
from broker.endpoint import Endpoint, parse_endpoints
from broker.link import Link
from broker.links import Links, OneLink
from broker.protocol import Kind
from broker.tls import TlsFiles, client_context
from broker.wire import PacketReader, response
from broker.worker import Worker
from schemas.errors import BrokerUnreachable, ConfigError, ConnectionLost, TestenvError
from tests.functional.tls_rig import Fleet, TlsBroker, our_broker, tls_broker
from tests.functional.wire_peers import banner_server, black_hole, scripted_broker, unknown_job

BOUND_S = 10.0


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    return Fleet(tmp_path_factory.mktemp("fleet"), "localhost", "127.0.0.1")


@pytest.fixture(scope="module")
def job(fleet: Fleet) -> TlsFiles:
    return fleet.issue("job", "ci")


@pytest.fixture(scope="module")
def operator(fleet: Fleet) -> TlsFiles:
    return fleet.issue("operator", "ann")


@pytest.fixture
def broker(fleet: Fleet) -> Iterator[TlsBroker]:
    with tls_broker(fleet) as running:
        yield running


async def connected(endpoint: Endpoint) -> Link:
    return await Link.open(endpoint, client_id="test", timeout=BOUND_S)


async def why_no_link(endpoint: Endpoint) -> str:
    with pytest.raises(BrokerUnreachable) as caught:
        await connected(endpoint)
    [(_, why)] = caught.value.attempts
    return why


async def why_no_status(endpoint: Endpoint) -> str:
    with pytest.raises(TestenvError) as caught:
        await admin.status(endpoint)
    return str(caught.value)


async def why_neither(endpoint: Endpoint, words: str) -> None:
    assert words in await why_no_link(endpoint)
    assert words in await why_no_status(endpoint)


@contextmanager
def tls_server(fleet: Fleet, version: ssl.TLSVersion, crl: Path | None = None) -> Iterator[int]:
    """A server that tells a client whose certificate it refuses, and serves nobody."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.maximum_version = version
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(fleet.broker.cert, fleet.broker.key)
    context.load_verify_locations(fleet.broker.ca)
    if crl:
        context.load_verify_locations(crl)
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    listener = create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            peer.settimeout(BOUND_S)
            with (
                peer,
                context.wrap_socket(
                    peer.dup(), server_side=True, do_handshake_on_connect=False
                ) as spoken,
                suppress(OSError),
            ):
                try:
                    spoken.do_handshake()
                finally:
                    # A close with something unread is a reset, which overtakes the alert.
                    while peer.recv(65536):
                        pass

    server = threading.Thread(target=serve)
    server.start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        listener.shutdown(2)
        listener.close()
        server.join(BOUND_S)


@asynccontextmanager
async def asyncio_server(fleet: Fleet) -> AsyncIterator[Endpoint]:
    """A broker that answers pings and gives out one job, over TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(fleet.broker.cert, fleet.broker.key)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        packets = PacketReader()
        while data := await reader.read(65536):
            for packet in packets.feed(data):
                if packet.kind == Kind.GET_STATUS:
                    writer.write(unknown_job(packet))
                elif packet.kind == Kind.GRAB_JOB_UNIQ:
                    handle = b"H:AAAAAAAAAAAAAAAA:job/ci-7"
                    writer.write(response(Kind.JOB_ASSIGN_UNIQ, handle, b"f", b"", b""))
        writer.close()

    async with await asyncio.start_server(talk, "127.0.0.1", 0, ssl=context) as server:
        yield Endpoint(*server.sockets[0].getsockname())


# What works


async def test_jobs_go_both_ways_over_tls(broker: TlsBroker, fleet: Fleet, job: TlsFiles) -> None:
    host = fleet.issue("host", "worker")
    async with (
        await connected(broker.at(job, "localhost")) as asking,
        await connected(broker.at(host)) as working,
    ):
        submitted = await submit(asking, "lockenv", b"x" * 100_000)
        assignment = await Worker(OneLink(working), ["lockenv"]).take()
        assert assignment
        assert assignment.arguments == b"x" * 100_000
        assert assignment.submitter == "job/ci"
        assignment.complete(b"y" * 100_000)
        assert await submitted.result() == (Outcome.COMPLETE, b"y" * 100_000)


async def test_what_is_sent_last_arrives_when_a_link_is_closed(
    broker: TlsBroker, fleet: Fleet, job: TlsFiles
) -> None:
    host = fleet.issue("host", "closer")
    async with await connected(broker.at(job)) as asking:
        submitted = await submit(asking, "lockenv", b"")
        async with await connected(broker.at(host)) as working:
            assignment = await Worker(OneLink(working), ["lockenv"]).take()
            assert assignment
            assignment.complete(b"z" * 500_000)
        async with asyncio.timeout(BOUND_S):
            assert (await submitted.result()).data == b"z" * 500_000


async def test_closing_does_not_wait_for_a_timeout(broker: TlsBroker, job: TlsFiles) -> None:
    link = await connected(broker.at(job))
    async with asyncio.timeout(BOUND_S):
        await link.aclose(timeout=2 * BOUND_S)
    assert (await link.lost()).why == "closed by us"


async def test_killed_broker_is_noticed(broker: TlsBroker, job: TlsFiles) -> None:
    async with await connected(broker.at(job)) as link:
        broker.kill()
        async with asyncio.timeout(BOUND_S):
            await link.lost()


async def test_operator_sees_status_and_a_job_does_not(
    broker: TlsBroker, job: TlsFiles, operator: TlsFiles
) -> None:
    assert await admin.status(broker.at(operator)) == []
    assert "for operators" in await why_no_status(broker.at(job))


async def test_farewell_of_another_process_is_empty_over_tls(fleet: Fleet, job: TlsFiles) -> None:
    async with asyncio_server(fleet) as plain:
        endpoint = Endpoint(plain.host, plain.port, job)
        async with await connected(endpoint) as link:
            assignment = await Worker(OneLink(link), ["f"]).take()
            assert assignment
            assert assignment.completion() == b""


async def test_stamp_counts_only_from_a_broker_that_has_shown_a_certificate(
    fleet: Fleet, job: TlsFiles
) -> None:
    stamped = response(Kind.JOB_ASSIGN_UNIQ, b"H:AAAAAAAAAAAAAAAA:job/ci-7", b"f", b"", b"")
    async with (
        scripted_broker(lambda p: stamped if p.kind == Kind.GRAB_JOB_UNIQ else None) as plain,
        asyncio_server(fleet) as tls,
    ):
        told = []
        for endpoint in (plain, Endpoint(tls.host, tls.port, job)):
            async with await connected(endpoint) as link:
                assignment = await Worker(OneLink(link), ["f"]).take()
                assert assignment
                told.append(assignment.submitter)
    assert told == ["unverified", "job/ci-7"]


# What does not, and the words for it


async def test_plain_client_is_told_that_the_port_speaks_tls(broker: TlsBroker) -> None:
    await why_neither(broker.at(None), "it speaks TLS: give --tls-cert, --tls-key, --tls-ca")


@pytest.mark.parametrize("answer", [b"\x15\x03\x01\x00\x02\x02\x46", b""], ids=["alert", "nothing"])
async def test_plain_client_at_any_tls_server_is_told_about_tls(answer: bytes) -> None:
    async with banner_server(answer, close=True) as endpoint:
        await why_neither(endpoint, "speaks TLS")


async def test_tls_client_is_told_that_our_port_is_plain(job: TlsFiles) -> None:
    with our_broker([]) as plain:
        await why_neither(plain.at(job), "it does not speak TLS")


async def test_service_that_waits_for_more_is_no_tls_server(
    job: TlsFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.tls.HANDSHAKE_S", 0.2)
    with black_hole() as endpoint:
        await why_neither(
            Endpoint(endpoint.host, endpoint.port, job), "no TLS handshake within 0.2 s"
        )


async def test_service_that_hangs_up_is_no_tls_server(job: TlsFiles) -> None:
    async with banner_server(b"", close=True) as endpoint:
        await why_neither(Endpoint(endpoint.host, endpoint.port, job), "does it speak TLS?")


async def test_broker_of_another_authority_is_not_trusted(
    broker: TlsBroker, job: TlsFiles, tmp_path: Path
) -> None:
    stranger = Fleet(tmp_path, "localhost")
    await why_neither(
        broker.at(job._replace(ca=stranger.broker.ca)), "its certificate is not signed by our CA"
    )


async def test_broker_of_another_name_is_not_trusted(job: TlsFiles, tmp_path: Path) -> None:
    other = Fleet(tmp_path, "broker.example.org")
    with tls_broker(other) as broker:
        tls = job._replace(ca=other.broker.ca)
        await why_neither(broker.at(tls), "IP address mismatch")
        await why_neither(broker.at(tls, "localhost"), "Hostname mismatch")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_refused_certificate_is_told_with_the_servers_reason(
    fleet: Fleet, tmp_path: Path, version: ssl.TLSVersion
) -> None:
    revoked = fleet.issue("job", f"revoked-{version.name}")
    fleet.revoke(f"revoked-{version.name}")
    stranger = Fleet(tmp_path, "localhost").issue("job", "x")._replace(ca=fleet.broker.ca)
    with tls_server(fleet, version, fleet.pki / "crl.pem") as port:
        reasons = {
            name: await why_no_link(Endpoint("127.0.0.1", port, files))
            for name, files in (("revoked", revoked), ("stranger", stranger))
        }
    assert reasons == {
        "revoked": "it refuses our certificate: revoked",
        "stranger": "it refuses our certificate: it does not know the CA that signed it",
    }


async def test_certificate_that_our_broker_refuses_is_what_the_client_names(
    fleet: Fleet, job: TlsFiles
) -> None:
    revoked = fleet.issue("job", "out")
    fleet.revoke("out")
    with tls_broker(fleet) as broker:
        await why_neither(broker.at(revoked), "our certificate")
        await why_neither(broker.at(fleet.broker), "our certificate")
        async with await connected(broker.at(job)):
            pass


async def test_revoked_peer_is_out_at_reload_and_the_others_stay(
    fleet: Fleet, job: TlsFiles, broker: TlsBroker
) -> None:
    async with (
        await connected(broker.at(fleet.issue("job", "doomed"))) as doomed,
        await connected(broker.at(job)) as other,
    ):
        fleet.revoke("doomed")
        broker.reload()
        async with asyncio.timeout(BOUND_S):
            await doomed.lost()
        assert not other.is_lost
        assert (await other.ask_status(b"any").wait()).known is False


# ERROR packets that are about the connection


async def test_refusal_of_the_connection_is_why_it_is_lost() -> None:
    refusal = response(Kind.ERROR, b"REGISTER_REFUSED", b"host.te-1 is not yours to register")
    async with (
        scripted_broker(lambda packet: refusal if packet.kind == Kind.CAN_DO else None) as endpoint,
        await connected(endpoint) as link,
    ):
        submission = asyncio.create_task(submit(link, "f", b""))
        await asyncio.sleep(0)
        worker = Worker(OneLink(link), ["host.te-1"])
        with pytest.raises(ConnectionLost, match=r"the broker refuses: host\.te-1 is not yours"):
            await worker.take()
        with pytest.raises(ConnectionLost, match="the broker refuses"):
            await submission


async def test_refused_connection_is_logged_and_tried_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    refusal = response(Kind.ERROR, b"UNKNOWN_CERTIFICATE", b"no role for the certificate of CN=x")
    refused = 0

    def script(_: object) -> bytes | None:
        nonlocal refused
        refused += 1
        return refusal if refused <= 3 else None

    async with scripted_broker(script) as endpoint, Links([endpoint], client_id="x") as links:
        async with asyncio.timeout(BOUND_S):
            await links.changed(())
    assert "the broker refuses: no role for the certificate of CN=x; still trying" in caplog.text


# Files


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"cert": "missing"}, "missing: cannot be read: No such file or directory"),
        ({"ca": "."}, "cannot be read: Is a directory"),
        ({"key": "other.key"}, "other.key: is not the key of"),
        ({"key": "ca.crt"}, "ca.crt: is not the PEM file of a key"),
        ({"ca": "crl.pem"}, "crl.pem: is not the PEM file of a certificate authority"),
        ({"ca": "other.key"}, "other.key: is not the PEM file of a certificate authority"),
    ],
)
def test_file_that_is_not_usable_is_named(
    fleet: Fleet, job: TlsFiles, change: dict[str, str], words: str
) -> None:
    (fleet.pki / "other.key").write_bytes((fleet.pki / "broker.key").read_bytes())
    files = job._replace(**{field: fleet.pki / name for field, name in change.items()})
    with pytest.raises(ConfigError) as caught:
        parse_endpoints("broker", tls=files)
    assert words in str(caught.value)


def test_files_are_loaded_again_when_they_have_changed(fleet: Fleet, tmp_path: Path) -> None:
    files = TlsFiles(*(tmp_path / name for name in ("cert", "key", "ca")))
    contexts = []
    for source in (fleet.issue("job", "renew-1"), fleet.issue("job", "renew-2")):
        for file, content in zip(files, source, strict=True):
            file.write_bytes(content.read_bytes())
        contexts += [client_context(files), client_context(files)]
    assert contexts[0] is contexts[1]
    assert contexts[2] is contexts[3]
    assert contexts[1] is not contexts[2]
