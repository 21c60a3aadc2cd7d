"""The client's command line. Cheap to import: the guard is forked after it is read."""

import argparse
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from broker.endpoint import BROKER_VARIABLE, DEFAULT_BROKER, Endpoint, parse_endpoints
from broker.tls import CA_VARIABLE, CERT_VARIABLE, KEY_VARIABLE, TlsFiles, tls_files
from schemas.errors import ConfigError
from schemas.legs import MAX_HOLD_S
from schemas.lock import DEFAULT_TIMEOUT_S, KILL_AFTER_S, MAX_KILL_AFTER_S, MAX_TIMEOUT_S
from schemas.names import LABEL_PATTERN, MAX_LABELS, is_label, lock_function, random_id
from testenv.workspace import DATAFILE_SUFFIX

_MAX_JOBNUM = 100
"""It becomes part of a function's name, which brokers limit and list."""

_EPILOG = """\
example: testenv-client --wait-timeout 3600 -- ./deploy-and-test.sh

exit status: the command's, or 128+n when signal n ended it; 2 usage, 69 no broker reachable,
70 lease lost or refused, 75 no environment within --wait-timeout, 124 lease timed out,
125 internal error, 126 command not executable, 127 command not found
"""


class Options(NamedTuple):
    """A valid command line; seconds throughout."""

    brokers: tuple[Endpoint, ...]
    jobnum: str
    function: str
    """What is asked for: `lockenv`, or that with labels."""
    command: tuple[str, ...]
    timeout_s: int
    kill_after_s: float
    connect_timeout_s: float
    wait_timeout_s: float | None = None
    datafile: Path | None = None
    report: Path | None = None
    hold_s: float | None = None
    """How long the environment is kept as the command left it, if that fails."""
    debug: bool = False


def parse_options(arguments: Sequence[str], environment: Mapping[str, str]) -> Options:
    """Read the command line. Raises ConfigError; SystemExit as argparse does (help, usage)."""
    parser = _parser()
    given = parser.parse_args(arguments)
    if given.version:
        from importlib.metadata import version  # slow, and rarely asked for

        parser.exit(message=f"testenv-client {version('testenv')}\n")
    command = given.command[1:] if given.command[:1] == ["--"] else given.command
    if not command:
        parser.error("no COMMAND given")
    _check_workspace(environment)
    return Options(
        brokers=_brokers(given.geard, _tls(given, environment), environment),
        jobnum=_jobnum(given.jobnum),
        function=_function(given.label),
        command=tuple(command),
        timeout_s=given.timeout,
        kill_after_s=given.kill_after,
        connect_timeout_s=given.connect_timeout,
        wait_timeout_s=given.wait_timeout,
        datafile=_datafile(given.datafile),
        report=_output("--report", given.report),
        hold_s=given.hold_on_failure,
        debug=given.debug,
    )


class _Layout(argparse.RawDescriptionHelpFormatter):
    """Of a fixed width: argparse makes one for every option, and would import shutil to ask the
    terminal, which takes longer than all the rest of the command line."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=100)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="testenv-client",
        usage="%(prog)s [OPTION]... [--] COMMAND [ARGUMENT]...",
        description="Lock a test environment, run COMMAND in it, and give it back. "
        "COMMAND finds the environment's data file at $TE_DATAFILE.",
        epilog=_EPILOG,
        formatter_class=_Layout,
        allow_abbrev=False,
    )
    option = parser.add_argument
    option("-b", "--geard", metavar="LIST",
           help="Gearman brokers, HOST[:PORT], separated by commas "
                f"(default: ${BROKER_VARIABLE}, or {DEFAULT_BROKER})")  # fmt: skip
    option("-n", "--jobnum", metavar="ID", help="this job's id (default: a random one)")
    option("-t", "--timeout", metavar="SECONDS", type=_whole_seconds, default=DEFAULT_TIMEOUT_S,
           help="stop the command after this long (default: %(default)s)")  # fmt: skip
    option("-d", "--debug", action="store_true", help="log what happens, and where defects are")
    option("--wait-timeout", metavar="SECONDS", type=_seconds,
           help="give up without an environment after this long (default: never)")  # fmt: skip
    option("--connect-timeout", metavar="SECONDS", type=_seconds, default=30.0,
           help="give up without a broker after this long (default: 30)")  # fmt: skip
    option("--kill-after", metavar="SECONDS", type=_kill_after, default=KILL_AFTER_S,
           help="from SIGTERM to SIGKILL, when the command is to end (default: 10)")  # fmt: skip
    option("--tls-cert", metavar="FILE",
           help=f"our certificate; with it, TLS is spoken (default: ${CERT_VARIABLE})")  # fmt: skip
    option("--tls-key", metavar="FILE", help=f"its key (default: ${KEY_VARIABLE})")
    option("--tls-ca", metavar="FILE",
           help=f"the CA that signs brokers' certificates (default: ${CA_VARIABLE})")  # fmt: skip
    option("--label", metavar="L", action="append", default=[],
           help="an environment that has label L (repeatable)")  # fmt: skip
    option("--datafile", metavar="PATH", help="write the data file there, and keep it")
    option("--report", metavar="FILE", help="write what became of the request, as JSON")
    option("--hold-on-failure", metavar="TIME", type=_hold,
           help="if the command fails, have its environment kept as it is for so long "
                "(90s, 30m, 2h), for a person: see testenv hold")  # fmt: skip
    option("--version", action="store_true", help="show the version and exit")
    option("command", nargs=argparse.REMAINDER, metavar="COMMAND", help=argparse.SUPPRESS)
    return parser


def _whole_seconds(text: str) -> int:
    seconds = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0
    if not 1 <= seconds <= MAX_TIMEOUT_S:
        what = f"{text!r} is not a whole number of seconds from 1 to {MAX_TIMEOUT_S}"
        raise argparse.ArgumentTypeError(what)
    return seconds


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of seconds")
    return seconds


def _kill_after(text: str) -> float:
    seconds = _seconds(text)
    if seconds > MAX_KILL_AFTER_S:
        raise argparse.ArgumentTypeError(f"{text!r} is more than {MAX_KILL_AFTER_S:g} seconds")
    return seconds


def _hold(text: str) -> float:
    from testenv.duration import parse_duration  # rarely asked for

    try:
        seconds = parse_duration(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from exc
    if not 0 < seconds <= MAX_HOLD_S:
        raise argparse.ArgumentTypeError(f"{text!r} is no time")
    return seconds


def _brokers(
    option: str | None, tls: TlsFiles | None, environment: Mapping[str, str]
) -> tuple[Endpoint, ...]:
    if option is not None:
        return parse_endpoints(option, "--geard", tls)
    brokers = environment.get(BROKER_VARIABLE) or DEFAULT_BROKER
    return parse_endpoints(brokers, BROKER_VARIABLE, tls)


def _tls(given: argparse.Namespace, environment: Mapping[str, str]) -> TlsFiles | None:
    return tls_files(
        given.tls_cert or environment.get(CERT_VARIABLE),
        given.tls_key or environment.get(KEY_VARIABLE),
        given.tls_ca or environment.get(CA_VARIABLE),
    )


def _jobnum(option: str | None) -> str:
    if option is None:
        return random_id()
    printable = option.isascii() and option.isprintable() and " " not in option
    if not (printable and 0 < len(option) <= _MAX_JOBNUM):
        what = f"{option!r} is not 1 to {_MAX_JOBNUM} ASCII characters without spaces"
        raise ConfigError("--jobnum", what)
    return option


def _function(labels: Sequence[str]) -> str:
    for label in labels:
        if not is_label(label):
            raise ConfigError("--label", f"{label!r} does not match {LABEL_PATTERN}")
    if len(set(labels)) > MAX_LABELS:
        raise ConfigError("--label", f"an environment has at most {MAX_LABELS} labels")
    return lock_function(labels)


def _datafile(option: str | None) -> Path | None:
    if option is not None and not option.endswith(DATAFILE_SUFFIX):
        raise ConfigError("--datafile", f"{option!r} does not end in {DATAFILE_SUFFIX}")
    return _output("--datafile", option)


def _check_workspace(environment: Mapping[str, str]) -> None:
    """Before anything is waited for: the data file will be in there."""
    folder = environment.get("TMPDIR") or "/tmp"  # noqa: S108 - see testenv.workspace
    if not (Path(folder).is_dir() and os.access(folder, os.W_OK | os.X_OK)):
        raise ConfigError("TMPDIR", f"{folder} is no directory that we may write to")


def _output(name: str, option: str | None) -> Path | None:
    """A regular file to write; refused now rather than at the end, if that is impossible.

    It is replaced as a whole, which must never happen to a device, a FIFO, or a link to one.
    """
    if option is None:
        return None
    path = Path(os.path.realpath(option))
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        mode = stat.S_IFREG
    except OSError as exc:
        raise ConfigError(name, f"cannot write {option!r}: {exc.strerror}") from exc
    if not stat.S_ISREG(mode):
        raise ConfigError(name, f"{option!r} exists and is not a regular file")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise ConfigError(name, f"cannot write {option!r}", remedy="does its directory exist?")
    return path
