"""Environments kept for people, as commands: hold, unhold, holds, autohold."""

import asyncio
import re
from collections.abc import Sequence
from pathlib import Path

import click

from broker.options import BrokerOptions, broker_options
from broker.people import console
from schemas.control import DEFAULT_HOLD_S, AutoholdRequest, Held, HoldRequest, UnholdRequest
from schemas.errors import ConfigError, HostError
from schemas.names import random_id
from schemas.status import AUTOHOLD_ID, MAX_AUTOHOLD, Autohold, EnvironmentReport
from testenv import tables
from testenv.duration import duration
from testenv.hold import hold, holds_of, person, report_of
from testenv.operate import Change, Result
from testenv.operate_cli import change_all
from testenv.operators import (
    duration_value,
    json_option,
    looked,
    operating,
    reason_option,
    targets_argument,
)
from testenv.targets import find_environment
from testenv.workspace import DATAFILE_SUFFIX, replace_private


def _hold_time(ctx: click.Context, option: click.Parameter, value: str | None) -> float | None:
    """A click callback: the seconds that `--for` gives."""
    seconds = duration_value(ctx, option, value)
    if seconds == 0:
        raise click.BadParameter("must be more than 0s")
    return seconds


for_option = click.option(
    "--for",
    "for_s",
    callback=_hold_time,
    metavar="TIME",
    help="How long, once it is held: 90s, 30m, 2h [default: 2h].",
)


@click.command("hold")
@click.argument("environment", metavar="ENV")
@for_option
@reason_option
@click.option(
    "--datafile",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Take it over: write its data file, with new credentials.",
)
@click.option(
    "--connect/--seclude",
    default=None,
    help="Whether its seed can be reached from outside, by anyone [default: not].",
)
@broker_options
@json_option("the hold")
def hold_environment(
    brokers: BrokerOptions,
    environment: str,
    for_s: float | None,
    reason: str,
    datafile: Path | None,
    connect: bool | None,
    as_json: bool,
) -> None:
    """Keep an environment as its last job left it, for a person to look at.

    One that is leased is held once its lease ends, however that goes; one that waits for a job is
    held at once. Its machines run on, but can't be reached from outside. When its time is over, or
    after `testenv unhold`, it is made anew and offered again. Repeat the command to take it over,
    to connect it, or to change its time: each data file ends the credentials of the one before.

    \b
    Example:
      testenv hold te-host-01/3 --for 4h --reason "ann looks at the failed boot"
      testenv hold te-host-01/3 --connect --datafile held.json
    """
    with operating():
        _check_datafile(datafile)
        endpoints = brokers.endpoints()
        view = find_environment(looked(endpoints), environment)
        before = report_of(view, environment)
        request = HoldRequest(
            environment=environment,
            holder=person(),
            for_s=for_s,
            reason=reason,
            connect=connect,
            take=datafile is not None,
        )
        waits = before is None or before.lease is None
        held = asyncio.run(hold(endpoints, view, request, wait=waits))
        if datafile and held.data_file:
            _write(datafile, held.data_file)
        _tell(environment, before, held, as_json)
        if datafile and not held.data_file:
            raise HostError(
                f"{environment} is not held yet: there is no data file",
                remedy="repeat the command when testenv holds shows it as held",
            )


@click.command("unhold")
@targets_argument
@broker_options
@json_option("what became of each environment")
def unhold(brokers: BrokerOptions, targets: Sequence[str], as_json: bool) -> None:
    """Give held environments back: they are made anew, and offered again.

    \b
    Example:
      testenv unhold te-host-01/3
    """
    said = {Result.DONE: "not held any more", Result.UNCHANGED: "was not held"}
    with operating():
        change_all(brokers, targets, lambda ids: UnholdRequest(environments=ids), said, as_json)


@click.command("holds")
@broker_options
@json_option("holds and autoholds")
def list_holds(brokers: BrokerOptions, as_json: bool) -> None:
    """List what is held, or will be, and the autoholds.

    \b
    Example:
      testenv holds
      testenv holds --json | jq -r '.holds[].environment'
    """
    with operating():
        fleet = looked(brokers.endpoints())
    found = holds_of(fleet)
    if as_json:
        click.echo(found.model_dump_json(indent=2))
        return
    out = console()
    out.print(tables.holds(found.holds) if found.holds else "nothing is held")
    if found.autoholds:
        out.print(tables.autoholds(found.autoholds))
    for view in fleet.hosts:
        if view.report is None:
            click.echo(f"testenv: {view.host}: {view.problem}", err=True)


@click.command("autohold")
@click.argument("hosts", metavar="[HOST]...", nargs=-1)
@click.option("--job", metavar="PATTERN", help="A glob for the job's name (testenv-client -n).")
@click.option(
    "--count",
    type=click.IntRange(1, MAX_AUTOHOLD),
    default=1,
    show_default=True,
    metavar="N",
    help="So many failures on each host: hosts do not know of each other.",
)
@for_option
@reason_option
@click.option("--remove", "rule_id", metavar="ID", help="Remove that autohold instead.")
@broker_options
@json_option("what became of each host")
def autohold(
    brokers: BrokerOptions,
    hosts: tuple[str, ...],
    job: str | None,
    count: int,
    for_s: float | None,
    reason: str,
    rule_id: str | None,
    as_json: bool,
) -> None:
    """Have hosts (all by default) hold what the next failing jobs of a name leave behind.

    It lasts until it has been used, or is removed. Jobs that were cancelled or revoked have not
    failed; a host's max_held limits what is held at a time.

    \b
    Example:
      testenv autohold --job 'gate-upgrade-*' --for 4h --reason "ann: upgrade hangs at step 4"
      testenv autohold --remove 7c31f9a0
    """
    with operating():
        rule = _rule(job, count, for_s, reason, rule_id)
        said = (
            {Result.DONE: f"autohold {rule.id}", Result.UNCHANGED: f"has autohold {rule.id}"}
            if rule.left
            else {Result.DONE: "removed", Result.UNCHANGED: f"has no autohold {rule.id}"}
        )

        def request(ids: tuple[str, ...]) -> Change:
            if ids:
                raise ConfigError("HOST", f"{', '.join(ids)}: an autohold is for whole hosts")
            return AutoholdRequest(rule=rule)

        change_all(brokers, hosts or ("*",), request, said, as_json)


def _rule(
    job: str | None, count: int, for_s: float | None, reason: str, rule_id: str | None
) -> Autohold:
    if (job is None) == (rule_id is None):
        raise ConfigError("autohold", "needs either --job PATTERN or --remove ID")
    if rule_id is not None and not re.fullmatch(AUTOHOLD_ID, rule_id):
        raise ConfigError(
            "--remove", f"{rule_id!r} is no autohold's id", remedy="see testenv holds"
        )
    if job is None:
        return Autohold(id=rule_id or "", job="", left=0, for_s=1)
    if not job.isprintable() or not job:
        raise ConfigError("--job", f"{job!r} is no glob for a name")
    return Autohold(
        id=random_id()[:8],
        job=job,
        left=count,
        for_s=for_s or DEFAULT_HOLD_S,
        reason=reason,
        asked_by=person(),
    )


def _tell(environment: str, before: EnvironmentReport | None, held: Held, as_json: bool) -> None:
    if as_json:
        click.echo(held.hold.model_dump_json(indent=2))
        return
    if held.hold.until:
        click.echo(f"{environment}: held until {tables.moment(held.hold.until)}")
        return
    when = "as soon as it is made"
    if before and before.lease:
        when = f"once its lease ends: {tables.until(before.lease)}"
    click.echo(f"{environment}: will be held for {duration(held.hold.for_s)} {when}")


def _check_datafile(path: Path | None) -> None:
    if path is None:
        return
    if path.suffix != DATAFILE_SUFFIX:
        raise ConfigError("--datafile", f"{str(path)!r} does not end in {DATAFILE_SUFFIX}")
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise ConfigError("--datafile", f"cannot write {str(path)!r}")


def _write(path: Path, text: str) -> None:
    try:
        replace_private(path.absolute(), text.encode())
    except OSError as exc:
        raise ConfigError("--datafile", f"cannot write {str(path)!r}: {exc.strerror}") from exc
    click.echo(f"testenv: its data file is {path}", err=True)


COMMANDS = (hold_environment, unhold, list_holds, autohold)
