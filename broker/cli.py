"""The command `testenv-broker`."""

import logging
import signal
import sys

import click

from broker.endpoint import parse_endpoint
from schemas.errors import TestenvError

DEFAULT_LISTEN = "127.0.0.1:4730"


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="testenv", message="%(prog)s %(version)s")
def cli() -> None:
    """The Gearman broker between CI jobs and test-environment hosts."""


@cli.command(
    epilog="Example: testenv-broker run --listen 192.0.2.10:4730",
)
@click.option(
    "--listen",
    metavar="HOST:PORT",
    default=DEFAULT_LISTEN,
    show_default=True,
    help="Where to listen; port 0 picks a free one.",
)
@click.option("-d", "--debug", is_flag=True, help="Log every packet to stderr.")
def run(listen: str, debug: bool) -> None:
    """Serve until SIGTERM or Ctrl-C.

    Once it accepts connections it says so in one line on stderr: "listening on HOST:PORT".
    """
    # Imported here so that --help and a bad option do not wait for it.
    from broker.geard import running_server

    logging.basicConfig(
        level=logging.DEBUG if debug else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    stop = {signal.SIGTERM, signal.SIGINT}
    # Blocked before the server's threads start, which inherit it: only sigwait gets them.
    signal.pthread_sigmask(signal.SIG_BLOCK, stop)
    endpoint = parse_endpoint(listen, "--listen", any_port=True)
    with running_server(endpoint) as bound:
        click.echo(f"listening on {bound}", err=True)
        signal.sigwait(stop)


def main() -> None:
    """Run the command; errors of ours become one line on stderr and their exit status."""
    try:
        cli()
    except TestenvError as error:
        click.echo(f"testenv-broker: {error}", err=True)
        sys.exit(error.exit_status)
