"""Whether this host can carry its plan: `testenv-host check`."""

import asyncio
from collections.abc import Sequence

from broker.endpoint import Endpoint
from broker.link import Link
from hosts.drivers.probe import Check, check_drivers
from schemas.config import HostConfig
from schemas.errors import BrokerUnreachable
from schemas.plan import Bound, HostPlan

BROKER_TIMEOUT_S = 3.0


def check_host(
    config: HostConfig, plan: HostPlan, brokers: Sequence[Endpoint]
) -> tuple[Check, ...]:
    """Everything that `run` needs, without changing anything; takes up to 20 s."""
    return (
        *check_drivers(config),
        *check_resources(plan),
        *asyncio.run(_check_brokers(brokers)),
    )


def check_resources(plan: HostPlan) -> tuple[Check, ...]:
    """Memory, CPUs and disk for as many environments as are planned. Pure."""
    if not plan.count.value:
        least = f"not even one environment: {plan.count.limited_by} is what lacks"
        return (Check("environments", False, least, "see testenv-host plan"),)
    return tuple(
        _check_resource(bound, plan.count.value)
        for bound in plan.count.bounds
        if bound.resource != "addresses"
    )


def _check_resource(bound: Bound, count: int) -> Check:
    needed = bound.each * count + bound.reserve
    unit = f" {bound.unit}" if bound.unit else ""
    detail = f"{needed}{unit} needed with the reserve, {bound.total}{unit} here"
    if count <= bound.allows:
        return Check(bound.resource, True, detail)
    if bound.resource == "cpus":
        # CPUs are shared, and an admin asked for this count: slow, but nothing fails.
        return Check(bound.resource, True, f"{detail}: overcommitted")
    remedy = "lower environments.count or the machines' sizes"
    if bound.resource == "hugepages":
        remedy += f", or reserve more: sysctl vm.nr_hugepages={needed}"
    return Check(bound.resource, False, detail, remedy)


async def _check_brokers(brokers: Sequence[Endpoint]) -> list[Check]:
    return await asyncio.gather(*(check_broker(one) for one in brokers))


async def check_broker(endpoint: Endpoint) -> Check:
    """Whether a broker answers, and takes our certificate where there is one."""
    try:
        # A link as the agent has it: with TLS, a broker's status is for operators only.
        link = await Link.open(endpoint, client_id="testenv-host", timeout=BROKER_TIMEOUT_S)
        await link.aclose()
    except BrokerUnreachable as error:
        [(address, why)] = error.attempts
        remedy = "see that a broker runs there, or change host.brokers"
        return Check("broker", False, f"{address}: {why}", remedy)
    return Check("broker", True, f"{endpoint}{' with TLS' if endpoint.tls else ''}")
