"""Reading the host's configuration file, with errors that name file, key and allowed values."""

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from schemas.config import HostConfig
from schemas.errors import ConfigError


def load_config(path: Path) -> HostConfig:
    """The configuration in `path`. Raises ConfigError, in one line, for the first bad key."""
    try:
        document = tomllib.loads(path.read_text())
    except OSError as exc:
        raise ConfigError(path, f"cannot be read: {exc.strerror}") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise ConfigError(path, f"is not TOML: {exc}") from exc
    try:
        return HostConfig.model_validate(document)
    except ValidationError as exc:
        raise _config_error(path, document, exc.errors()) from exc


def _config_error(
    path: Path, document: Mapping[str, Any], errors: Sequence[ErrorDetails]
) -> ConfigError:
    first = errors[0]
    key = _key_in(document, first["loc"])
    if first["type"] == "extra_forbidden":
        allowed = ", ".join(_allowed_keys(first["loc"][:-1]))
        return ConfigError(path, f"unknown key; allowed here: {allowed}", key=key)
    # A value that fits no member of a union gives one error for each: all are allowed values.
    same = [error for error in errors if _key_in(document, error["loc"]) == key]
    wanted = " or ".join(_wanted(error) for error in same)
    given = f" (given: {first['input']!r})" if isinstance(first["input"], str | int | float) else ""
    return ConfigError(path, f"{wanted}{given}", key=key)


def _key_in(document: Mapping[str, Any], loc: tuple[int | str, ...]) -> str:
    """pydantic's location, less the parts that name a union's member and not a key of ours."""
    parts: list[str] = []
    here: Any = document
    for part in loc:
        try:
            here = here[part]
        except (KeyError, IndexError, TypeError):
            break
        parts.append(str(part))
    return ".".join(parts)


def _allowed_keys(section: tuple[int | str, ...]) -> list[str]:
    model: type[BaseModel] = HostConfig
    for part in section:
        annotation = model.model_fields[str(part)].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            break
        model = annotation
    return sorted(model.model_fields)


def _wanted(error: ErrorDetails) -> str:
    return error["msg"].removeprefix("Value error, ").removeprefix("Input ")
