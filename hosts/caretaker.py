"""Who makes an environment, resets it between leases, and describes it to a holder."""

import asyncio
import json
import logging
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from hosts.builder import Builder
from hosts.datafile import data_file, description, lease_data
from hosts.verify import Differences
from schemas.errors import ConfigError, HostError
from schemas.plan import Environment, HostPlan
from schemas.status import Lease
from schemas.terms import Terms

log = logging.getLogger(__name__)

T = TypeVar("T")

MAX_DATA_FILE = 1024 * 1024
"""Bytes; brokers limit packets, and no data file comes near."""

STEP_TIMEOUT_S = 120.0
"""How long building, fencing or turnover may take before the environment is called BROKEN."""


class Caretaker(Protocol):
    """Raises TestenvError from `build`, `rebuild`, `fence`, `seclude`, `connect`, `turn_over`: the
    environment cannot be offered, or held.

    Each of them may be run again, also after it failed or was cut short, by anyone's death.
    """

    @property
    def id(self) -> str: ...

    @property
    def number(self) -> str: ...

    @property
    def labels(self) -> tuple[str, ...]: ...

    async def build(self) -> None:
        """Make the environment, or bring what there is of it to its plan."""

    async def rebuild(self, plan: Environment) -> None:
        """Remove all that there is of it, and make it as `plan`, which is its plan from now on."""

    async def remove(self) -> None:
        """Have nothing left of it. It is in no plan any more, also where this raises a
        TestenvError: what is left then is a leak."""

    async def fence(self, lease: str) -> Differences:
        """Take it from the holder of `lease`, which has ended: nothing of it runs or can be
        reached. Returns what was found changed; `lease` is "" where nobody knows it any more."""

    async def seclude(self) -> None:
        """Nothing of it can be reached from outside, and it goes on as it is."""

    async def connect(self) -> None:
        """Its seed can be reached again, after `seclude`."""

    async def turn_over(self) -> None:
        """Make it as new, once it is fenced."""

    async def differences(self) -> Differences:
        """In what it is not as it is to be offered. Only while it is READY."""

    def data_file(self, lease: Lease, secret: str, terms: Terms | None) -> bytes:
        """The JSON text that the holder of `lease` gets; `secret` proves that it is that.
        `terms`: None for a person, who does not beat."""

    def describe(self) -> bytes:
        """The same without any lease, for the host's own hooks."""


class BuiltEnvironment:
    """An environment that the agent makes itself, from its plan, on libvirt and Open vSwitch."""

    def __init__(
        self, plan: HostPlan, env: Environment, builder: Builder, pool: ThreadPoolExecutor
    ) -> None:
        self._plan = plan
        self._env = env
        self._builder = builder
        self._pool = pool
        self.id = env.id
        self.number = str(env.number)
        self.labels = env.labels

    async def build(self) -> None:
        await self._step("building", partial(self._builder.build, self._env))
        self._sweep()

    async def rebuild(self, plan: Environment) -> None:
        self._env = plan
        await self._step("rebuilding", partial(self._builder.rebuild, plan))
        self._sweep()

    async def remove(self) -> None:
        await self._step("removing", partial(self._builder.remove, self._env))

    async def fence(self, lease: str) -> Differences:
        return await self._step("fencing", partial(self._builder.fence, self._env, lease))

    async def seclude(self) -> None:
        await self._step("secluding", partial(self._builder.seclude, self._env))

    async def connect(self) -> None:
        await self._step("connecting", partial(self._builder.connect, self._env))

    async def turn_over(self) -> None:
        await self._step("turnover", partial(self._builder.turn_over, self._env))
        self._sweep()

    async def differences(self) -> Differences:
        found = await self._step("verifying", partial(self._builder.differences, self._env))
        self._sweep()
        return found

    def data_file(self, lease: Lease, secret: str, terms: Terms | None) -> bytes:
        document = data_file(self._plan, self._env, lease_data(lease, secret, terms))
        return document.model_dump_json(by_alias=True, indent=2).encode()

    def describe(self) -> bytes:
        return description(self._plan, self._env).encode()

    async def _step(self, what: str, step: Callable[[], T]) -> T:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(STEP_TIMEOUT_S):
                return await loop.run_in_executor(self._pool, step)
        except TimeoutError as exc:
            raise HostError(f"{what} did not finish within {STEP_TIMEOUT_S:g} s") from exc

    def _sweep(self) -> None:
        """Look for leaks, but let no holder wait for that."""
        asyncio.get_running_loop().run_in_executor(self._pool, self._builder.sweep)


class ReadyMade:
    """An environment that exists already: its data file is all that the agent knows of it.

    The file is read again before every lease, so that an admin may change it at any time.
    """

    def __init__(self, path: Path, env_id: str, number: str, labels: tuple[str, ...] = ()) -> None:
        self._path = path
        self._document: dict[str, Any] = {}
        self.id = env_id
        self.number = number
        self.labels = labels

    async def build(self) -> None:
        self._document = read_data_file(self._path)

    async def rebuild(self, plan: Environment) -> None:  # noqa: ARG002
        """Raises HostError: its plan is not ours."""
        raise HostError(f"{self.id} was made by others", remedy="rebuild it as it was made")

    async def remove(self) -> None:
        """Nothing: its machines are somebody else's."""

    async def fence(self, lease: str) -> Differences:  # noqa: ARG002
        """Nothing: its machines are somebody else's."""
        return ()

    async def seclude(self) -> None:
        """Nothing, as with `fence`."""

    async def connect(self) -> None:
        """Nothing, as with `fence`."""

    async def turn_over(self) -> None:
        self._document = read_data_file(self._path)

    async def differences(self) -> Differences:
        """None that we could know of."""
        return ()

    def data_file(self, lease: Lease, secret: str, terms: Terms | None) -> bytes:
        try:
            self._document = read_data_file(self._path)
        except ConfigError as error:
            # The lease is granted already: it gets what was last good, and the next one waits.
            log.warning("%s: %s; using what was read before", self.id, error)
        ours = self._document.get("testenv")
        extension = dict(ours) if isinstance(ours, dict) else {}
        extension["lease"] = lease_data(lease, secret, terms).model_dump(mode="json")
        return json.dumps({**self._document, "testenv": extension}, indent=2).encode()

    def describe(self) -> bytes:
        return json.dumps(self._document, indent=2).encode()


def read_data_file(path: Path) -> dict[str, Any]:
    """The JSON object in `path`. Raises ConfigError, naming the file."""
    try:
        state = path.stat()
        if not stat.S_ISREG(state.st_mode):
            raise ConfigError(path, "is not a regular file")
        if state.st_size > MAX_DATA_FILE:
            raise ConfigError(path, f"is larger than {MAX_DATA_FILE} bytes")
        document = json.loads(path.read_text())
    except OSError as exc:
        raise ConfigError(path, f"cannot be read: {exc.strerror}") from exc
    except (ValueError, RecursionError) as exc:
        raise ConfigError(path, f"is not JSON: {exc}") from exc
    if not isinstance(document, dict) or not document:
        raise ConfigError(path, "must be a JSON object with at least one key")
    return document
