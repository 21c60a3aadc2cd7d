"""Reading the broker's configuration: a file, and options that override it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from broker.endpoint import parse_endpoint
from broker.server.access import Role
from schemas.broker import AccessSection, BrokerConfig, TlsSection
from schemas.errors import ConfigError
from schemas.toml import parse, read_toml

ATTRIBUTES = ("CN", "O", "OU", "C", "L", "ST")
"""Of a certificate's subject, as patterns of the access section name them."""


def load_config(path: Path | None, options: Mapping[str, Any]) -> BrokerConfig:
    """The configuration in `path`, with `options` in place of what it says.

    `options` has the file's form; its paths start at the current directory. Raises ConfigError,
    in one line, for the first bad key.
    """
    document = read_toml(path) if path else {}
    source: str | Path = path or "options"
    for key, value in options.items():
        inner = document.get(key)
        document[key] = inner | value if isinstance(inner, dict) else value
    config = parse(BrokerConfig, document, source)
    parse_endpoint(config.listen, f"{source}: listen", any_port=True)
    if config.http:
        where = f"{source}: http.listen"
        parse_endpoint(config.http.listen, where, any_port=True, needs_port=True)
    _check_access(config.access, source)
    if path and config.tls:
        own = options.get("tls", {})
        tls = _relative_to(path.parent, config.tls, besides=own)
        config = config.model_copy(update={"tls": tls})
    return config


def _relative_to(folder: Path, tls: TlsSection, *, besides: Mapping[str, Any]) -> TlsSection:
    """A configuration file's relative paths start at its folder; options' paths do not."""
    files = {
        key: folder / file
        for key in TlsSection.model_fields
        if key not in besides and (file := getattr(tls, key))
    }
    return tls.model_copy(update=files)


def _check_access(access: AccessSection, source: str | Path) -> None:
    for role in Role:
        for pattern in getattr(access, role):
            for part in pattern.split(","):
                attribute, equals, glob = part.partition("=")
                if not (equals and glob.strip() and attribute.strip() in ATTRIBUTES):
                    raise ConfigError(
                        source,
                        f"{pattern!r} is not ATTRIBUTE=GLOB[,ATTRIBUTE=GLOB]...",
                        key=f"access.{role}",
                        remedy=f"attributes: {', '.join(ATTRIBUTES)}",
                    )
