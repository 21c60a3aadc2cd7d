"""What the journal's rows say of holds: the types, and the statements that read and write them."""

import sqlite3
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from schemas.status import Autohold, Hold

Statement = tuple[str, tuple[Any, ...]]
"""For SQLite, with its values."""


@dataclass(frozen=True)
class Key:
    """What proves that a person has been given a held environment; of its secret only the hash."""

    id: str
    generation: int
    secret_hash: str


@dataclass(frozen=True)
class StoredHold:
    """A hold, with the credentials of its holder, which nobody has at first."""

    hold: Hold
    key: Key | None = None


@dataclass(frozen=True)
class StoredHolds:
    """All of a host. `holds`: by environment."""

    holds: dict[str, StoredHold] = field(default_factory=dict)
    autoholds: tuple[Autohold, ...] = ()


def put_hold(env_id: str, stored: StoredHold) -> Statement:
    """The environment's is this one now."""
    key = stored.key or Key("", 0, "")
    return (
        "INSERT OR REPLACE INTO holds VALUES (?, ?, ?, ?, ?)",
        (env_id, stored.hold.model_dump_json(), key.id, key.generation, key.secret_hash),
    )


def drop_hold(env_id: str) -> Statement:
    """The environment is not held any more."""
    return "DELETE FROM holds WHERE environment = ?", (env_id,)


def put_generation(env_id: str, generation: int) -> Statement:
    """The environment's newest credentials are of `generation`."""
    return "UPDATE environments SET generation = ? WHERE id = ?", (generation, env_id)


def put_autohold(rule: Autohold) -> Statement:
    """In place of the one with its id; gone if none are `left`."""
    if not rule.left:
        return "DELETE FROM autoholds WHERE id = ?", (rule.id,)
    return "INSERT OR REPLACE INTO autoholds VALUES (?, ?)", (rule.id, rule.model_dump_json())


def stored_holds(db: sqlite3.Connection) -> StoredHolds:
    """All there are. Raises sqlite3.Error, ValueError."""
    rows = db.execute("SELECT environment, hold, key, generation, secret_hash FROM holds")
    holds = {
        env_id: StoredHold(_hold(hold), Key(key, generation, secret) if key else None)
        for env_id, hold, key, generation, secret in rows
    }
    rules = db.execute("SELECT autohold FROM autoholds ORDER BY rowid")
    return StoredHolds(holds, tuple(Autohold.model_validate_json(rule) for (rule,) in rules))


def _hold(text: str) -> Hold:
    hold = Hold.model_validate_json(text)
    for moment in (hold.since, hold.until):
        _must_have_zone(moment)
    return hold


def _must_have_zone(moment: datetime | None) -> None:
    if moment is not None and moment.tzinfo is None:
        raise ValueError(f"{moment} has no time zone")
