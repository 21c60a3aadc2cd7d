"""Environments that are kept as they are, for people: asked for, taken over, listed."""

import asyncio
import getpass
import os
from collections.abc import Sequence

from pydantic import BaseModel

from broker.endpoint import Endpoint
from schemas.control import Held, HoldRequest
from schemas.lock import for_people
from schemas.status import Autohold, EnvironmentReport, EnvState, Hold
from testenv.fleet import Fleet, HostView, ask

POLL_S = 0.5
"""How often a host is asked whether it is so far."""
BEGINS_S = 20.0
"""How long an environment without a lease is waited for: it is withdrawn, and cut off."""


class HeldEnvironment(BaseModel):
    """A row of `testenv holds`."""

    environment: str
    state: EnvState
    hold: Hold


class HostAutohold(BaseModel):
    """An autohold of one host: each counts for itself."""

    host: str
    rule: Autohold


class Holds(BaseModel):
    """What `testenv holds --json` prints."""

    holds: tuple[HeldEnvironment, ...]
    autoholds: tuple[HostAutohold, ...]


def holds_of(fleet: Fleet) -> Holds:
    """All that the fleet's hosts tell of."""
    reports = [view.report for view in fleet.hosts if view.report]
    return Holds(
        holds=tuple(
            HeldEnvironment(environment=env.id, state=env.state, hold=env.hold)
            for report in reports
            for env in report.environments
            if env.hold
        ),
        autoholds=tuple(
            HostAutohold(host=report.host, rule=rule)
            for report in reports
            for rule in report.autoholds
        ),
    )


def report_of(view: HostView, environment: str) -> EnvironmentReport | None:
    """What its host says of it; None if that has it no more."""
    reports = view.report.environments if view.report else ()
    return next((env for env in reports if env.id == environment), None)


async def hold(
    endpoints: Sequence[Endpoint], view: HostView, request: HoldRequest, *, wait: bool
) -> Held:
    """Have the environment held; `wait` until it is, BEGINS_S at most, as long as no lease runs
    there.

    The answer tells whether it is held by now (`hold.since`). Raises BrokerError, HostError.
    """
    clock = asyncio.get_running_loop().time
    deadline = clock() + (BEGINS_S if wait else 0)
    held = await ask(endpoints, view, request, Held)
    again = HoldRequest(environment=request.environment, holder=request.holder, take=request.take)
    while not _is_enough(held, request) and clock() < deadline:
        await asyncio.sleep(POLL_S)
        held = await ask(endpoints, view, again, Held)
    return held


def _is_enough(held: Held, request: HoldRequest) -> bool:
    return held.data_file is not None if request.take else held.hold.since is not None


def person() -> str:
    """Who is at this machine, for people."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # containers run as users that nobody has named
        user = str(os.getuid())
    return for_people(f"{user}@{os.uname().nodename}")
