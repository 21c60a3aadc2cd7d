"""A TLS fleet made by the documented commands: who gets in, and what each may do there."""

import asyncio
import json
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from socket import gethostname

import pytest

pytest.importorskip("cryptography", reason="needs the broker extra")

from broker import admin
from broker.client import submit
from broker.endpoint import Endpoint
from broker.link import Link
from broker.links import OneLink
from broker.tls import TlsFiles
from broker.worker import Worker
from schemas.errors import BrokerUnreachable, ConnectionLost, RequestRefused
from tests.functional.tls_rig import BIN, BOUND_S, Fleet, TlsBroker, options, run, tls_broker

AGENT = f"{gethostname()}-1"


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    return Fleet(tmp_path_factory.mktemp("fleet"), "localhost", "127.0.0.1")


@pytest.fixture(scope="module")
def job(fleet: Fleet) -> TlsFiles:
    return fleet.issue("job", "ci-7")


@pytest.fixture(scope="module")
def host(fleet: Fleet) -> TlsFiles:
    return fleet.issue("host", AGENT)


@pytest.fixture(scope="module")
def operator(fleet: Fleet) -> TlsFiles:
    return fleet.issue("operator", "ann")


@pytest.fixture
def broker(fleet: Fleet) -> Iterator[TlsBroker]:
    with tls_broker(fleet) as running:
        yield running


@contextmanager
def serving(broker: TlsBroker, tls: TlsFiles, folder: Path) -> Iterator[Path]:
    """An agent with one ready-made environment: its log."""
    (folder / "env.json").write_text('{"seed-ip": "203.0.113.10"}')
    log = folder / "agent.log"
    place = ["-b", f"localhost:{broker.port}", "--state-dir", str(folder), "-n", "1"]
    argv = [str(BIN / "testenv-host"), "serve", str(folder / "env.json"), *place, *options(tls)]
    with log.open("w") as stderr:
        agent = subprocess.Popen(argv, stderr=stderr)
        try:
            yield log
        finally:
            agent.kill()
            agent.wait(BOUND_S)


def client(broker: TlsBroker, tls: TlsFiles, *command: str) -> "subprocess.CompletedProcess[str]":
    place = ["-b", f"localhost:{broker.port}", "--connect-timeout", "2"]
    return run("testenv-client", *place, *options(tls), "--", *command)


def wait_for(log: Path, words: str) -> None:
    deadline = time.monotonic() + BOUND_S
    while words not in log.read_text():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)


async def linked(broker: TlsBroker, tls: TlsFiles) -> Link:
    return await Link.open(broker.at(tls), client_id="test", timeout=BOUND_S)


def test_job_locks_an_environment_and_the_agent_knows_who_asked(
    broker: TlsBroker, host: TlsFiles, job: TlsFiles, operator: TlsFiles, tmp_path: Path
) -> None:
    with serving(broker, host, tmp_path) as log:
        show = f"testenv status --json -b localhost:{broker.port} {' '.join(options(operator))}"
        ran = client(broker, job, "sh", "-c", f"{BIN}/{show}; exit 7")
        assert ran.returncode == 7, ran.stderr
        wait_for(log, "(job/ci-7)")
        [shown] = json.loads(ran.stdout)["hosts"]
        assert shown["report"]["environments"][0]["lease"]["submitter"] == "job/ci-7"


def test_killed_clients_guard_gives_its_environment_back_over_a_connection_of_its_own(
    broker: TlsBroker, host: TlsFiles, job: TlsFiles, tmp_path: Path
) -> None:
    with serving(broker, host, tmp_path) as log:
        ran = client(broker, job, "sh", "-c", "kill -9 $(ps -o ppid= -p $PPID)")
        assert ran.returncode == -9
        wait_for(log, ": client killed")


def test_files_may_come_from_the_environment(
    broker: TlsBroker, operator: TlsFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TESTENV_BROKER", f"localhost:{broker.port}")
    for name, file in zip(("CERT", "KEY", "CA"), operator, strict=True):
        monkeypatch.setenv(f"TESTENV_TLS_{name}", str(file))
    assert run("testenv", "status").stdout == "no host is registered\n"
    waited = run("testenv-client", "--wait-timeout", "0.2", "--", "true")
    assert waited.returncode == 69
    assert "the broker refuses: callback_" in waited.stderr  # an operator may not lock


@pytest.mark.parametrize(
    ("program", "before", "after"),
    [("testenv", ["status"], []), ("testenv-client", [], ["--", "true"])],
)
def test_one_file_without_the_others_is_refused(
    program: str, before: list[str], after: list[str]
) -> None:
    refused = run(program, *before, "--tls-cert", "x.crt", *after)
    assert refused.returncode == 2
    assert refused.stderr == f"{program}: --tls-key, --tls-ca: TLS takes all three files\n"


def test_waiting_job_is_told_its_place_and_not_the_brokers_status(
    broker: TlsBroker, job: TlsFiles
) -> None:
    place = ["-b", f"localhost:{broker.port}", "--wait-timeout", "0.3"]
    waited = run("testenv-client", *place, *options(job), "--", "true")
    assert waited.returncode == 75
    assert "within 0.3 s (place 1 of 1 in the queue)" in waited.stderr


@pytest.mark.parametrize("function", ["host.te-1", "callback_x", "cat"])
async def test_job_certificate_invokes_locks_and_leases_only(
    broker: TlsBroker, job: TlsFiles, function: str
) -> None:
    async with await linked(broker, job) as link:
        with pytest.raises(RequestRefused):
            await submit(link, function, b"")
        await submit(link, "lockenv", b"")
        await submit(link, "lease_x", b"")


@pytest.mark.parametrize("function", ["lockenv", "host.ci-7", "lease_x", "cat"])
async def test_job_certificate_offers_nothing_but_its_callback(
    broker: TlsBroker, job: TlsFiles, function: str
) -> None:
    async with await linked(broker, job) as link:
        with pytest.raises(ConnectionLost, match="the broker refuses"):
            await Worker(OneLink(link), [function]).take()


@pytest.mark.parametrize("question", [admin.status, admin.workers])
async def test_job_certificate_may_not_look_at_others(
    broker: TlsBroker, job: TlsFiles, question: Callable[[Endpoint], Awaitable[object]]
) -> None:
    with pytest.raises(RequestRefused):
        await question(broker.at(job))


async def test_host_certificate_cannot_pose_as_another_host(
    broker: TlsBroker, fleet: Fleet, tmp_path: Path
) -> None:
    other = fleet.issue("host", "other")
    with serving(broker, other, tmp_path) as log:
        await asyncio.to_thread(wait_for, log, f"the broker refuses: host.{AGENT} is not yours")
    async with await linked(broker, other) as link:
        with pytest.raises(ConnectionLost, match="the broker refuses"):
            await Worker(OneLink(link), [f"host.{AGENT}"]).take()


def test_environment_under_another_hosts_name_is_given_back(
    broker: TlsBroker, fleet: Fleet, job: TlsFiles, tmp_path: Path
) -> None:
    other = fleet.issue("host", "another")
    with serving(broker, other, tmp_path) as log:
        wait_for(log, "is ready")
        done = client(broker, job, "echo", "ran")
    assert (done.returncode, done.stdout) == (70, "")
    assert f"{AGENT}/1 is offered by host/another" in done.stderr


async def test_revoked_host_is_out_within_a_second_of_sighup(
    broker: TlsBroker, fleet: Fleet
) -> None:
    doomed = fleet.issue("host", "doomed")
    async with await linked(broker, doomed) as link:
        fleet.revoke("host/doomed")
        assert not link.is_lost
        broker.reload()
        async with asyncio.timeout(1.0):
            await link.lost()
    with pytest.raises(BrokerUnreachable, match="our certificate"):
        await linked(broker, doomed)


def test_check_tells_what_is_wrong_with_tls(
    broker: TlsBroker, host: TlsFiles, tmp_path: Path
) -> None:
    pytest.importorskip("hosts.check", reason="needs the host extra", exc_type=ImportError)
    from hosts.check import check_broker

    wrong = host._replace(ca=Fleet(tmp_path, "x").broker.ca)
    found = [asyncio.run(check_broker(broker.at(tls))) for tls in (host, wrong, None)]
    assert [each.ok for each in found] == [True, False, False]
    assert "its certificate is not signed by our CA" in found[1].detail
    assert "it speaks TLS" in found[2].detail
