"""What a long command is at, host by host: rows redrawn in place, or dated lines in a CI log."""

from contextlib import ExitStack
from typing import Self, TextIO

from rich.console import Console
from rich.live import Live
from rich.table import Table

from testenv.talk import Talk


class Progress:
    """On `stream`, for as long as the context lasts; a terminal is left without the rows.

    with Progress(sys.stderr) as progress:
        progress.show("te-host-01", "waits for te-host-01/3")
    """

    def __init__(self, stream: TextIO) -> None:
        self._talk = Talk(stream, "testenv")
        self._rows: dict[str, str] = {}
        self._stack = ExitStack()
        self._live = Live(
            console=Console(file=stream, emoji=False, highlight=False, markup=False),
            auto_refresh=False,
            transient=True,
        )

    def __enter__(self) -> Self:
        if self._talk.is_live:
            self._stack.enter_context(self._live)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def show(self, host: str, text: str) -> None:
        """What `host` is at now. A log gets a line only when that has changed."""
        if self._rows.get(host) == text:
            return
        self._rows[host] = text
        if self._talk.is_live:
            self._live.update(self._table(), refresh=True)
        else:
            self._talk.say(f"{host}: {text}")

    def pass_on(self, host: str, line: str) -> None:
        """A line that somebody else has said about `host`; it stays."""
        if self._talk.is_live:
            self._live.console.print(f"{host}: {line}", soft_wrap=True)
        else:
            self._talk.pass_on(f"{host}: {line}")

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 2))
        for row in sorted(self._rows.items()):
            table.add_row(*row)
        return table
