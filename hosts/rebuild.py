"""Environments that are made anew from a configuration that was read again, each in its turn."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hosts.admission import Admission, Bar
from hosts.caretaker import Caretaker
from schemas.config import HostConfig
from schemas.errors import ConfigError
from schemas.plan import Environment, HostPlan


@dataclass(frozen=True)
class Workshop:
    """What an agent rebuilds its environments with.

    `replan`: the plan of the configuration as it is now; raises ConfigError for one that must not
    be used. Reads files. `caretaker`: of an environment that is new in the plan.
    """

    replan: Callable[[], HostPlan]
    caretaker: Callable[[Environment], Caretaker]


class Remaking:
    """One environment's rebuild: asked for, then under way. As long as either, it is not offered.

    That is not journalled: an agent that starts anew makes everything by its new configuration.
    """

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._plan: Environment | None = None
        self.asked = asyncio.Event()
        """Set until it begins."""

    @property
    def is_pending(self) -> bool:
        """Whether it is asked for, or under way."""
        return self._admission.reason(Bar.REBUILD) is not None

    def ask(self, plan: Environment | None, reason: str) -> bool:
        """Have it made as `plan`, or removed if that is None, once no lease runs in it.

        False if just that is asked for, or under way, already.
        """
        if self.is_pending and plan == self._plan:
            return False
        self._plan = plan
        self._admission.close(Bar.REBUILD, reason)
        self.asked.set()
        return True

    def begin(self) -> Environment | None:
        """What to make it as; None if it is to be removed."""
        self.asked.clear()
        return self._plan

    def end(self) -> None:
        """It is made, or could not be; unless it has been asked for once more, that is all."""
        if not self.asked.is_set():
            self._admission.open(Bar.REBUILD)


def refuse_other_changes(before: HostConfig, now: HostConfig, source: str | Path) -> None:
    """A rebuild takes up what `[environments]` says but for its labels, which brokers know.

    Raises ConfigError, naming what else has changed in `source`.
    """
    changed = [
        f"[{section}]"
        for section in HostConfig.model_fields
        if section != "environments" and getattr(now, section) != getattr(before, section)
    ]
    if now.environments.labels != before.environments.labels:
        changed.append("environments.labels")
    if changed:
        raise ConfigError(
            source,
            f"{', '.join(changed)} changed since the agent started, which a rebuild can't take up",
            remedy="restart the agent instead: leases outlive that",
        )
