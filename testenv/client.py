"""testenv-client: lock an environment, run a command in it, give it back.

A job pays for every module on the way from its spawn to its command. Hence argparse here, and
imports where they are needed: what the waiting needs is imported while the guard gets ready.
"""

import argparse
import gc
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from uuid import uuid4

from broker.endpoint import Endpoint, parse_endpoints
from schemas.errors import ConfigError, TestenvError
from schemas.exits import SIGNAL_BASE, ExitStatus
from schemas.lock import DEFAULT_TIMEOUT_S, KILL_AFTER_S
from testenv.errors import Interrupted
from testenv.guard import Guard
from testenv.options import (
    Options,
    parse_datafile,
    parse_jobnum,
    parse_labels,
    parse_output,
)
from testenv.report import Reason, Report, reason_of
from testenv.talk import Talk

BROKER_VARIABLE = "TESTENV_BROKER"
DEFAULT_BROKER = "127.0.0.1:4730"

_EPILOG = """\
exit status: the command's, or 128+n when signal n ended it; 2 usage, 69 no broker reachable,
70 lease lost or refused, 75 no environment within --wait-timeout, 124 lease timed out,
125 internal error, 126 command not executable, 127 command not found
"""


def main() -> None:
    """The command line's entry point; exits with the status that docs/testenv-client.md gives."""
    gc.disable()  # importing makes no garbage, and looking for it took a tenth of the start
    try:
        options = parse_options(sys.argv[1:])
    except ConfigError as exc:
        Talk(sys.stderr).complain(str(exc))
        sys.exit(exc.exit_status)
    sys.exit(_run(options))


def parse_options(arguments: Sequence[str]) -> Options:
    """Read the command line. Raises ConfigError, or SystemExit as argparse does."""
    parser = _parser()
    given = parser.parse_args(arguments)
    if given.version:
        from importlib.metadata import version

        parser.exit(message=f"testenv-client {version('testenv')}\n")
    command = given.command[1:] if given.command[:1] == ["--"] else given.command
    if not command:
        parser.error("no COMMAND given")
    return Options(
        brokers=_brokers(given.geard),
        jobnum=parse_jobnum(uuid4().hex if given.jobnum is None else given.jobnum),
        function=parse_labels(given.label),
        command=tuple(command),
        timeout_s=given.timeout,
        kill_after_s=given.kill_after,
        connect_timeout_s=given.connect_timeout,
        wait_timeout_s=given.wait_timeout,
        datafile=parse_datafile(given.datafile),
        report=parse_output("--report", given.report),
        debug=given.debug,
    )


def _brokers(option: str | None) -> tuple[Endpoint, ...]:
    if option is not None:
        return parse_endpoints(option, "--geard")
    variable = os.environ.get(BROKER_VARIABLE)
    return parse_endpoints(variable or DEFAULT_BROKER, BROKER_VARIABLE)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="testenv-client",
        usage="%(prog)s [OPTION]... [--] COMMAND [ARGUMENT]...",
        description="Lock a test environment, run COMMAND in it, and give it back. "
        "COMMAND finds the environment's data file at $TE_DATAFILE.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    option = parser.add_argument
    option("-b", "--geard", metavar="LIST", default=default_broker,
           help="Gearman brokers, HOST[:PORT], separated by commas "
                "(default: $TESTENV_BROKER, or 127.0.0.1:4730)")  # fmt: skip
    option("-n", "--jobnum", metavar="ID", help="this job's id (default: a random one)")
    option("-t", "--timeout", metavar="SECONDS", type=_whole_seconds, default=DEFAULT_TIMEOUT_S,
           help="stop the command after this long (default: %(default)s)")  # fmt: skip
    option("-d", "--debug", action="store_true", help="log what happens, and where defects are")
    option("--wait-timeout", metavar="SECONDS", type=_seconds,
           help="give up without an environment after this long (default: never)")  # fmt: skip
    option("--connect-timeout", metavar="SECONDS", type=_seconds, default=30.0,
           help="give up without a broker after this long (default: 30)")  # fmt: skip
    option("--kill-after", metavar="SECONDS", type=_seconds, default=KILL_AFTER_S,
           help="from SIGTERM to SIGKILL, when the command is to end (default: 10)")  # fmt: skip
    option("--label", metavar="L", action="append", default=[],
           help="an environment that has label L (repeatable)")  # fmt: skip
    option("--datafile", metavar="PATH", help="write the data file there, and keep it")
    option("--report", metavar="FILE", help="write what became of the request, as JSON")
    option("--version", action="store_true", help="show the version and exit")
    option("command", nargs=argparse.REMAINDER, metavar="COMMAND", help=argparse.SUPPRESS)
    return parser


def _whole_seconds(text: str) -> int:
    seconds = int(text) if text.isascii() and text.isdigit() else 0
    if seconds < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of seconds, at least 1")
    return seconds


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of seconds")
    return seconds


def _run(options: Options) -> int:
    """Everything after the options: the exit status, with the report written."""
    talk = Talk(sys.stderr)
    report = Report()
    with Guard.fork(options.command, options.kill_after_s) as guard:
        _fill_in(report, options, guard, talk)
    if report.message:
        talk.complain(report.message)
    if options.report:
        try:
            report.write(options.report)
        except OSError as exc:
            talk.complain(f"cannot write the report: {exc}")
    return ExitStatus.INTERNAL if report.exit_code is None else report.exit_code


def _fill_in(report: Report, options: Options, guard: Guard, talk: Talk) -> None:
    """Run the command in an environment, and note in `report` how that ended."""
    try:
        status = _run_in_environment(report, options, guard, talk)
        code = os.waitstatus_to_exitcode(status)
        report.exit_code = code if code >= 0 else SIGNAL_BASE - code
        report.reason = Reason.EXITED if code >= 0 else Reason.SIGNALLED
    except TestenvError as exc:
        report.exit_code, report.reason, report.message = exc.exit_status, reason_of(exc), str(exc)
    except (Interrupted, KeyboardInterrupt) as exc:
        interrupt = exc if isinstance(exc, Interrupted) else Interrupted(signal.SIGINT)
        report.exit_code, report.reason = SIGNAL_BASE + interrupt.number, Reason.INTERRUPTED
        report.message = str(interrupt)
    except Exception as exc:  # noqa: BLE001 - the last line of defence: say it, and 125
        report.exit_code, report.reason = ExitStatus.INTERNAL, Reason.INTERNAL
        report.message = f"internal error: {type(exc).__name__}: {exc}"
        if options.debug:
            traceback.print_exc()


def _run_in_environment(report: Report, options: Options, guard: Guard, talk: Talk) -> int:
    """Returns and raises as testenv.run does."""
    import asyncio

    from testenv.run import run_in_environment

    gc.enable()
    if options.debug:
        import logging

        logging.basicConfig(level=logging.DEBUG, format="%(asctime)s %(name)s: %(message)s")
    # With `stty tostop`, a word on stderr from the background would stop us.
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    return asyncio.run(run_in_environment(options, guard, report, talk))
