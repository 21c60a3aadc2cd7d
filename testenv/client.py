"""testenv-client: lock an environment, run a command in it, give it back.

A job pays for every module on the way from its spawn to its command. So what only the waiting
needs is imported while the guard gets ready, and argparse is here because click costs 8 ms more.
"""

import gc
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from schemas.errors import ConfigError, TestenvError
from schemas.exits import SIGNAL_BASE, ExitStatus
from testenv.errors import Interrupted
from testenv.guard import Guard
from testenv.options import Options, parse_options
from testenv.report import Reason, Report, reason_of
from testenv.talk import Talk


def main() -> None:
    """The command line's entry point; exits with the status that docs/testenv-client.md gives."""
    gc.disable()  # importing makes no garbage, and looking for it took a tenth of the start
    try:
        options = parse_options(sys.argv[1:], os.environ)
    except ConfigError as exc:
        Talk(sys.stderr or _nowhere()).complain(str(exc))
        sys.exit(exc.exit_status)
    status = _run(options)
    # Python's own tidying up takes milliseconds from a machine where the next command may start.
    os._exit(status)


def _run(options: Options) -> int:
    """Everything after the options: the exit status, with the report written."""
    talk = Talk(sys.stderr or _nowhere())
    report = Report()
    with Guard.fork(options.command, options.kill_after_s, brokers=options.brokers) as guard:
        _fill_in(report, options, guard, talk)
    if report.message:
        talk.complain(report.message)
    if options.report:
        try:
            report.write(options.report)
        except OSError as exc:
            talk.complain(f"cannot write the report: {exc}")
    return ExitStatus.INTERNAL if report.exit_code is None else report.exit_code


def _nowhere() -> TextIO:
    """For a client that was started with its stderr closed."""
    return Path(os.devnull).open("w")


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
    with _openssl_left_out(unless=any(broker.tls for broker in options.brokers)):
        import asyncio

    from testenv.run import run_in_environment

    gc.freeze()  # what was imported stays: the first search for garbage need not go through it
    gc.enable()
    if options.debug:
        import logging

        logging.basicConfig(level=logging.DEBUG, format="%(asctime)s %(name)s: %(message)s")
    # With `stty tostop`, a word on stderr from the background would stop us.
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    return asyncio.run(run_in_environment(options, guard, report, talk))


@contextmanager
def _openssl_left_out(*, unless: bool) -> Iterator[None]:
    """Importing asyncio in here does not load OpenSSL, a tenth of the way to the command.

    asyncio does without the ssl module, as some Pythons have none; only TLS needs it.
    """
    if unless or "ssl" in sys.modules:
        yield
        return
    sys.modules["ssl"] = None  # type: ignore[assignment]  # importlib's way to say "not here"
    try:
        yield
    finally:
        del sys.modules["ssl"]
