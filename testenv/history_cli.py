"""`testenv history`: who held what, when, and how it ended."""

import asyncio
import re
import sys
from collections.abc import Sequence

import click

from broker.options import BrokerOptions, broker_options
from broker.people import console
from schemas.control import MAX_HISTORY
from schemas.errors import ConfigError, HostError
from schemas.exits import ExitStatus
from testenv import tables
from testenv.fleet import Fleet
from testenv.operate import Past, history
from testenv.operators import json_option, looked, operating, tell
from testenv.targets import Chosen, choose, everything

_LEASE = re.compile(r"[0-9a-f]{8,32}")
"""A lease's id, or its beginning."""


@click.command("history")
@click.argument("targets", metavar="[TARGET|LEASE]...", nargs=-1)
@click.option(
    "--limit",
    type=click.IntRange(1, MAX_HISTORY),
    default=50,
    show_default=True,
    metavar="N",
    help="The leases that run and the newest, N at most.",
)
@broker_options
@json_option("the leases, with all that is known,")
def show_history(brokers: BrokerOptions, targets: Sequence[str], limit: int, as_json: bool) -> None:
    """Tell who held what, when, and how it ended: of all hosts, some, or one lease.

    LEASE is a lease's id, or at least 8 digits from its beginning. The newest comes last.

    \b
    Example:
      testenv history te-host-01/3 --limit 10
      testenv history --json | jq '.leases[] | select(.exit_code > 0) | .environment'
    """
    with operating():
        endpoints = brokers.endpoints()
        fleet = looked(endpoints)
        lease, chosen = _remembering(fleet, targets)
        past = asyncio.run(history(endpoints, chosen, lease, limit))
        if as_json:
            click.echo(past.model_dump_json(indent=2))
        else:
            _print_past(past)
        if lease and not past.leases and not past.problems:
            raise HostError(f"no host remembers a lease {lease}", remedy="see testenv history")
    if past.problems:
        sys.exit(ExitStatus.FAILED)


def _remembering(fleet: Fleet, targets: Sequence[str]) -> tuple[str, tuple[Chosen, ...]]:
    """The lease that is asked for, if one is, and who may remember it."""
    hosts = {view.host for view in fleet.hosts}
    leases = [each for each in targets if _LEASE.fullmatch(each) and each not in hosts]
    if not leases:
        return "", choose(fleet, targets) if targets else everything(fleet)
    if len(targets) > 1:
        raise ConfigError("LEASE", "is asked for alone")
    return leases[0], everything(fleet)


def _print_past(past: Past) -> None:
    out = console()
    if past.leases:
        out.print(tables.past(past.leases))
    else:
        out.print("no lease is remembered")
    if not past.complete:
        click.echo("testenv: older ones were left out; ask for fewer hosts at a time", err=True)
    tell(past.problems, {})
