"""Addresses of Gearman brokers, as options and configuration spell them. No gear here: cheap."""

import re
from typing import NamedTuple

from broker.tls import TlsFiles, client_context
from schemas.errors import ConfigError

BROKER_VARIABLE = "TESTENV_BROKER"
"""The environment variable that names the brokers where no option does."""

DEFAULT_BROKER = "127.0.0.1:4730"

DEFAULT_PORT = 4730
"""Gearman's port (IANA)."""

# Not compiled here: a client needs one of them, once.
_NAME = r"[A-Za-z0-9_]([A-Za-z0-9._-]*[A-Za-z0-9_.])?"
_V6 = r"[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*(%[A-Za-z0-9._-]+)?"
_BRACKETED = r"\[(?P<host>[^\[\]]*)\](:(?P<port>.*))?"


class Endpoint(NamedTuple):
    """Where a broker listens: `host` is a name or an address (IPv6 without brackets).

    `tls`: what to show and whom to trust there; None for plain text.
    """

    host: str
    port: int = DEFAULT_PORT
    tls: TlsFiles | None = None

    def __str__(self) -> str:
        """`host:port`, with brackets around an IPv6 address; `parse_endpoint` reads it back."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def is_numeric(self) -> bool:
        """Whether `host` is one address, rather than a name that may have several."""
        return ":" in self.host or self.host.replace(".", "").isdigit()


def parse_endpoint(
    text: str, source: str, *, any_port: bool = False, needs_port: bool = False
) -> Endpoint:
    """Read `host`, `host:port`, `[v6]` or `[v6]:port`.

    `source` is the option or file that the text came from, for the message. Port 0 is accepted
    with `any_port` only (it means "pick one", for a listening address). `needs_port`: there is
    no port to take where none is given, as it is no broker that listens. Raises ConfigError.
    """
    text = text.strip()
    if text.startswith("[") and (bracketed := re.fullmatch(_BRACKETED, text)):
        host, port = bracketed["host"], bracketed["port"]
        valid = re.fullmatch(_V6, host)
    else:
        host, colon, rest = text.partition(":")
        port = rest if colon else None
        if ":" in rest:
            raise _refusal(source, text, "put brackets around an IPv6 address: [::1]:4730")
        valid = re.fullmatch(_NAME, host)
    if not valid:
        raise _refusal(source, text, "give HOST or HOST:PORT, as in 127.0.0.1:4730")
    if port is None:
        if needs_port:
            raise ConfigError(source, f"{text!r} has no port", remedy="as in 127.0.0.1:9100")
        return Endpoint(host)
    lowest = 0 if any_port else 1
    if not (port.isascii() and port.isdigit() and lowest <= int(port) <= 65535):
        raise _refusal(source, text, f"a port is a number from {lowest} to 65535")
    return Endpoint(host, int(port))


def parse_endpoints(
    text: str, source: str = "--geard", tls: TlsFiles | None = None
) -> tuple[Endpoint, ...]:
    """Read a comma-separated list of at least one address; duplicates are dropped.

    `source` is the option or file that the text came from; `tls` is for all of them. Raises
    ConfigError naming `source`, or a file of `tls` that is not usable.
    """
    if tls:
        client_context(tls)
    parsed = (parse_endpoint(part, source)._replace(tls=tls) for part in text.split(","))
    return tuple(dict.fromkeys(parsed))


def _refusal(source: str, text: str, remedy: str) -> ConfigError:
    return ConfigError(source, f"{text!r} is not a broker address", remedy=remedy)
