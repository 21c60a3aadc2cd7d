"""The options that every command with a broker to find has in common."""

from collections.abc import Callable
from functools import wraps
from typing import Any, NamedTuple, TypeVar

import click

from broker.endpoint import BROKER_VARIABLE, DEFAULT_BROKER, Endpoint, parse_endpoints
from broker.tls import CA_VARIABLE, CERT_VARIABLE, KEY_VARIABLE, tls_files

R = TypeVar("R")


class BrokerOptions(NamedTuple):
    """What was given; not looked at yet, so that a mistake is told like any other error."""

    brokers: str
    tls_cert: str | None = None
    tls_key: str | None = None
    tls_ca: str | None = None

    def endpoints(self) -> tuple[Endpoint, ...]:
        """The brokers to talk to. Raises ConfigError."""
        tls = tls_files(self.tls_cert, self.tls_key, self.tls_ca)
        return parse_endpoints(self.brokers, "--geard", tls)


_OPTIONS = (
    click.option(
        "-b",
        "--geard",
        "brokers",
        envvar=BROKER_VARIABLE,
        default=DEFAULT_BROKER,
        show_default=True,
        metavar="LIST",
        help=f"Gearman brokers, host:port separated by commas [env: {BROKER_VARIABLE}].",
    ),
    click.option(
        "--tls-cert",
        envvar=CERT_VARIABLE,
        metavar="FILE",
        help=f"Our certificate; with it, TLS is spoken [env: {CERT_VARIABLE}].",
    ),
    click.option(
        "--tls-key", envvar=KEY_VARIABLE, metavar="FILE", help=f"Its key [env: {KEY_VARIABLE}]."
    ),
    click.option(
        "--tls-ca",
        envvar=CA_VARIABLE,
        metavar="FILE",
        help=f"The CA that signs the brokers' certificates [env: {CA_VARIABLE}].",
    ),
)
"""The letter is toci's."""


def broker_options(command: Callable[..., R]) -> Callable[..., R]:
    """Give a click command these options, as one argument `brokers`: BrokerOptions."""

    @wraps(command)
    def with_brokers(*args: Any, **kwargs: Any) -> R:
        given = BrokerOptions(*(kwargs.pop(name) for name in BrokerOptions._fields))
        return command(*args, brokers=given, **kwargs)

    decorated: Callable[..., R] = with_brokers
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    return decorated
