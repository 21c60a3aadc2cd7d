"""What a person, and a CI log, see of a long command."""

import io
import re

import pytest

from testenv.progress import Progress


class Terminal(io.StringIO):
    """Takes what is written, as a terminal that is 80 columns wide."""

    def isatty(self) -> bool:
        return True


def test_a_log_gets_a_dated_line_for_every_change() -> None:
    log = io.StringIO()
    with Progress(log) as progress:
        for text in ("waits", "waits", "empty"):
            progress.show("te1", text)
        progress.show("te2", "empty")
    lines = [
        re.sub(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ ", "", each)
        for each in log.getvalue().splitlines()
    ]
    assert lines == ["testenv: te1: waits", "testenv: te1: empty", "testenv: te2: empty"]


def test_what_others_say_stands_in_a_log_as_it_is() -> None:
    log = io.StringIO()
    with Progress(log) as progress:
        progress.pass_on("te1", "[bold]50%")
    assert log.getvalue() == "te1: [bold]50%\n"


def test_what_others_say_scrolls_by_above_the_rows_of_a_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    screen = Terminal()
    with Progress(screen) as progress:
        progress.show("te1", "waits")
        before = len(screen.getvalue())
        progress.pass_on("te1", "[bold]50% " + 100 * "x")
        redrawn = screen.getvalue()[before:]
    assert re.search(r"te1: \[bold\]50% x{100}\r?\n.*te1 +waits", redrawn, re.DOTALL)


def test_a_terminal_gets_a_row_a_host_redrawn_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    screen = Terminal()
    with Progress(screen) as progress:
        progress.show("te2", "[bold]waits")
        progress.show("te1", "waits")
        before = len(screen.getvalue())
        progress.show("te1", "empty")
        redrawn = screen.getvalue()[before:]
    assert "\x1b[1A" in redrawn, "the cursor goes up to the first row"
    assert re.search(r"te1 +empty *\r?\nte2 +\[bold\]waits", redrawn)
    assert screen.getvalue().endswith("\x1b[1A\x1b[2K"), "nothing of it stays"
