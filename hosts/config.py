"""Reading the host's configuration file."""

from pathlib import Path

from schemas.config import HostConfig
from schemas.toml import parse, read_toml


def load_config(path: Path) -> HostConfig:
    """The configuration in `path`. Raises ConfigError, in one line, for the first bad key."""
    return parse(HostConfig, read_toml(path), path)
