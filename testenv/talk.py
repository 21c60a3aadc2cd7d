"""What a command says on stderr while it lasts: dated lines, or one live line on a terminal."""

import time
from contextlib import suppress
from typing import TextIO

_CLEAR_LINE = "\r\x1b[K"


class Talk:
    """Lines for people on `stream`. A stream that is gone silences them, and nothing else."""

    def __init__(self, stream: TextIO, program: str = "testenv-client") -> None:
        self._stream = stream
        self._program = program
        self._live = False
        self.is_live = stream.isatty()
        """Whether a line may be rewritten in place."""

    def say(self, text: str) -> None:
        """One line, dated (UTC) unless a person is watching."""
        date = "" if self.is_live else time.strftime("%Y-%m-%dT%H:%M:%SZ ", time.gmtime())
        self._write(f"{date}{self._program}: {text}\n")

    def say_in_place(self, text: str) -> None:
        """A line that the next one replaces; a plain line where that can't be."""
        if self.is_live:
            self._write(f"{self._program}: {text}")
            self._live = True
        else:
            self.say(text)

    def complain(self, text: str) -> None:
        """The one line that says why the client ends."""
        self._write(f"{self._program}: {text}\n")

    def pass_on(self, line: str) -> None:
        """A line that is not ours, as it is."""
        self._write(f"{line}\n")

    def _write(self, text: str) -> None:
        clear, self._live = (_CLEAR_LINE if self._live else ""), False
        with suppress(OSError):
            self._stream.write(clear + text)
            self._stream.flush()
