"""An operator who types `testenv` commands about a stage, and reads what they say."""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from tests.functional.lease_rig import BIN, BOUND_S, Host, Stage


class Said(NamedTuple):
    """What a command of ours said, and its exit status."""

    status: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads(self.out)
        return loaded

    @property
    def results(self) -> dict[str, str]:
        """Of `--json`: what became of each target."""
        return {each["target"]: each["result"] for each in self.document["outcomes"]}


class Operator:
    """Types `testenv` commands about a stage."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self.environment: dict[str, str] = {"TESTENV_REPROVISION_COMMAND": ""}

    def types(self, *words: str) -> Said:
        with self.typing(*words) as command:
            return self.reads(command)

    @contextmanager
    def typing(self, *words: str) -> Iterator[subprocess.Popen[str]]:
        """A command that runs, and is killed at the end if it still does."""
        command = subprocess.Popen(
            [str(BIN / "testenv"), *words, "-b", self._stage.addresses],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **self.environment},
        )
        try:
            yield command
        finally:
            command.kill()
            command.communicate(timeout=BOUND_S)

    def reads(self, command: subprocess.Popen[str]) -> Said:
        out, err = command.communicate(timeout=BOUND_S)
        return Said(command.returncode, out, err)

    def hears(self, command: subprocess.Popen[str], text: str) -> None:
        """Wait until it has said `text` on stderr."""
        assert command.stderr
        assert any(text in line for line in command.stderr)


def cordon_of(host: Host) -> str | None:
    """The reason, as the host's journal has it; None if it is not cordoned."""
    [env] = host.journal.environments
    return env.cordoned
