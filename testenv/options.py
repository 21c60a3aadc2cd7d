"""What the client's command line says, parsed. Cheap to import: the guard is forked after it."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from broker.endpoint import Endpoint
from schemas.errors import ConfigError
from schemas.names import LABEL_PATTERN, MAX_LABELS, is_label, lock_function
from testenv.workspace import DATAFILE_SUFFIX

_MAX_JOBNUM = 100
"""It becomes part of a function's name, which brokers limit and list."""


class Options(NamedTuple):
    """A valid command line; seconds throughout."""

    brokers: tuple[Endpoint, ...]
    jobnum: str
    function: str
    command: tuple[str, ...]
    timeout_s: int
    kill_after_s: float
    connect_timeout_s: float
    wait_timeout_s: float | None = None
    datafile: Path | None = None
    report: Path | None = None
    debug: bool = False


def parse_jobnum(text: str) -> str:
    """Raises ConfigError if no function can be named after it."""
    if (
        not text
        or len(text) > _MAX_JOBNUM
        or not text.isascii()
        or not text.isprintable()
        or " " in text
    ):
        raise ConfigError(
            "--jobnum", f"{text!r} is not 1 to {_MAX_JOBNUM} ASCII characters without spaces"
        )
    return text


def parse_labels(labels: Sequence[str]) -> str:
    """The function to ask for. Raises ConfigError for a label that no environment can have."""
    for label in labels:
        if not is_label(label):
            raise ConfigError("--label", f"{label!r} does not match {LABEL_PATTERN}")
    if len(set(labels)) > MAX_LABELS:
        raise ConfigError("--label", f"an environment has at most {MAX_LABELS} labels")
    return lock_function(labels)


def parse_datafile(text: str | None) -> Path | None:
    """Raises ConfigError unless readers will know the file for JSON, and it can be written."""
    if text is not None and not text.endswith(DATAFILE_SUFFIX):
        raise ConfigError("--datafile", f"{text!r} does not end in {DATAFILE_SUFFIX}")
    return parse_output("--datafile", text)


def parse_output(option: str, text: str | None) -> Path | None:
    """A file to write. Raises ConfigError now, rather than at the end, if that is impossible."""
    if text is None:
        return None
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise ConfigError(option, f"cannot write {text!r}", remedy="does its directory exist?")
    return path
