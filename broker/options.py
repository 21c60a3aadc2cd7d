"""The option that every command with a broker to find has in common."""

import click

from broker.endpoint import BROKER_VARIABLE, DEFAULT_BROKER

brokers_option = click.option(
    "-b",
    "--geard",
    "brokers",
    envvar=BROKER_VARIABLE,
    default=DEFAULT_BROKER,
    show_default=True,
    metavar="LIST",
    help=f"Gearman brokers, host:port separated by commas [env: {BROKER_VARIABLE}].",
)
"""`brokers`: a list for `broker.endpoint.parse_endpoints`; the letter is toci's."""
