"""What the commands of testenv-host have in common."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

from broker.people import reported_errors
from schemas.exits import ExitStatus

_HOST_EXTRA = ("libvirt", "lxml", "ovs")
"""What only the `host` extra installs: `plan` and `serve` do without, so it is imported late."""


@contextmanager
def told_errors() -> Iterator[None]:
    """Errors in one line; also that what only the `host` extra installs is missing."""
    try:
        with reported_errors("testenv-host"):
            yield
    except ModuleNotFoundError as error:
        if error.name not in _HOST_EXTRA:
            raise
        click.echo(
            f"testenv-host: {error.name} is not installed; install testenv with its host extra",
            err=True,
        )
        sys.exit(ExitStatus.FAILED)
