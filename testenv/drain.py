"""A drain: no new lease is admitted; leases and holds are waited for. It leaves the cordon."""

from schemas.control import CordonRequest
from schemas.status import EnvironmentReport
from testenv.operate import Outcome, Result
from testenv.tables import kept
from testenv.vigil import Order, Refusals, leased

EMPTY = "empty"


def drain_order(reason: str) -> Order:
    """Cordon for `reason`, which leases that are revoked are told, too."""
    return Order(
        request=lambda ids: CordonRequest(environments=ids, reason=reason),
        accepted="cordoned",
        standing=standing,
        finished=EMPTY,
        revoked_for=reason or "its host is drained",
    )


def standing(env: EnvironmentReport, refused: Refusals) -> Outcome:
    """Whether `env`, which was cordoned, is empty."""
    if not env.cordoned:
        why = "somebody has uncordoned it meanwhile"
        return Outcome(target=env.id, result=Result.FAILED, detail=why)
    if env.lease:
        return leased(env, env.lease, refused)
    if env.hold:
        return Outcome(target=env.id, result=Result.HELD, detail=kept(env.hold))
    if env.offered:
        return Outcome(target=env.id, result=Result.LEASED, detail="its offer is being withdrawn")
    return Outcome(target=env.id, result=Result.DONE)
