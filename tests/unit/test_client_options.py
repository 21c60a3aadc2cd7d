"""The client's command line."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.endpoint import Endpoint
from schemas.errors import ConfigError
from testenv.options import parse_options


def test_defaults_are_tocis() -> None:
    options = parse_options(["--", "true"], {})
    assert options.brokers == (Endpoint("127.0.0.1", 4730),)
    assert options.timeout_s == 10800
    assert options.function == "lockenv"
    assert options.command == ("true",)
    assert options.wait_timeout_s is None
    assert len(options.jobnum) == 32


def test_tocis_short_options_are_kept() -> None:
    options = parse_options(["-b", "h", "-n", "job", "-t", "60", "-d", "--", "a", "-t", "--"], {})
    assert options.brokers == (Endpoint("h"),)
    assert (options.jobnum, options.timeout_s, options.debug) == ("job", 60, True)
    assert options.command == ("a", "-t", "--")


def test_command_needs_no_dashes_before_it() -> None:
    options = parse_options(["-t", "5", "make", "-t", "7", "-b"], {})
    assert options.timeout_s == 5
    assert options.command == ("make", "-t", "7", "-b")


def test_two_random_job_numbers_differ() -> None:
    assert parse_options(["a"], {}).jobnum != parse_options(["a"], {}).jobnum


def test_option_for_the_broker_wins_over_the_environment() -> None:
    environment = {"TESTENV_BROKER": "one,two:1"}
    assert parse_options(["a"], environment).brokers == (Endpoint("one"), Endpoint("two", 1))
    assert parse_options(["-b", "three", "a"], environment).brokers == (Endpoint("three"),)
    assert parse_options(["a"], {"TESTENV_BROKER": ""}).brokers == (Endpoint("127.0.0.1"),)


def test_labels_choose_the_function_in_any_order() -> None:
    assert parse_options(["--label", "b", "--label", "a", "x"], {}).function == "lockenv:a+b"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["-b", "a:b:c", "x"], "--geard"),
        (["-n", "two words", "x"], "--jobnum"),
        (["-n", "", "x"], "--jobnum"),
        (["-n", "a" * 101, "x"], "--jobnum"),
        (["-n", "caf\xe9", "x"], "--jobnum"),
        (["--label", "Big", "x"], "--label"),
        (["--label=1", "--label=2", "--label=3", "--label=4", "--label=5", "--label=6",
          "--label=7", "x"], "--label"),
        (["--datafile", "/tmp/env.txt", "x"], "--datafile"),  # noqa: S108 - never written
        (["--datafile", "/no/such/env.json", "x"], "--datafile"),
        (["--report", "/", "x"], "--report"),
    ],
)  # fmt: skip
def test_bad_value_is_refused_by_the_options_name(arguments: list[str], named: str) -> None:
    with pytest.raises(ConfigError, match=f"^{named}: "):
        parse_options(arguments, {})


def test_bad_broker_in_the_environment_is_named_as_such() -> None:
    with pytest.raises(ConfigError, match=r"^TESTENV_BROKER: "):
        parse_options(["x"], {"TESTENV_BROKER": "a:b:c"})


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--"],
        ["-t", "0", "x"],
        ["-t", "1.5", "x"],
        ["-t", "-1", "x"],
        ["--wait-timeout", "0", "x"],
        ["--wait-timeout", "nan", "x"],
        ["--connect-timeout", "inf", "x"],
        ["--kill-after", "soon", "x"],
        ["--hold-on-failure", "soon", "x"],
        ["--hold-on-failure", "0s", "x"],
        ["--hold-on-failure", "32d", "x"],
        ["--no-such-option", "x"],
        ["--time", "5", "x"],
    ],
)
def test_usage_errors_exit_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        parse_options(arguments, {})
    assert exit_.value.code == 2
    assert "testenv-client: error: " in capsys.readouterr().err


def test_version_and_help_need_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    for option, text in (("--version", "testenv-client 0."), ("-h", "exit status")):
        with pytest.raises(SystemExit) as exit_:
            parse_options([option], {})
        assert exit_.value.code == 0
        captured = capsys.readouterr()
        assert text in captured.out + captured.err


def test_files_are_checked_before_anything_is_locked(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    datafile = tmp_path / "env.json"
    options = parse_options(["--report", str(report), "--datafile", str(datafile), "x"], {})
    assert (options.report, options.datafile) == (report, datafile)


@given(st.lists(st.text(st.characters(exclude_characters="\0")), min_size=1))
def test_whatever_follows_the_dashes_is_the_command(command: list[str]) -> None:
    assert parse_options(["-t", "5", "--", *command], {}).command == tuple(command)


@pytest.mark.parametrize(("told", "seconds"), [("90s", 90), ("1h30m", 5400), ("31d", 2678400)])
def test_a_hold_lasts_as_long_as_it_says(told: str, seconds: float) -> None:
    assert parse_options(["--hold-on-failure", told, "x"], {}).hold_s == seconds
    assert parse_options(["x"], {}).hold_s is None


@pytest.mark.parametrize("option", ["--report", "--datafile"])
def test_only_a_regular_file_is_ever_replaced(tmp_path: Path, option: str) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    link = tmp_path / "link.json"
    link.symlink_to(fifo)
    with pytest.raises(ConfigError, match="not a regular file"):
        parse_options([option, str(link), "--", "true"], {})
    link.unlink()
    (tmp_path / "old.json").touch()
    link.symlink_to(tmp_path / "old.json")
    options = parse_options([option, str(link), "--", "true"], {})
    assert (tmp_path / "old.json").resolve() in (options.report, options.datafile)
