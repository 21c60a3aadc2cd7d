"""A rebuild: what is chosen is made anew from its host's configuration, as soon as it is free."""

from collections.abc import Iterable

from schemas.control import RebuildRequest
from schemas.status import EnvironmentReport, EnvState
from testenv.operate import Outcome, Result
from testenv.tables import kept
from testenv.targets import Chosen
from testenv.vigil import Order, Refusals, leased

TAKES_S = 600.0
"""From the end of the last lease until all is built: a host builds a few at a time, and each may
take two minutes."""

_FAILED = (EnvState.BROKEN, EnvState.QUARANTINED)


def rebuild_order(reason: str, chosen: Iterable[Chosen]) -> Order:
    """Rebuild for `reason`. `chosen`: as it was seen before, with the leases that ran then."""
    return Order(
        request=lambda ids: RebuildRequest(environments=ids, reason=reason),
        accepted="will be rebuilt",
        standing=Before(chosen).standing,
        finished="rebuilt",
        revoked_for=reason or "its host is rebuilt",
        takes_s=TAKES_S,
        recounts=True,
    )


class Before:
    """What was in use before environments were rebuilt: leases, and holds. None of them is in a
    rebuilt one."""

    def __init__(self, chosen: Iterable[Chosen]) -> None:
        reports = [one.view.report for one in chosen if one.view.report]
        envs = [env for report in reports for env in report.environments]
        self._leases = {env.lease.id for env in envs if env.lease}
        self._holds = {(env.id, env.hold.since) for env in envs if env.hold}

    def standing(self, env: EnvironmentReport, refused: Refusals) -> Outcome:
        """How far `env` is. Where its agent has started anew it is not `rebuilding` any more, but
        its next turnover is by the new configuration."""
        if env.lease and env.rebuilding:
            self._leases.add(env.lease.id)
        if env.lease and env.lease.id in self._leases:
            return leased(env, env.lease, refused)
        if env.hold and env.rebuilding:
            self._holds.add((env.id, env.hold.since))
        if env.hold and (env.id, env.hold.since) in self._holds:
            return Outcome(target=env.id, result=Result.HELD, detail=kept(env.hold))
        if env.rebuilding or env.state in (EnvState.BUILDING, EnvState.DIRTY):
            detail = f"is {env.state}"
            return Outcome(target=env.id, result=Result.UNDER_WAY, detail=detail)
        if env.state in _FAILED:
            detail = f"is {env.state}: {env.reason}"
            return Outcome(target=env.id, result=Result.FAILED, detail=detail)
        return Outcome(target=env.id, result=Result.DONE)
