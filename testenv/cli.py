"""testenv: the command of operators."""

import asyncio

import click

from broker.options import BrokerOptions, broker_options
from broker.people import console
from schemas.names import LOCK_FUNCTION
from testenv import hold_cli, operate_cli, tables, vigil_cli
from testenv.fleet import Fleet, look
from testenv.history_cli import show_history
from testenv.logs_cli import logs
from testenv.operators import operating, tell_of_brokers


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="testenv")
def main() -> None:
    """Look after a fleet of test environments.

    TARGET is a host, an environment (HOST/NUMBER), or a glob of either, such as 'te-host-*' or
    'te-host-01/*'.

    \b
    Example:
      testenv status -b broker-1:4730,broker-2:4730
      testenv drain te-host-01 --wait --reason "te-host-01 gets a new disk"
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
    with operating():
        fleet = asyncio.run(look(brokers.endpoints()))
    if as_json:
        click.echo(fleet.model_dump_json(indent=2))
    else:
        _print(fleet)


def _print(fleet: Fleet) -> None:
    out = console()
    tell_of_brokers(fleet)
    if fleet.hosts:
        out.print(tables.environments(fleet))
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


COMMANDS = (*operate_cli.COMMANDS, *vigil_cli.COMMANDS, *hold_cli.COMMANDS, show_history, logs)
for command in COMMANDS:
    main.add_command(command)
