"""What operators' commands have in common: targets, options, and how they tell of outcomes."""

import asyncio
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

import click
from pydantic import BaseModel

from broker.endpoint import Endpoint
from broker.options import BrokerOptions
from broker.people import reported_errors
from schemas.errors import ConfigError
from schemas.exits import SIGNAL_BASE, ExitStatus
from testenv.duration import parse_duration
from testenv.fleet import Fleet, look
from testenv.operate import Outcome, Result
from testenv.targets import Chosen, choose

R = TypeVar("R")

_MAX_REASON = 200


class Summary(BaseModel):
    """What `--json` prints of a command with several targets."""

    outcomes: tuple[Outcome, ...]


targets_argument = click.argument("targets", metavar="TARGET...", nargs=-1, required=True)


def reason_value(_: click.Context, __: click.Parameter, value: str) -> str:
    """A click callback: a reason that can be shown in one line. A bad one ends the command."""
    with reported_errors("testenv"):
        check_reason(value)
    return value


reason_option = click.option(
    "--reason",
    default="",
    callback=reason_value,
    metavar="TEXT",
    help="Why; shown by status, kept by the journal.",
)


def json_option(what: str) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """`--json` for a command that prints `what`."""
    return click.option("--json", "as_json", is_flag=True, help=f"Print {what} as JSON.")


def yes_option(command: Callable[..., R]) -> Callable[..., R]:
    """`--yes`, for `broker.people.confirm`."""
    return click.option("--yes", is_flag=True, help="Do not ask.")(command)


def tell_of_brokers(fleet: Fleet) -> None:
    """Those that are down: what only they know of is not seen."""
    for broker in fleet.brokers:
        if broker.state == "down":
            click.echo(f"testenv: broker {broker.broker}: {broker.problem}", err=True)


async def seen(endpoints: Sequence[Endpoint]) -> Fleet:
    """The fleet, as far as its brokers are up. Raises BrokerUnreachable."""
    fleet = await look(endpoints)
    tell_of_brokers(fleet)
    return fleet


def looked(endpoints: Sequence[Endpoint]) -> Fleet:
    """The same for a command that needs no more of the event loop."""
    return asyncio.run(seen(endpoints))


def chosen_of(
    brokers: BrokerOptions, targets: Sequence[str]
) -> tuple[tuple[Endpoint, ...], tuple[Chosen, ...]]:
    """What `targets` mean. Raises UnknownTarget, BrokerError, ConfigError."""
    endpoints = brokers.endpoints()
    return endpoints, choose(looked(endpoints), targets)


def tell(outcomes: Sequence[Outcome], said: Mapping[Result, str], as_json: bool = False) -> None:
    """A line for each target; on stderr where something is wrong. `said`: each result's words."""
    if as_json:
        click.echo(Summary(outcomes=tuple(outcomes)).model_dump_json(indent=2))
        return
    for one in outcomes:
        words = " ".join(part for part in (said.get(one.result, ""), one.detail) if part)
        program = "testenv: " if one.is_bad else ""
        click.echo(f"{program}{one.target}: {words}", err=one.is_bad)


def exit_unless_done(outcomes: Iterable[Outcome], *, waited: bool) -> None:
    """Exit unless all is as was asked for, or will be. `waited`: whether it should be by now."""
    outcomes = tuple(outcomes)
    if any(one.is_bad for one in outcomes):
        sys.exit(ExitStatus.FAILED)
    if waited and any(one.is_left for one in outcomes):
        sys.exit(ExitStatus.STILL_LEASED)


def check_reason(reason: str) -> None:
    """Raises ConfigError for what can't be shown in one line."""
    if not reason.isprintable() or len(reason) > _MAX_REASON:
        raise ConfigError("--reason", f"must be one line of at most {_MAX_REASON} characters")


def duration_value(_: click.Context, __: click.Parameter, value: str | None) -> float | None:
    """A click callback: the seconds that an option gives."""
    try:
        return None if value is None else parse_duration(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


@contextmanager
def operating() -> Iterator[None]:
    """An expected error within is one line on stderr, and so is Ctrl-C; both with their status."""
    with reported_errors("testenv"):
        try:
            yield
        except KeyboardInterrupt:
            click.echo(
                "testenv: interrupted; what is done stays done, and may be repeated", err=True
            )
            sys.exit(SIGNAL_BASE + signal.SIGINT)
