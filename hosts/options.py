"""What the commands of testenv-host have in common."""

import os
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from broker.endpoint import Endpoint, parse_endpoints
from broker.people import reported_errors
from broker.tls import TlsFiles
from hosts.config import load_config
from hosts.facts import machine_facts
from hosts.plan import plan_host
from schemas.config import HostConfig
from schemas.errors import ConfigError
from schemas.exits import ExitStatus
from schemas.names import HOST_PATTERN
from schemas.plan import HostPlan

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


def load(config_path: Path) -> tuple[HostConfig, HostPlan]:
    """The configuration, and what it stands for on this machine. Raises ConfigError."""
    config = load_config(config_path)
    endpoints_of(config, config_path)
    return config, plan_host(config, machine_facts(config.host.state_dir), config_path)


def endpoints_of(config: HostConfig, source: Path) -> tuple[Endpoint, ...]:
    """Its brokers, with its certificate for them. Raises ConfigError."""
    tls = None
    if config.tls:
        files = (config.tls.cert, config.tls.key, config.tls.ca)
        tls = TlsFiles(*(source.parent / file for file in files))
    return parse_endpoints(",".join(config.host.brokers), f"{source}: host.brokers", tls)


def served_state_dir(state_dir: Path | None, name: str) -> Path:
    """Where the `serve` agent `name` keeps its state."""
    home = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    return (state_dir or home / "testenv") / name


def agent_name(number: str) -> str:
    """Of a `serve` agent. Raises ConfigError."""
    name = f"{socket.gethostname()}-{number}"
    if not re.fullmatch(HOST_PATTERN, name):
        raise ConfigError("--tenum", f"{number!r} does not make a name: letters, digits, . _ -")
    return name
