"""What operators do at once, as commands: revoke, cordon, uncordon, clear."""

import asyncio
import sys
from collections.abc import Callable, Mapping, Sequence

import click

from broker.options import BrokerOptions, broker_options
from broker.people import confirm
from schemas.control import ClearRequest, CordonRequest, UncordonRequest
from schemas.errors import ConfigError
from schemas.exits import ExitStatus
from testenv import tables
from testenv.fleet import revoke
from testenv.operate import Change, Outcome, Result, change
from testenv.operators import (
    chosen_of,
    json_option,
    looked,
    operating,
    reason_option,
    reason_value,
    targets_argument,
    tell,
    yes_option,
)
from testenv.targets import Chosen, find_lease


@click.command("revoke")
@click.argument("target", metavar="ENV|LEASE")
@click.option(
    "--reason",
    required=True,
    callback=reason_value,
    metavar="TEXT",
    help="Why; the job prints it, the journal keeps it.",
)
@yes_option
@broker_options
@json_option("the revoked lease")
def revoke_lease(
    brokers: BrokerOptions, target: str, reason: str, yes: bool, as_json: bool
) -> None:
    """End the lease of an environment (HOST/NUMBER), or the lease with an id, before its time.

    Its client sends its command SIGTERM, then SIGKILL after its --kill-after, and exits with 70.
    This command only waits until the host knows; `testenv status` shows the rest.

    \b
    Example:
      testenv revoke te-host-01/3 --reason "te-host-01 gets a new disk"
    """
    with operating():
        endpoints = brokers.endpoints()
        if not reason.strip():
            raise ConfigError("--reason", "must be one line, and not empty")
        view, lease = find_lease(looked(endpoints), target)
        held_by = tables.holder(lease)
        click.echo(f"{lease.environment}: lease {lease.id} of {held_by} will be revoked", err=True)
        confirm(yes)
        revoked = asyncio.run(revoke(endpoints, view, lease, reason))
    if as_json:
        click.echo(revoked.model_dump_json(indent=2))
    else:
        click.echo(f"{lease.environment}: the client is told to end its command")


@click.command()
@targets_argument
@reason_option
@broker_options
@json_option("what became of each environment")
def cordon(brokers: BrokerOptions, targets: Sequence[str], reason: str, as_json: bool) -> None:
    """Admit no new lease to hosts or environments until they are uncordoned.

    Leases that run go on. A cordon outlives the agent and the host's reboot. Cordon again to
    change the reason.

    \b
    Example:
      testenv cordon te-host-01 --reason "new disk"
      testenv cordon 'te-host-0*/1' te-host-17/4
    """
    said = {Result.DONE: "cordoned", Result.UNCHANGED: "cordoned already"}
    with operating():
        change_all(
            brokers,
            targets,
            lambda ids: CordonRequest(environments=ids, reason=reason),
            said,
            as_json,
        )


@click.command()
@targets_argument
@broker_options
@json_option("what became of each environment")
def uncordon(brokers: BrokerOptions, targets: Sequence[str], as_json: bool) -> None:
    """Admit leases to hosts or environments again.

    \b
    Example:
      testenv uncordon 'te-host-*'
    """
    said = {Result.DONE: "uncordoned", Result.UNCHANGED: "was not cordoned"}
    with operating():
        change_all(brokers, targets, lambda ids: UncordonRequest(environments=ids), said, as_json)


@click.command()
@targets_argument
@broker_options
@json_option("what became of each environment")
def clear(brokers: BrokerOptions, targets: Sequence[str], as_json: bool) -> None:
    """Trust environments that are quarantined or broken again, and have them built anew.

    \b
    Example:
      testenv clear te-host-01/3
    """
    said = {
        Result.DONE: "cleared, and is built anew",
        Result.UNCHANGED: "is neither quarantined nor broken",
    }
    with operating():
        change_all(brokers, targets, lambda ids: ClearRequest(environments=ids), said, as_json)


def change_all(
    brokers: BrokerOptions,
    targets: Sequence[str],
    request: Callable[[tuple[str, ...]], Change],
    said: Mapping[Result, str],
    as_json: bool,
) -> None:
    """Change all targets, telling of each host as soon as it has answered."""

    def tell_at_once(_: Chosen, outcomes: Sequence[Outcome]) -> None:
        if not as_json:
            tell(outcomes, said)

    endpoints, chosen = chosen_of(brokers, targets)
    outcomes = asyncio.run(change(endpoints, chosen, request, tell_at_once))
    if as_json:
        tell(outcomes, said, as_json=True)
    if any(one.is_bad for one in outcomes):
        sys.exit(ExitStatus.FAILED)


COMMANDS = (revoke_lease, cordon, uncordon, clear)
