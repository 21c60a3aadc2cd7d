"""The command `testenv-broker`."""

import asyncio
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from broker.endpoint import DEFAULT_BROKER, Endpoint, parse_endpoint
from schemas.errors import TestenvError
from schemas.exits import ExitStatus

BROKER_EXTRA = ("cryptography", "prometheus_client", "starlette", "uvicorn")
"""What only the `broker` extra installs; a broker on loopback does without, so it is imported
late."""


Command = TypeVar("Command", bound=Callable[..., Any])


class _Group(click.Group):
    """Imports `pki` only for those who ask for it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), "pki"])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name == "pki":
            from broker.pki_cli import pki

            return pki
        return super().get_command(ctx, cmd_name)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="testenv", message="%(prog)s %(version)s")
def cli() -> None:
    """The Gearman broker between CI jobs and test-environment hosts.

    \b
    Example:
      testenv-broker run --listen 127.0.0.1:4730
      testenv-broker pki init
    """


def _file_option(name: str, what: str) -> Callable[[Command], Command]:
    return click.option(f"--{name}", type=click.Path(path_type=Path), metavar="FILE", help=what)


@cli.command(
    epilog="Example: testenv-broker run --config /etc/testenv/broker.toml",
)
@_file_option("config", "Configuration (TOML); the options below override it.")
@click.option(
    "--listen",
    metavar="HOST:PORT",
    help=f"Where to listen; port 0 picks a free one.  [default: {DEFAULT_BROKER}]",
)
@click.option("--insecure", is_flag=True, help="Listen beyond loopback without TLS.")
@click.option("--http", metavar="HOST:PORT", help="Where to serve /healthz and /metrics.")
@click.option(
    "--drain-timeout",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="How long SIGTERM waits for jobs.  [default: 30]",
)
@_file_option("tls-cert", "The broker's certificate (PEM).")
@_file_option("tls-key", "Its key.")
@_file_option("tls-ca", "Who signs the certificates of clients.")
@_file_option("tls-crl", "What that authority has revoked.")
@click.option("-d", "--debug", is_flag=True, help="Log every packet to stderr.")
def run(config: Path | None, debug: bool, **options: Any) -> None:
    """Serve until SIGTERM or Ctrl-C. SIGHUP reads the configuration again.

    Once it accepts connections it says so in one line on stderr: "listening on HOST:PORT".
    """
    # Imported here so that --help and a bad option do not wait for it.
    from broker.server.config import load_config
    from broker.server.notify import Notifier
    from broker.server.service import Service

    logging.basicConfig(
        level=logging.DEBUG if debug else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    overrides = _overrides(**options)
    service = Service(
        lambda: load_config(config, overrides), _announce, Notifier.from_environment()
    )
    asyncio.run(service.run())


def _announce(bound: Endpoint) -> None:
    click.echo(f"listening on {bound}", err=True)


def _overrides(
    *,
    listen: str | None,
    insecure: bool,
    http: str | None,
    drain_timeout: float | None,
    **tls_files: Path | None,
) -> dict[str, Any]:
    """The options that were given, in the configuration file's form."""
    given: dict[str, Any] = {}
    if listen is not None:
        given["listen"] = str(parse_endpoint(listen, "--listen", any_port=True))
    if insecure:
        given["insecure"] = True
    if http is not None:
        where = parse_endpoint(http, "--http", any_port=True, needs_port=True)
        given["http"] = {"listen": str(where)}
    if drain_timeout is not None:
        given["drain_timeout_s"] = drain_timeout
    if tls := {name.removeprefix("tls_"): file for name, file in tls_files.items() if file}:
        given["tls"] = tls
    return given


def main() -> None:
    """Run the command; errors of ours become one line on stderr and their exit status."""
    try:
        cli()
    except TestenvError as error:
        click.echo(f"testenv-broker: {error}", err=True)
        sys.exit(error.exit_status)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in BROKER_EXTRA:
            raise
        click.echo(
            f"testenv-broker: {error.name} is not installed; install testenv with its broker extra",
            err=True,
        )
        sys.exit(ExitStatus.FAILED)
