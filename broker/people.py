"""How every command of ours treats a person: one line for an error, a question before harm."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click
from rich.console import Console

from schemas.errors import ConfigError, TestenvError


@contextmanager
def reported_errors(program: str) -> Iterator[None]:
    """Turn an expected error into one line on stderr and its documented exit status."""
    try:
        yield
    except TestenvError as error:
        click.echo(f"{program}: {error}", err=True)
        sys.exit(error.exit_status)


def confirm(yes: bool) -> None:
    """Go on only with `--yes`, or a person's. Raises ConfigError, click.Abort."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise ConfigError("--yes", "is needed where nobody can be asked")
    click.confirm("Go on?", abort=True, err=True)


def console() -> Console:
    """For tables on stdout."""
    # rich would read the `:cd:` in a MAC as an emoji. Off a terminal a table must not be folded to
    # 80 columns: somebody greps it.
    width = None if sys.stdout.isatty() else 160
    return Console(width=width, emoji=False, markup=False, highlight=False)
