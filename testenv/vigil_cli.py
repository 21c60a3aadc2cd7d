"""What operators do that takes as long as leases run, as commands: drain, rebuild."""

import asyncio
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any, TypeVar

import click

from broker.endpoint import Endpoint
from broker.options import BrokerOptions, broker_options
from broker.people import confirm
from schemas.errors import ConfigError
from testenv import tables
from testenv.drain import EMPTY, drain_order
from testenv.duration import duration
from testenv.operate import Result
from testenv.operators import (
    chosen_of,
    duration_value,
    exit_unless_done,
    json_option,
    operating,
    reason_option,
    targets_argument,
    tell,
    yes_option,
)
from testenv.progress import Progress
from testenv.rebuild import rebuild_order
from testenv.reprovision import Procedure
from testenv.reprovision_cli import reprovision, reprovision_options
from testenv.targets import Chosen
from testenv.vigil import Order, Patience, Vigil

R = TypeVar("R")


def patience_options(wait_help: str) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """`--wait`, `--deadline` and `--revoke`, as one argument `patience`: Patience."""

    def decorate(command: Callable[..., R]) -> Callable[..., R]:
        @wraps(command)
        def with_patience(
            *args: Any, wait: bool, deadline: float | None, revokes: bool, **kwargs: Any
        ) -> R:
            with operating():
                patience = _patience(wait, deadline, revokes)
            return command(*args, patience=patience, **kwargs)

        wait = click.option("--wait", is_flag=True, help=wait_help)
        deadline = click.option(
            "--deadline",
            callback=duration_value,
            metavar="TIME",
            help="Wait so long at most: 90s, 30m, 2h. Implies --wait.",
        )
        revokes = click.option(
            "--revoke",
            "revokes",
            is_flag=True,
            help="Revoke what still runs at the deadline, and wait on.",
        )
        return wait(deadline(revokes(with_patience)))

    return decorate


@click.command()
@targets_argument
@reason_option
@patience_options("Wait until no lease runs there.")
@yes_option
@broker_options
@json_option("what became of each environment")
def drain(
    brokers: BrokerOptions,
    targets: Sequence[str],
    reason: str,
    patience: Patience,
    yes: bool,
    as_json: bool,
) -> None:
    """Cordon hosts or environments, and see the leases that run there end.

    Without --wait it only tells who still runs, and until when at the latest. It may be
    interrupted and repeated at any time; what is cordoned stays cordoned.

    Exit status: 0, also without --wait while leases run; 1 where a host or an environment failed;
    3 if leases are left at the deadline.

    \b
    Example:
      testenv drain te-host-01 --wait
      testenv drain 'te-host-*' --deadline 30m --revoke --reason "kernel update" --yes
    """
    with operating():
        endpoints, chosen = chosen_of(brokers, targets)
        if patience.revoke:
            _announce_revocation(chosen, patience)
            for one in chosen:
                click.echo(f"{_named(one)}: will be cordoned", err=True)
            confirm(yes)
        said = {Result.DONE: EMPTY, Result.UNKNOWN: "not known to be empty:"}
        _see_through(endpoints, chosen, drain_order(reason), patience, said, as_json)


@click.command()
@targets_argument
@reason_option
@patience_options("Wait until all are built, or broken.")
@reprovision_options
@yes_option
@broker_options
@json_option("what became of each environment")
def rebuild(
    brokers: BrokerOptions,
    targets: Sequence[str],
    reason: str,
    patience: Patience,
    procedure: Procedure | None,
    yes: bool,
    as_json: bool,
) -> None:
    """Destroy hosts' environments, and make them again from the hosts' configuration.

    Each agent reads its configuration again, and refuses a bad one before anything is destroyed.
    Then each environment is rebuilt as soon as its lease has ended, and offered again; meanwhile
    no new lease begins there. Without --wait that goes on by itself. It may be interrupted and
    repeated at any time.

    With --reprovision whole hosts are made anew, operating system and all, by your own command:
    drained, handed to it, and awaited until their new agents offer all their environments. That
    goes host by host; the others go on, and are cordoned only in their turn.

    Exit status: 0, also without --wait while it goes on; 1 where a host or an environment failed;
    3 if something is left at the deadline.

    \b
    Example:
      testenv rebuild te-host-01 --wait --reason "nodes get 8 GiB"
      testenv rebuild 'te-host-*' --deadline 30m --revoke --yes
      testenv rebuild 'te-host-*' --reprovision \\
        --reprovision-command "openstack server rebuild --wait {host}"
    """
    if procedure:
        reprovision(brokers, targets, reason, patience, procedure, yes=yes, as_json=as_json)
        return
    with operating():
        endpoints, chosen = chosen_of(brokers, targets)
        _announce_rebuild(chosen)
        if patience.revoke:
            _announce_revocation(chosen, patience)
        confirm(yes)
        said = {
            Result.DONE: "rebuilt",
            Result.REMOVED: "removed",
            Result.LEASED: "will be rebuilt, but is still",
            Result.HELD: "will be rebuilt, but is still",
            Result.UNDER_WAY: "will be rebuilt, and",
            Result.UNKNOWN: "not known to be rebuilt:",
        }
        order = rebuild_order(reason, chosen)
        _see_through(endpoints, chosen, order, patience, said, as_json)


def _patience(wait: bool, deadline: float | None, revokes: bool) -> Patience:
    if revokes and deadline is None:
        raise ConfigError("--revoke", "needs a --deadline (0s: at once)")
    return Patience(wait or deadline is not None, deadline, revokes)


def _see_through(
    endpoints: Sequence[Endpoint],
    chosen: Sequence[Chosen],
    order: Order,
    patience: Patience,
    said: Mapping[Result, str],
    as_json: bool,
) -> None:
    """Have it done, tell of it, and exit unless all is as was asked for, or will be."""
    with Progress(sys.stderr) as progress:
        vigil = Vigil(endpoints, chosen, order, progress.show)
        outcomes = asyncio.run(vigil.run(patience))
    tell(outcomes, said, as_json)
    exit_unless_done(outcomes, waited=patience.waits)


def _announce_rebuild(chosen: Sequence[Chosen]) -> None:
    """What will be destroyed, and for whom that waits."""
    for one in chosen:
        for env in one.view.report.environments if one.view.report else ():
            if env.id in one.environments:
                when = f"once its lease ends: {tables.until(env.lease)}" if env.lease else "at once"
                click.echo(f"{env.id}: will be destroyed and made anew {when}", err=True)
        if not one.environments:
            click.echo(f"{_named(one)}: {one.view.problem or 'has no environment'}", err=True)


def _announce_revocation(chosen: Sequence[Chosen], patience: Patience) -> None:
    """Who will lose what; others may come before no lease is admitted any more."""
    deadline = patience.deadline_s
    when = f"in {duration(deadline)}, unless it has ended" if deadline else "at once"
    for one in chosen:
        for env in one.view.report.environments if one.view.report else ():
            if env.lease and env.id in one.environments:
                lease = f"lease {env.lease.id} of {tables.holder(env.lease)}"
                click.echo(f"{env.id}: {lease} will be revoked {when}", err=True)
        click.echo(f"{_named(one)}: every lease will be revoked {when}", err=True)


def _named(one: Chosen) -> str:
    return one.host if one.whole else ", ".join(one.asked_for)


COMMANDS = (drain, rebuild)
