"""`testenv rebuild --reprovision`: its options, and what it tells."""

import asyncio
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from broker.options import BrokerOptions
from broker.people import confirm
from schemas.errors import ConfigError
from testenv import tables
from testenv.duration import duration
from testenv.operate import Outcome, Result
from testenv.operators import chosen_of, duration_value, exit_unless_done, operating, tell
from testenv.progress import Progress
from testenv.reprovision import (
    DONE,
    EXAMPLE,
    HOST,
    Campaign,
    Procedure,
    check_hosts,
    parse_template,
)
from testenv.targets import Chosen
from testenv.vigil import Patience

R = TypeVar("R")

COMMAND_VARIABLE = "TESTENV_REPROVISION_COMMAND"
"""The environment variable that has the command where no option does."""

COMMAND_OPTION = "--reprovision-command"

BOOT_TIMEOUT_S = 1800.0

_OPTIONS = (
    click.option(
        "--reprovision",
        "reprovisions",
        is_flag=True,
        help="Make the hosts themselves anew, by your own command. Implies --wait.",
    ),
    click.option(
        COMMAND_OPTION,
        "template",
        envvar=COMMAND_VARIABLE,
        metavar="COMMAND",
        help=f"That command, with {HOST} for the host's name [env: {COMMAND_VARIABLE}].",
    ),
    click.option(
        "--at-once",
        type=click.IntRange(min=1),
        metavar="N",
        help="Reprovision so many hosts at the same time [default: 1].",
    ),
    click.option(
        "--boot-timeout",
        callback=duration_value,
        metavar="TIME",
        help="From the command's begin until the new agent has registered [default: 30m].",
    ),
)


def reprovision_options(command: Callable[..., R]) -> Callable[..., R]:
    """`--reprovision` and what belongs to it, as one argument `procedure`: Procedure | None."""

    @wraps(command)
    def with_procedure(
        *args: Any,
        reprovisions: bool,
        template: str | None,
        at_once: int | None,
        boot_timeout: float | None,
        **kwargs: Any,
    ) -> R:
        with operating():
            source = click.get_current_context().get_parameter_source("template")
            from_variable = source is ParameterSource.ENVIRONMENT
            if reprovisions:
                name = COMMAND_VARIABLE if from_variable else COMMAND_OPTION
                procedure = _procedure(template, name, at_once, boot_timeout)
            else:
                procedure = None
                given = (None if from_variable else template, at_once, boot_timeout)
                _refuse_without_reprovision(given)
        return command(*args, procedure=procedure, **kwargs)

    decorated: Callable[..., R] = with_procedure
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    return decorated


def reprovision(
    brokers: BrokerOptions,
    targets: Sequence[str],
    reason: str,
    patience: Patience,
    procedure: Procedure,
    *,
    yes: bool,
    as_json: bool,
) -> None:
    """Have it done, and tell of it."""
    patience = patience._replace(waits=True)
    with operating():
        endpoints, chosen = chosen_of(brokers, targets)
        check_hosts(chosen)
        _announce(chosen, patience, procedure)
        confirm(yes)
        with Progress(sys.stderr) as progress:
            campaign = Campaign(endpoints, chosen, procedure, reason, patience, progress)
            try:
                outcomes = asyncio.run(_interruptible(campaign))
            except KeyboardInterrupt:
                for host, standing in campaign.standings.items():
                    progress.pass_on(f"testenv: {host}", standing)
                raise
        said = {
            Result.DONE: DONE,
            Result.LEASED: "not reprovisioned, but still",
            Result.HELD: "not reprovisioned, but still",
            Result.UNKNOWN: "not known to be done:",
        }
        tell(outcomes, said, as_json)
    exit_unless_done(outcomes, waited=True)


async def _interruptible(campaign: Campaign) -> tuple[Outcome, ...]:
    """A command of its own session would outlive us, and nobody would hear it."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            loop.add_signal_handler(number, signal.raise_signal, signal.SIGINT)
    return await campaign.run()


def _procedure(
    template: str | None, source: str, at_once: int | None, boot_timeout: float | None
) -> Procedure:
    if template is None:
        raise ConfigError(
            "--reprovision",
            "needs the command that does it",
            remedy=f"give {COMMAND_OPTION}, or set {COMMAND_VARIABLE}, as in: {EXAMPLE}",
        )
    if boot_timeout == 0:
        raise ConfigError("--boot-timeout", "must be more than 0s")
    parsed = parse_template(template, source)
    return Procedure(parsed, at_once or 1, boot_timeout or BOOT_TIMEOUT_S)


def _refuse_without_reprovision(given: Sequence[object]) -> None:
    names = (COMMAND_OPTION, "--at-once", "--boot-timeout")
    for name, value in zip(names, given, strict=True):
        if value is not None:
            raise ConfigError(name, "belongs to --reprovision")


def _announce(chosen: Sequence[Chosen], patience: Patience, procedure: Procedure) -> None:
    """What will be done to whom, and for whom that waits."""
    for one in chosen:
        argv = shlex.join(procedure.template.for_host(one.host))
        click.echo(f"{one.host}: will be drained, then reprovisioned by: {argv}", err=True)
        if one.view.report is None:
            click.echo(f"{one.host}: {one.view.problem}", err=True)
        for env in one.view.report.environments if one.view.report else ():
            for why in (
                f"leased by {tables.until(env.lease)}" if env.lease else "",
                tables.kept(env.hold) if env.hold else "",
            ):
                if why:
                    click.echo(f"{env.id}: is waited for: {why}", err=True)
    if patience.revoke:
        deadline = patience.deadline_s
        when = f"{duration(deadline)} later" if deadline else "at once"
        click.echo(f"each host's leases that run when its turn comes: revoked {when}", err=True)
    if len(chosen) > 1:
        at_once = min(procedure.at_once, len(chosen))
        click.echo(f"{len(chosen)} hosts, {at_once} at a time", err=True)
