"""`testenv logs`: the consoles of an environment's seed and nodes."""

import asyncio
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import click

from broker.endpoint import Endpoint
from broker.options import BrokerOptions, broker_options
from schemas.errors import ConfigError
from testenv.fleet import inquiry
from testenv.logs import fetch_console, find_consoles
from testenv.operators import json_option, operating, seen
from testenv.targets import find_environment

Take = Callable[[str, bytes], None]
"""What becomes of a domain's console."""


@click.command()
@click.argument("environment", metavar="ENV")
@click.option(
    "--lease",
    default="",
    metavar="ID",
    help="The lease's id, or its beginning [default: the one that runs, or the last].",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Write DIR/<domain>.log instead.",
)
@broker_options
@json_option("the consoles, by domain,")
def logs(
    brokers: BrokerOptions, environment: str, lease: str, output: Path | None, as_json: bool
) -> None:
    """Fetch what seed and nodes have said on their consoles while a lease ran.

    Of each environment those of the last few leases are kept.

    \b
    Example:
      testenv logs te-host-01/3 | less
      testenv logs te-host-01/3 --lease 621da58b --output consoles
    """
    with operating():
        asyncio.run(_logs(brokers.endpoints(), environment, lease, output, as_json))


async def _logs(
    endpoints: Sequence[Endpoint], environment: str, lease: str, output: Path | None, as_json: bool
) -> None:
    view = find_environment(await seen(endpoints), environment)
    async with inquiry(endpoints, view) as agent:
        found = await find_consoles(agent, environment, lease)
        when = "runs" if found.runs else "has ended"
        click.echo(
            f"testenv: {environment}: consoles of lease {found.lease}, which {when}", err=True
        )
        with _taking(environment, found.lease, output, as_json) as take:
            for domain in found.sizes:
                take(domain, await fetch_console(agent, environment, found, domain))


@contextmanager
def _taking(environment: str, lease: str, output: Path | None, as_json: bool) -> Iterator[Take]:
    if as_json:
        texts: dict[str, str] = {}
        yield lambda domain, said: texts.update({domain: said.decode(errors="replace")})
        document = {"environment": environment, "lease": lease, "consoles": texts}
        click.echo(json.dumps(document, indent=2))
    elif output:
        with _named_errors(output):
            output.mkdir(parents=True, exist_ok=True)
            yield partial(_write, output)
    else:
        yield _show if sys.stdout.isatty() else _pass_on


@contextmanager
def _named_errors(output: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise ConfigError("--output", f"cannot write {str(output)!r}: {exc.strerror}") from exc


def _write(directory: Path, domain: str, said: bytes) -> None:
    (directory / f"{domain}.log").write_bytes(said)


def _pass_on(domain: str, said: bytes) -> None:
    click.echo(b"==> %s <==\n%s" % (domain.encode(), said))


def _show(domain: str, said: bytes) -> None:
    """A guest must not steer the terminal."""
    text = said.decode(errors="replace").replace("\r\n", "\n")
    shown = "".join(char if char.isprintable() or char in "\n\t" else "?" for char in text)
    click.echo(f"==> {domain} <==\n{shown}")
