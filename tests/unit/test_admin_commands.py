"""The broker's text protocol. What gearadmin makes of it is tests/functional's."""

import os

import pytest

from broker.protocol import Kind
from broker.server.exchange import MAX_KEPT
from broker.server.text import AdminCommands
from schemas.broker import AccessSection
from tests.unit.exchange_rig import Desk, Rig


class Office:
    """A rig with its admin commands."""

    def __init__(self, access: AccessSection | None = None) -> None:
        self.rig = Rig(access=access)
        self.shutdowns: list[bool] = []
        self._commands = AdminCommands(
            self.rig.exchange, version="1.2", shutdown=self.shutdowns.append
        )

    def ask(self, peer: Desk, line: str) -> list[str]:
        return self._commands.answer(peer, line.encode()).decode().splitlines()


@pytest.fixture
def office() -> Office:
    return Office()


def test_status_counts_jobs_and_workers(office: Office) -> None:
    client, worker = office.rig.peer(), office.rig.peer()
    worker.offer(b"f")
    client.submit(b"f")
    client.submit(b"f")
    client.ask(Kind.SUBMIT_JOB_HIGH, b"g", b"", b"")
    worker.grab()
    assert office.ask(client, "status") == ["f\t2\t1\t1", "g\t1\t0\t0", "."]
    assert office.ask(client, "prioritystatus") == ["f\t0\t1\t0\t1", "g\t1\t0\t0\t0", "."]


def test_workers_lists_connections_with_what_they_offer(office: Office) -> None:
    worker, client = office.rig.peer(), office.rig.peer("2001:db8::1")
    worker.ask(Kind.SET_CLIENT_ID, b"te-1/1")
    worker.offer(b"f", b"g")
    assert office.ask(client, "WORKERS\r") == [
        "1 203.0.113.1 te-1/1 : f g",
        "2 2001:db8::1 - : ",
        ".",
    ]


def test_jobs_are_shown_with_handle_or_unique_id(office: Office) -> None:
    client, worker = office.rig.peer(), office.rig.peer()
    running, queued = (client.submit(b"f", b"a\nb").decode(), client.submit(b"f").decode())
    worker.offer(b"f")
    worker.grab()
    assert office.ask(client, "show jobs") == [f"{running}\t0\t0\t0", f"{queued}\t0\t0\t1", "."]
    assert office.ask(client, "show unique jobs") == ["a?b", "."]


def test_cancel_takes_a_queued_job_only(office: Office) -> None:
    client = office.rig.peer()
    handle = client.submit().decode()
    assert office.ask(client, "cancel job nonsense") == ["ERR UNKNOWN_JOB There+is+no+such+job"]
    assert office.ask(client, f"cancel job {handle}") == ["OK"]
    assert client.kinds() == [Kind.WORK_FAIL]


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("", "UNKNOWN_COMMAND"),
        ("frobnicate", "UNKNOWN_COMMAND"),
        ("show", "UNKNOWN_COMMAND"),
        ("GET / HTTP/1.1", "UNKNOWN_COMMAND"),
        ("maxqueue", "INVALID_ARGUMENT"),
        ("maxqueue f many", "INVALID_ARGUMENT"),
        ("maxqueue f 1 2", "INVALID_ARGUMENT"),
        ("maxqueue f 99999999999", "INVALID_ARGUMENT"),
        ("create function", "INVALID_ARGUMENT"),
        ("drop function a b", "INVALID_ARGUMENT"),
        ("shutdown foo", "INVALID_ARGUMENT"),
    ],
)
def test_nonsense_gets_an_error_line(office: Office, line: str, code: str) -> None:
    [answer] = office.ask(office.rig.peer("127.0.0.1"), line)
    assert answer.startswith(f"ERR {code} ")
    assert office.shutdowns == []
    assert list(office.rig.exchange.functions()) == []


def test_maxqueue_limits_and_frees_a_queue(office: Office) -> None:
    peer = office.rig.peer()
    assert office.ask(peer, "maxqueue f 1") == ["OK"]
    assert office.ask(peer, "status") == ["f\t0\t0\t0", "."]
    peer.submit()
    with pytest.raises(Exception, match="JOB_QUEUE_FULL"):
        peer.submit()
    assert office.ask(peer, "maxqueue f") == ["OK"]
    peer.submit()


def test_functions_are_made_and_dropped(office: Office) -> None:
    peer = office.rig.peer()
    assert office.ask(peer, "create function f") == ["OK"]
    assert office.ask(peer, "status") == ["f\t0\t0\t0", "."]
    peer.offer(b"f")
    assert office.ask(peer, "drop function f") == ["ERR FUNCTION_IN_USE It+has+workers+or+jobs"]
    peer.ask(Kind.RESET_ABILITIES)
    assert office.ask(peer, "drop function f") == ["OK"]
    assert office.ask(peer, "status") == ["."]


@pytest.mark.parametrize("command", ["create function", "maxqueue", "drop function"])
@pytest.mark.parametrize("name", ["x" * 513, "\x1b[2J", "\x9b2J", "\u202e"])
def test_name_that_no_function_can_have_is_refused(office: Office, command: str, name: str) -> None:
    number = " 1" if command == "maxqueue" else ""
    [answer] = office.ask(office.rig.peer(), f"{command} {name}{number}")
    assert answer.startswith("ERR INVALID_ARGUMENT ")
    assert list(office.rig.exchange.functions()) == []


def test_so_many_functions_can_be_set_up_and_no_more(office: Office) -> None:
    peer = office.rig.peer()
    for number in range(MAX_KEPT // 2):
        assert office.ask(peer, f"create function made-{number}") == ["OK"]
        assert office.ask(peer, f"maxqueue limited-{number} 1") == ["OK"]
    for line in ("create function another", "maxqueue another 1"):
        [answer] = office.ask(peer, line)
        assert answer.startswith("ERR TOO_MANY_FUNCTIONS ")
    assert office.ask(peer, "maxqueue made-0 1") == ["OK"]
    peer.offer(b"another")
    assert office.ask(peer, "drop function made-0") == ["OK"]
    assert office.ask(peer, "create function another") == ["OK"]


def test_unique_id_cannot_steer_a_terminal(office: Office) -> None:
    client = office.rig.peer()
    client.submit(b"f", "a\x9b2J\x1b\u202eb".encode() + b"\xff")
    assert office.ask(client, "show unique jobs") == ["a?2J??b\\xff", "."]


def test_version_pid_and_verbosity_are_told(office: Office) -> None:
    peer = office.rig.peer()
    assert office.ask(peer, "version") == ["OK testenv-broker 1.2"]
    assert office.ask(peer, "getpid") == [f"OK {os.getpid()}"]
    assert office.ask(peer, "verbose") == ["OK INFO"]


@pytest.mark.parametrize("command", ["status", "workers", "show jobs", "getpid", "shutdown"])
def test_admin_commands_are_for_operators(command: str) -> None:
    office = Office(AccessSection(unverified=("job", "host")))
    for peer in (office.rig.certified("job", "a"), office.rig.certified("host", "a"),
                 office.rig.peer()):  # fmt: skip
        [answer] = office.ask(peer, command)
        assert answer.startswith("ERR NOT_PERMITTED ")
    assert office.shutdowns == []
    assert office.ask(office.rig.certified("operator", "a"), command) != [answer]


def test_shutdown_without_a_certificate_must_come_from_this_machine(office: Office) -> None:
    assert office.ask(office.rig.peer(), "shutdown")[0].startswith("ERR NOT_PERMITTED")
    assert office.ask(office.rig.peer("127.0.0.1"), "shutdown") == ["OK"]
    assert office.ask(office.rig.certified("operator", "a"), "shutdown graceful") == ["OK"]
    assert office.shutdowns == [False, True]
