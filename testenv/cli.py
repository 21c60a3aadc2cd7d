"""testenv: the command of operators."""

import asyncio

import click
from rich.table import Table

from broker.options import BrokerOptions, broker_options
from broker.people import confirm, console, reported_errors
from schemas.errors import ConfigError
from schemas.names import LOCK_FUNCTION, UNVERIFIED
from schemas.status import EnvironmentReport, Lease
from testenv.fleet import Fleet, find_lease, look, revoke

_MAX_REASON = 200


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="testenv")
def main() -> None:
    """Look after a fleet of test environments.

    \b
    Example:
      testenv status -b broker-1:4730,broker-2:4730
      testenv revoke te-host-01/3 --reason "te-host-01 gets a new disk"
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
    with reported_errors("testenv"):
        fleet = asyncio.run(look(brokers.endpoints()))
    if as_json:
        click.echo(fleet.model_dump_json(indent=2))
    else:
        _print(fleet)


@main.command("revoke")
@click.argument("target", metavar="ENV|LEASE")
@click.option(
    "--reason", required=True, metavar="TEXT", help="Why; the job prints it, the journal keeps it."
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@broker_options
@click.option("--json", "as_json", is_flag=True, help="Print the revoked lease as JSON.")
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
    with reported_errors("testenv"):
        endpoints = brokers.endpoints()
        _check_reason(reason)
        view, lease = find_lease(asyncio.run(look(endpoints)), target)
        click.echo(
            f"{lease.environment}: lease {lease.id} of {_holder(lease)} will be revoked", err=True
        )
        confirm(yes)
        revoked = asyncio.run(revoke(endpoints, view, lease, reason))
    if as_json:
        click.echo(revoked.model_dump_json(indent=2))
    else:
        click.echo(f"{lease.environment}: the client is told to end its command")


def _check_reason(reason: str) -> None:
    if not reason.strip() or not reason.isprintable() or len(reason) > _MAX_REASON:
        raise ConfigError("--reason", f"must be one line of at most {_MAX_REASON} characters")


def _print(fleet: Fleet) -> None:
    out = console()
    for broker in fleet.brokers:
        if broker.state == "down":
            click.echo(f"testenv: broker {broker.broker}: {broker.problem}", err=True)
    if fleet.hosts:
        out.print(_environments(fleet))
    else:
        out.print("no host is registered")
    for queue in fleet.queues:
        # geard never forgets a function, and an environment with six labels has 64 of them.
        if queue.function != LOCK_FUNCTION and not (queue.waiting or queue.leased or queue.offered):
            continue
        out.print(
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
            table.add_row(name, env.id, _state(env), duration(env.since_s), labels, holder, note)
    return table


def _state(env: EnvironmentReport) -> str:
    return f"{env.state} ({env.lease_state})" if env.lease_state else env.state


def _note(env: EnvironmentReport) -> str:
    cordon = f"cordoned: {env.cordon_reason}" if env.cordon_reason else "cordoned"
    withdrawn = f"withdrawn: {env.withdrawn}" if env.withdrawn else ""
    parts = (cordon if env.cordoned else "", withdrawn, env.reason)
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
