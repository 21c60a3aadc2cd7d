"""testenv: the command of operators."""

import asyncio
import sys

import click
from rich.console import Console
from rich.table import Table

from broker.options import BrokerOptions, broker_options
from schemas.errors import TestenvError
from schemas.names import LOCK_FUNCTION, UNVERIFIED
from schemas.status import EnvironmentReport, Lease
from testenv.fleet import Fleet, look


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="testenv")
def main() -> None:
    """Look after a fleet of test environments.

    \b
    Example:
      testenv status -b broker-1:4730,broker-2:4730
    """


@main.command()
@broker_options
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def status(brokers: BrokerOptions, as_json: bool) -> None:
    """List hosts, environments, who holds them and for how long, and the queues.

    \b
    Example:
      testenv status
      testenv status --json | jq '.queues[] | {function, waiting}'
    """
    try:
        fleet = asyncio.run(look(brokers.endpoints()))
    except TestenvError as error:
        click.echo(f"testenv: {error}", err=True)
        sys.exit(error.exit_status)
    if as_json:
        click.echo(fleet.model_dump_json(indent=2))
    else:
        _print(fleet)


def _print(fleet: Fleet) -> None:
    # Off a terminal, a table must not be folded to 80 columns: somebody greps it.
    width = None if sys.stdout.isatty() else 160
    console = Console(width=width, emoji=False, markup=False, highlight=False)
    for broker in fleet.brokers:
        if broker.state == "down":
            click.echo(f"testenv: broker {broker.broker}: {broker.problem}", err=True)
    if fleet.hosts:
        console.print(_environments(fleet))
    else:
        console.print("no host is registered")
    for queue in fleet.queues:
        # geard never forgets a function, and an environment with six labels has 64 of them.
        if queue.function != LOCK_FUNCTION and not (queue.waiting or queue.leased or queue.offered):
            continue
        console.print(
            f"{queue.function} on {queue.broker}:"
            f" {queue.waiting} waiting, {queue.leased} leased, {queue.offered} offered",
            soft_wrap=True,
        )


def _environments(fleet: Fleet) -> Table:
    table = Table()
    for column in ("host", "environment", "state", "for", "labels", "holder", "note"):
        table.add_column(column, overflow="fold")
    for host in fleet.hosts:
        if host.report is None:
            table.add_row(host.host, "", "unknown", "", "", "", host.problem)
            continue
        notes = "draining" if host.report.draining else ""
        if not host.report.environments:
            table.add_row(host.host, "none", "", "", "", "", notes)
        for index, env in enumerate(host.report.environments):
            name = host.host if index == 0 else ""
            note = ", ".join(part for part in (_note(env), notes) if part)
            holder = _holder(env.lease) if env.lease else ""
            labels = " ".join(env.labels)
            table.add_row(name, env.id, env.state, duration(env.since_s), labels, holder, note)
    return table


def _note(env: EnvironmentReport) -> str:
    parts = ("cordoned" if env.cordoned else "", env.reason)
    return ", ".join(part for part in parts if part)


def _holder(lease: Lease) -> str:
    """Who says to hold it, and who does, where the broker has verified that."""
    if lease.submitter == UNVERIFIED:
        return lease.holder
    return f"{lease.holder} ({lease.submitter})"


def duration(seconds: float) -> str:
    """Seconds as a person says them: `42s`, `7m05s`, `3h20m`."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
