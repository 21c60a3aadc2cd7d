"""`testenv-broker pki`: certificates for a fleet's brokers, hosts, jobs and operators."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from schemas.errors import ConfigError, PkiError

if TYPE_CHECKING:
    from broker.pki_store import Issued, Store

DEFAULT_DIR = Path("/etc/testenv/pki")
DEFAULT_DAYS = 365
MAX_DAYS = 3650

ROLES = ("host", "job", "operator", "broker")

folder_option = click.option(
    "--dir",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=DEFAULT_DIR,
    show_default=True,
    metavar="DIR",
    help="The authority's folder: keep its ca.key safe.",
)


@click.group()
def pki() -> None:
    """Make and revoke the certificates of a fleet.

    \b
    Example:
      testenv-broker pki init broker-1.example.org
      testenv-broker pki issue job ci
    """


@pki.command()
@click.argument("names", nargs=-1, required=True, metavar="BROKER_NAME...")
@folder_option
def init(names: tuple[str, ...], folder: Path) -> None:
    """Make a certificate authority, and the broker's certificate.

    Clients check that the name or address by which they reach the broker is among BROKER_NAMEs.
    Prints the files that it makes.

    \b
    Example:
      testenv-broker pki init broker.example.org 192.0.2.10
    """
    _print(_store(folder).init(names))


@pki.command()
@click.argument("role", type=click.Choice(ROLES))
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option(
    "--days",
    type=click.IntRange(1, MAX_DAYS),
    default=DEFAULT_DAYS,
    show_default=True,
    help="How long it is good for.",
)
@folder_option
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(),
    metavar="DIR",
    help="Where to put certificate, key and ca.crt [default: the current folder].",
)
@click.option("--again", is_flag=True, help="Although NAME has a live certificate.")
def issue(
    role: str, names: tuple[str, ...], days: int, folder: Path, out: Path, again: bool
) -> None:
    """Make a certificate and its key.

    A host's NAME is its agent's name, host.name of its configuration. Only a broker has several.
    Prints the files that it makes: give them to its bearer, and keep no copy of the key.

    \b
    Example:
      testenv-broker pki issue host te-host-01 --out /root/te-host-01
    """
    _print(_store(folder).issue(role, names, days, out, again=again))


@pki.command()
@click.argument("who", metavar="NAME|ROLE/NAME")
@click.option("--yes", is_flag=True, help="Do not ask.")
@folder_option
def revoke(who: str, yes: bool, folder: Path) -> None:
    """Revoke all live certificates of one bearer.

    \b
    Example:
      testenv-broker pki revoke host/te-host-01 && systemctl reload testenv-broker
    """
    store = _store(folder)
    doomed = store.live(who)
    for one in doomed:
        click.echo(f"revoking {one.label}, serial {one.serial:x}", err=True)
    if not yes:
        if not sys.stdin.isatty():
            raise ConfigError("--yes", "is needed where nobody can be asked")
        click.confirm("Go on?", abort=True, err=True)
    crl = store.revoke([one.serial for one in doomed])
    click.echo(f"send the broker SIGHUP, so that it reads {crl} again", err=True)
    _print([crl])


@pki.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="Print them as JSON.")
@folder_option
def list_issued(as_json: bool, folder: Path) -> None:
    """List all certificates that were issued.

    \b
    Example:
      testenv-broker pki list --json | jq -r '.[] | select(.state == "live").name'
    """
    issued = _store(folder).issued()
    if as_json:
        click.echo(json.dumps([_document(one) for one in issued], indent=2))
        return
    for one in issued:
        click.echo(f"{one.label:<44} {one.state:<8} until {one.expires:%Y-%m-%d}  {one.serial:x}")


def _document(one: "Issued") -> dict[str, str]:
    return {
        "role": one.role,
        "name": one.name,
        "serial": f"{one.serial:x}",
        "issued": one.issued.isoformat(),
        "expires": one.expires.isoformat(),
        "state": one.state,
    }


def _store(folder: Path) -> "Store":
    """Imported late: only who handles certificates needs the `cryptography` library."""
    try:
        from broker.pki_store import Store
    except ModuleNotFoundError as exc:
        if exc.name != "cryptography":
            raise
        raise PkiError(
            "the cryptography library is not installed",
            remedy="install testenv with its broker extra",
        ) from exc
    return Store(folder)


def _print(files: list[Path]) -> None:
    for file in files:
        click.echo(file)
