"""testenv-broker as a service: drain, reload, limits, monitoring, and peers that misbehave."""

import asyncio
import re
import signal
import socket
import ssl
import subprocess
import urllib.error
import urllib.request
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from broker.client import submit
from broker.link import Link
from broker.links import OneLink
from broker.protocol import Kind
from broker.server.config import load_config
from broker.wire import request
from broker.worker import Worker
from tests.functional.brokers import free_port
from tests.functional.service_rig import (
    DOCUMENTED,
    PROGRAM,
    answers,
    packets,
    received,
    serves_again,
    service,
    tls_peer,
    tls_section,
)
from tests.functional.tls_rig import Fleet
from tests.functional.wire_peers import BOUND_S

# Configuration


def test_documented_configuration_has_every_key_with_its_default(tmp_path: Path) -> None:
    text = DOCUMENTED.read_text()
    documented = load_config(DOCUMENTED, {}).model_dump()
    without = re.sub(r"\[(tls|http)\][^\[]*", "", text)
    path = tmp_path / "broker.toml"
    path.write_text(without)
    assert load_config(path, {}) == load_config(None, {})
    keys = {line.split("=")[0].strip() for line in text.splitlines() if "=" in line}
    for section in (documented, *(one for one in documented.values() if isinstance(one, dict))):
        assert {key for key, value in section.items() if not isinstance(value, dict)} <= keys


@pytest.mark.parametrize(
    ("document", "complaint"),
    [
        ("lisen = 'x'", "lisen: unknown key; allowed here: access, drain_timeout_s"),
        ("[limits]\npacket_bytes = 0", "limits.packet_bytes: "),
        ("[limits]\nkeepalive_idle_s = 100000", "limits.keepalive_idle_s: "),
        ("[tls]\ncert = 'x'", "tls.key: is required"),
        ("[access]\njob = ['everybody']", "access.job: 'everybody' is not ATTRIBUTE=GLOB"),
        ("[access]\njob = ['UID=x']", "attributes: CN, O, OU, C, L, ST"),
        ("listen = '127.0.0.1:x'", "listen: '127.0.0.1:x' is not a broker address"),
        ("[http]\nlisten = '127.0.0.1'", "http.listen: '127.0.0.1' has no port"),
        ("[tls]\ncert = 'no'\nkey = 'no'\nca = 'no'", "tls.cert: cannot be read"),
    ],
)
def test_bad_configuration_is_one_line_and_exit_2(
    tmp_path: Path, document: str, complaint: str
) -> None:
    path = tmp_path / "broker.toml"
    path.write_text(document)
    done = subprocess.run(
        [PROGRAM, "run", "--config", str(path)],
        capture_output=True, text=True, timeout=BOUND_S, check=False,
    )  # fmt: skip
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert complaint in done.stderr


def test_beyond_loopback_it_needs_tls_or_to_be_told(tmp_path: Path) -> None:
    command = [PROGRAM, "run", "--listen", "0.0.0.0:0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=BOUND_S, check=False)
    assert done.returncode == 2
    assert "--insecure" in done.stderr
    assert "--tls-cert" in done.stderr
    with service(tmp_path, "insecure = true", "--listen", "0.0.0.0:0") as broker:
        assert broker.endpoint.host == "0.0.0.0"  # noqa: S104 - what is tested


# The end


async def test_drain_refuses_lock_requests_and_lets_the_rest_end(tmp_path: Path) -> None:
    with service(tmp_path) as broker:
        async with (
            await Link.open(broker.endpoint, client_id="client") as here,
            await Link.open(broker.endpoint, client_id="worker") as there,
            asyncio.timeout(BOUND_S),
        ):
            job = await submit(here, "lockenv", b"")
            assignment = await Worker(OneLink(there), ["lockenv", "callback_1"]).take()
            assert assignment
            broker.process.terminate()
            await broker.logs("draining")
            with closing(broker.connect()) as late:
                late.sendall(request(Kind.SUBMIT_JOB, b"lockenv", b"", b""))
                late.shutdown(socket.SHUT_WR)
                (refusal,) = packets(await asyncio.to_thread(received, late))
            assert refusal.kind == Kind.ERROR
            assert refusal.data.startswith(b"DRAINING\0")
            assignment.complete(b"done")
            assert (await job.result()).data == b"done"
        assert await broker.ended() == 0


async def test_drain_has_a_deadline(tmp_path: Path) -> None:
    with service(tmp_path, "drain_timeout_s = 0.2") as broker:
        async with await Link.open(broker.endpoint, client_id="client") as here:
            await submit(here, "f", b"")
            broker.process.terminate()
            assert await broker.ended() == 0


async def test_client_that_has_said_all_still_gets_its_answers(tmp_path: Path) -> None:
    with service(tmp_path) as broker, closing(broker.connect()) as peer:
        peer.sendall(request(Kind.ECHO_REQ, b"a") * 1000 + b"status\n")
        peer.shutdown(socket.SHUT_WR)
        answer = await asyncio.to_thread(received, peer)
    assert answer.count(b"\0RES\0\0\0\x11\0\0\0\x01a") == 1000
    assert answer.endswith(b"a.\n")


# Reload


async def test_reload_changes_limits(tmp_path: Path) -> None:
    with service(tmp_path) as broker:
        await broker.reload("[limits]\npacket_bytes = 10\n")
        with closing(broker.connect()) as peer:
            peer.sendall(request(Kind.ECHO_REQ, b"x" * 11))
            (error,) = packets(await asyncio.to_thread(received, peer))
    assert error.data.startswith(b"LIMIT_EXCEEDED\0")


@pytest.mark.parametrize(
    ("document", "complaint"),
    [
        ("nonsense = 1", "nonsense: unknown key"),
        ("[limits]\nkeepalive_count = 1000", "limits.keepalive_count"),
        ("a = " + "[" * 3000, "not reloaded, the old settings stay"),
    ],
)
async def test_reload_of_a_bad_file_changes_nothing(
    tmp_path: Path, document: str, complaint: str
) -> None:
    with service(tmp_path) as broker:
        await broker.reload(document)
        assert "not reloaded" in await broker.logs(complaint)
        assert await answers(broker.endpoint)


async def test_reload_ends_connections_that_have_lost_their_rights(tmp_path: Path) -> None:
    with service(tmp_path) as broker, closing(broker.connect()) as peer:
        peer.sendall(request(Kind.ECHO_REQ, b""))
        peer.recv(100)
        await broker.reload("[access]\nunverified = ['job']\n")
        (error,) = packets(await asyncio.to_thread(received, peer))
    assert error.data.startswith(b"UNKNOWN_CERTIFICATE\0")


# Limits


async def test_peer_over_a_limit_is_told_and_nobody_else_notices(tmp_path: Path) -> None:
    limits = "[limits]\nconnections_per_subject = 2\n"
    with (
        service(tmp_path, limits) as broker,
        closing(broker.connect()) as first,
        closing(broker.connect()),
    ):
        with closing(broker.connect()) as third:
            (error,) = packets(await asyncio.to_thread(received, third))
        assert error.data.startswith(b"LIMIT_EXCEEDED\0")
        await broker.logs("more than 2 connections of 127.0.0.1")
        first.sendall(b"version\n")
        assert first.recv(100).startswith(b"OK ")


async def test_crowd_beyond_the_limit_of_open_files_passes(tmp_path: Path) -> None:
    with service(tmp_path, under=["prlimit", "--nofile=150"]) as broker:
        assert "at most 54 connections" in broker.log
        with ExitStack() as crowd:
            peers = [crowd.enter_context(closing(broker.connect())) for _ in range(300)]
            last = await asyncio.to_thread(received, peers[-1])
            assert not last or packets(last)[0].data.startswith(b"LIMIT_EXCEEDED\0")
            peers[0].sendall(b"version\n")
            assert peers[0].recv(100).startswith(b"OK ")
        async with asyncio.timeout(BOUND_S):
            while not await serves_again(broker):
                await asyncio.sleep(0.05)


async def test_those_told_that_they_are_too_many_cost_no_descriptors(tmp_path: Path) -> None:
    with service(tmp_path, under=["prlimit", "--nofile=150"]) as broker, ExitStack() as crowd:
        for number in range(200):
            peer = crowd.enter_context(closing(broker.connect()))
            if number >= 54:
                await asyncio.to_thread(received, peer)
        await broker.reload("")
        assert "Too many open files" not in broker.log


async def test_slow_reader_is_cut_off(tmp_path: Path) -> None:
    with service(tmp_path, "[limits]\nunsent_bytes = 100000\n") as broker:
        with closing(broker.connect()) as lazy:
            echo = request(Kind.ECHO_REQ, b"x" * 100_000)
            with pytest.raises(ConnectionError):
                await asyncio.to_thread(lazy.sendall, echo * 1000)
        await broker.logs("does not read")
        assert await answers(broker.endpoint)


async def test_flooding_peer_delays_nobody(tmp_path: Path) -> None:
    with service(tmp_path) as broker, closing(broker.connect()) as flood:
        flood.setblocking(False)
        loop = asyncio.get_running_loop()
        one = request(Kind.CANT_DO, b"f") * 10_000

        async def pour() -> None:
            while True:
                await loop.sock_sendall(flood, one)

        flooding = asyncio.create_task(pour())
        for _ in range(20):
            assert await answers(broker.endpoint)
        flooding.cancel()
        await asyncio.gather(flooding, return_exceptions=True)


async def test_tls_on_a_plain_port_is_answered_in_words(tmp_path: Path) -> None:
    with service(tmp_path) as broker:
        with closing(broker.connect()) as peer:
            peer.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
            answer = await asyncio.to_thread(received, peer)
        assert answer.startswith(b"ERR TLS_ON_PLAIN_PORT ")
        await broker.logs("TLS_ON_PLAIN_PORT")


# TLS


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    pytest.importorskip("cryptography", reason="needs the broker extra")
    return Fleet(tmp_path_factory.mktemp("fleet"), "127.0.0.1")


async def test_silent_tls_peers_are_cut_off_and_delay_nobody(tmp_path: Path, fleet: Fleet) -> None:
    document = "[limits]\nhandshake_s = 0.5\n" + tls_section(fleet)
    files = fleet.issue("job", "ci-1")
    with service(tmp_path, document) as broker, closing(broker.connect()) as mute:
        with closing(broker.connect()) as half:
            half.sendall(b"\x16\x03\x01\x02\x00")
            with closing(tls_peer(broker, files)) as peer:
                peer.sendall(b"version\n")
                assert peer.recv(100).startswith(b"OK ")
            assert await asyncio.to_thread(received, half) == b""
            assert await asyncio.to_thread(received, mute) == b""
        await broker.logs("no TLS handshake with 127.0.0.1: it takes too long")


async def test_plain_text_on_a_tls_port_is_answered_in_words(tmp_path: Path, fleet: Fleet) -> None:
    with service(tmp_path, tls_section(fleet)) as broker:
        with closing(broker.connect()) as peer:
            peer.sendall(request(Kind.ECHO_REQ, b""))
            (error,) = packets(await asyncio.to_thread(received, peer))
        assert error.data == b"PLAIN_ON_TLS_PORT\0This port speaks TLS only"
        await broker.logs("speaks plain text to a TLS port")


async def test_client_hears_why_its_certificate_is_refused(tmp_path: Path, fleet: Fleet) -> None:
    files = fleet.issue("job", "stolen")
    fleet.revoke("job/stolen")
    with service(tmp_path, tls_section(fleet)) as broker:
        with closing(tls_peer(broker, files)) as peer:
            peer.sendall(b"version\n")
            with pytest.raises(ssl.SSLError, match=r"(?i)revoked"):
                peer.recv(100)
        await broker.logs("its certificate is refused: certificate revoked")


async def test_certificate_without_a_role_is_told_so(tmp_path: Path, fleet: Fleet) -> None:
    document = "[access]\njob = ['OU=job,CN=ci-*']\n" + tls_section(fleet)
    files = fleet.issue("job", "other")
    with service(tmp_path, document) as broker:
        with closing(tls_peer(broker, files)) as peer:
            (error,) = packets(await asyncio.to_thread(received, peer))
        assert error.data.startswith(b"UNKNOWN_CERTIFICATE\0no role for the certificate of ")


async def test_revoked_certificate_is_out_at_reload_and_others_stay(
    tmp_path: Path, fleet: Fleet
) -> None:
    document = tls_section(fleet)
    bad, good = fleet.issue("job", "bad"), fleet.issue("job", "good")
    with (
        service(tmp_path, document) as broker,
        closing(tls_peer(broker, bad)) as out,
        closing(tls_peer(broker, good)) as stays,
    ):
        for peer in (out, stays):
            peer.sendall(b"version\n")
            assert peer.recv(100).startswith(b"OK ")
        fleet.revoke("job/bad")
        await broker.reload(document)
        (error,) = packets(await asyncio.to_thread(received, out))
        assert error.data.startswith(b"UNKNOWN_CERTIFICATE\0the certificate has been revoked")
        stays.sendall(b"version\n")
        assert stays.recv(100).startswith(b"OK ")


# Monitoring


async def test_monitoring_tells_health_and_figures(tmp_path: Path) -> None:
    port = free_port()
    with service(tmp_path, "", "--http", f"127.0.0.1:{port}") as broker:
        async with (
            await Link.open(broker.endpoint, client_id="client") as here,
            await Link.open(broker.endpoint, client_id="worker") as there,
            asyncio.timeout(BOUND_S),
        ):
            await submit(here, "lockenv", b"")
            assert await Worker(OneLink(there), ["lockenv"]).take()
            await submit(here, "callback_1", b"")
            await submit(here, "callback_2", b"")
            assert await asyncio.to_thread(fetch, port, "healthz") == (200, "ok\n")
            _, figures = await asyncio.to_thread(fetch, port, "metrics")
            broker.process.terminate()
            await broker.logs("draining")
            assert await asyncio.to_thread(fetch, port, "healthz") == (503, "draining\n")
            broker.process.terminate()
    for line in (
        "testenv_running_leases 1.0",
        'testenv_queued_jobs{function="callback_*"} 2.0',
        'testenv_wait_seconds_count{function="lockenv"} 1.0',
        'testenv_connections{role="unverified"} 2.0',
        'testenv_packets_total{direction="in",kind="SUBMIT_JOB"} 3.0',
        'testenv_packets_total{direction="out",kind="JOB_CREATED"} 3.0',
    ):
        assert line in figures.splitlines()


async def test_made_up_functions_hide_no_lease_from_monitoring(tmp_path: Path) -> None:
    port = free_port()
    asked = [f"lockenv:junk{number}" for number in range(600)] + ["lockenv", "lockenv:kvm"]
    with service(tmp_path, "", "--http", f"127.0.0.1:{port}") as broker:
        async with (
            await Link.open(broker.endpoint, client_id="client") as here,
            asyncio.timeout(BOUND_S),
        ):
            for name in asked:
                await submit(here, name, b"")
            with closing(broker.connect()) as worker:
                for function in (b"lockenv", b"lockenv:kvm"):
                    worker.sendall(request(Kind.CAN_DO, function) + request(Kind.GRAB_JOB))
                worker.sendall(request(Kind.CANT_DO, b"lockenv:kvm") + b"version\n")
                while b"OK " not in worker.recv(1000):
                    pass
                _, figures = await asyncio.to_thread(fetch, port, "metrics")
    assert "testenv_running_leases 2.0" in figures.splitlines()
    assert 'testenv_running_jobs{function="lockenv"} 1.0' in figures.splitlines()


async def test_crowd_at_the_monitoring_port_is_limited(tmp_path: Path) -> None:
    port = free_port()
    with service(tmp_path, "", "--http", f"127.0.0.1:{port}"), ExitStack() as crowd:
        for _ in range(40):
            last = crowd.enter_context(
                socket.create_connection(("127.0.0.1", port), timeout=BOUND_S / 2)
            )
            last.sendall(b"GET /met")
        with pytest.raises(ConnectionResetError):
            await asyncio.to_thread(last.recv, 100)


def fetch(port: int, page: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{page}", timeout=BOUND_S) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


async def test_service_manager_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"@testenv-test-{free_port()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + name[1:])
        manager.settimeout(BOUND_S)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        monkeypatch.setenv("WATCHDOG_USEC", "100000")

        def hear(word: str) -> str:
            return next(text for text in iter(lambda: manager.recv(999).decode(), "")
                        if text.startswith(word))  # fmt: skip

        with service(tmp_path) as broker:
            assert f"STATUS=listening on {broker.endpoint}" in hear("READY=1")
            hear("WATCHDOG=1")
            broker.process.send_signal(signal.SIGHUP)
            assert "MONOTONIC_USEC=" in hear("RELOADING=1")
            hear("READY=1")
            broker.process.terminate()
            hear("STOPPING=1")
            assert await broker.ended() == 0
