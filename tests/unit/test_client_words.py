"""What the client tells people, programs, its agent and its guard."""

import io
import json
import os
import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.admin import FunctionStatus
from broker.client import JobResult, Outcome
from schemas.errors import (
    BrokerUnreachable,
    CommandNotFound,
    ConnectionLost,
    LeaseLost,
    LeaseTimeout,
    NoEnvironment,
    OfferRefused,
    TestenvError,
)
from schemas.lock import LockRequest
from testenv import reaper
from testenv.errors import GuardLost, RequestFailed
from testenv.guard import Event, Happening
from testenv.line import describe_end
from testenv.news import describe_queue
from testenv.options import parse_options
from testenv.report import Reason, Report, reason_of
from testenv.run import wish_of
from testenv.talk import Talk
from testenv.workspace import datafile_name, workspace


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (None, "no environment is registered for lockenv"),
        (FunctionStatus("lockenv", 3, 0, 0), "no environment is registered for lockenv"),
        (FunctionStatus("lockenv", 2, 1, 1), "1 environment, all leased; 1 request waiting"),
        (FunctionStatus("lockenv", 5, 2, 2), "2 environments, all leased; 3 requests waiting"),
        (FunctionStatus("lockenv", 2, 1, 3), "3 environments, 1 leased; 1 request waiting"),
    ],
)
def test_situation_is_told_in_words(row: FunctionStatus | None, words: str) -> None:
    other = FunctionStatus("lockenv:other", 9, 9, 9)
    assert describe_queue("lockenv", [other, row] if row else [other]) == words


def test_hosts_without_a_ready_environment_are_told_from_no_hosts() -> None:
    rows = [FunctionStatus("host.te1", 0, 0, 1), FunctionStatus("host.gone", 0, 0, 0)]
    expected = "no environment is free for lockenv; testenv status tells why"
    assert describe_queue("lockenv", rows) == expected


@pytest.mark.parametrize("outcome", list(Outcome))
def test_every_end_of_a_request_has_words(outcome: Outcome) -> None:
    assert describe_end(JobResult(outcome, b"too \xff long")).startswith("the environment's host")


def test_request_says_who_asks_for_which_job() -> None:
    options = parse_options(["-t", "60", "-n", "7", "x"], {})
    wish = wish_of(options)
    request = LockRequest.parse(wish.request.dump())
    assert request.callback.startswith("callback_7_")
    assert wish_of(options).request.callback != request.callback
    assert (request.timeout_s, request.job, request.version) == (60, "7", 2)
    assert request.holder.startswith("7 ")
    assert "@" in request.holder
    assert wish_of(options).unique != wish.unique


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (BrokerUnreachable([("h:1", "refused")]), Reason.NO_BROKER),
        (ConnectionLost("h:1", "reset"), Reason.NO_BROKER),
        (NoEnvironment("lockenv", 5, "all leased"), Reason.NO_ENVIRONMENT),
        (RequestFailed("lockenv", "it failed"), Reason.REQUEST_FAILED),
        (OfferRefused("no data file"), Reason.OFFER_REFUSED),
        (LeaseLost("revoked"), Reason.LEASE_LOST),
        (LeaseTimeout(5), Reason.LEASE_TIMEOUT),
        (CommandNotFound("x"), Reason.NOT_STARTED),
        (GuardLost(), Reason.INTERNAL),
    ],
)
def test_every_error_has_its_reason(error: TestenvError, reason: Reason) -> None:
    assert reason_of(error) is reason


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(),
                    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))  # fmt: skip
def test_strange_data_files_name_no_lease_and_do_no_harm(value: object) -> None:
    for document in ({"testenv": value}, {"testenv": {"lease": value}}):
        report = Report()
        report.name_lease(document)
        assert report.lease is None or isinstance(report.lease, str)


def test_report_is_written_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text("old")
    Report(exit_code=7, reason=Reason.EXITED).write(path)
    assert json.loads(path.read_text())["reason"] == "exited"
    assert [file.name for file in tmp_path.iterdir()] == ["report.json"]


@given(st.sampled_from(Happening), st.integers())
def test_guards_events_survive_the_socket(what: Happening, value: int) -> None:
    assert Event.parse(Event(what, value).dump()) == Event(what, value)


@given(st.text())
def test_data_file_name_is_safe_whatever_the_lease_is_called(name: str) -> None:
    assert re.fullmatch(r"te-[A-Za-z0-9._-]{0,100}\.json", datafile_name(name))


def test_workspace_is_gone_even_when_the_command_filled_it_and_something_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with pytest.raises(RuntimeError), workspace("lease", b"{}") as files:  # noqa: PT012
        (files.directory / "sub").mkdir()
        (files.directory / "sub" / "file").write_text("")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_lines_are_dated_where_nobody_watches() -> None:
    stream = io.StringIO()
    talk = Talk(stream)
    talk.say_in_place("waiting")
    talk.say("got it")
    talk.complain("gone")
    dated = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ "
    lines = (
        rf"{dated}testenv-client: waiting\n{dated}testenv-client: got it\ntestenv-client: gone\n"
    )
    assert re.fullmatch(lines, stream.getvalue())


def test_stream_that_is_gone_silences_talk_only() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(os.dup(writing), "w") as stream:
        Talk(stream).say("nobody hears this")
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    os.close(writing)


def test_children_are_found_without_the_kernels_list_too() -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        assert child.pid in reaper.children()
        assert set(reaper._children_by_scan()) == set(reaper.children())
        child.kill()
