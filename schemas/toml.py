"""Reading a configuration file, with errors that name file, key and allowed values."""

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from schemas.errors import ConfigError

Model = TypeVar("Model", bound=BaseModel)


def read_toml(path: Path) -> dict[str, Any]:
    """The document in `path`. Raises ConfigError, in one line."""
    try:
        return tomllib.loads(path.read_text())
    except OSError as exc:
        raise ConfigError(path, f"cannot be read: {exc.strerror}") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise ConfigError(path, f"is not TOML: {exc}") from exc


def parse(model: type[Model], document: Mapping[str, Any], source: str | Path) -> Model:
    """`document` as a `model`. Raises ConfigError, in one line, for the first bad key."""
    try:
        return model.model_validate(document)
    except ValidationError as exc:
        raise _config_error(model, source, document, exc.errors()) from exc


def _config_error(
    model: type[BaseModel],
    source: str | Path,
    document: Mapping[str, Any],
    errors: Sequence[ErrorDetails],
) -> ConfigError:
    first = errors[0]
    key = _key_in(document, first["loc"])
    if first["type"] == "extra_forbidden":
        allowed = ", ".join(_allowed_keys(model, first["loc"][:-1]))
        return ConfigError(source, f"unknown key; allowed here: {allowed}", key=key)
    if first["type"] == "missing":
        key = ".".join(map(str, first["loc"]))
        return ConfigError(source, "is required", key=key)
    # A value that fits no member of a union gives one error for each: all are allowed values.
    same = [error for error in errors if _key_in(document, error["loc"]) == key]
    wanted = " or ".join(dict.fromkeys(_wanted(error) for error in same))
    given = f" (given: {first['input']!r})" if isinstance(first["input"], str | int | float) else ""
    return ConfigError(source, f"{wanted}{given}", key=key)


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


def _allowed_keys(model: type[BaseModel], section: tuple[int | str, ...]) -> list[str]:
    for part in section:
        annotation = model.model_fields[str(part)].annotation
        # A section that may be missing is `Section | None`.
        sections = [
            one
            for one in (annotation, *get_args(annotation))
            if isinstance(one, type) and issubclass(one, BaseModel)
        ]
        if not sections:
            break
        model = sections[0]
    return sorted(model.model_fields)


def _wanted(error: ErrorDetails) -> str:
    return error["msg"].removeprefix("Value error, ").removeprefix("Input ")
