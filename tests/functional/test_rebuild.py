"""Environments are rebuilt one by one, over a real broker: each once its own lease has ended."""

import asyncio
import signal
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from broker.client import Outcome as Answer
from hosts.admission import Bar, Shutdown
from hosts.agent import Agent
from hosts.caretaker import Caretaker
from hosts.journal import Journal
from hosts.plan import plan_host
from hosts.quarantine import Rules
from hosts.rebuild import Workshop
from hosts.state import Event
from hosts.vetting import Standards
from schemas.config import HostConfig
from schemas.errors import ConfigError, DriverError
from schemas.plan import Environment, Facts, HostPlan
from schemas.status import EnvState, HostReport
from testenv.fleet import look
from testenv.operate import Outcome, Result
from testenv.rebuild import rebuild_order
from testenv.targets import choose
from testenv.vigil import Patience, Vigil
from tests.functional.brokers import RunningBroker
from tests.functional.client_rig import on_one_broker
from tests.functional.slot_rig import (
    QUICK,
    SOON_S,
    Counting,
    client,
    comes,
    journalled,
    living_slot,
    reaches,
)

pytestmark = on_one_broker


def planned(count: int = 1, memory_mib: int = 256) -> HostPlan:
    environments = {
        "count": count,
        "seed": {"image": "/images/seed.qcow2"},
        "nodes": {"memory_mib": memory_mib},
    }
    config = HostConfig.model_validate({"host": {"name": "te1"}, "environments": environments})
    return plan_host(config, Facts(memory_mib=9999, cpus=9, disk_gib=99))


BIGGER = planned(memory_mib=512).environments[0]


async def test_a_lease_ends_by_itself_and_its_environment_is_fenced_and_rebuilt(
    broker: RunningBroker,
) -> None:
    caretaker = Counting()
    async with living_slot(broker, caretaker) as slot, client(broker) as holder:
        lock = await holder.request()
        offer = await holder.offer()
        assert slot.rebuild(BIGGER, "more memory")
        assert not slot.rebuild(BIGGER, "more memory"), "it is asked for already"
        report = slot.report()
        assert (report.rebuilding, report.rebuild_reason) == (True, "more memory")
        waiting = await holder.request()
        offer.complete()
        assert (await lock.result()).outcome is Answer.COMPLETE
        offer = await holder.offer()
        assert (caretaker.fences, caretaker.turnovers) == (1, 0)
        assert caretaker.rebuilds == [BIGGER]
        assert not slot.report().rebuilding
        await journalled(slot, event=Event.REBUILD, reason="more memory")
        offer.complete()
        async with asyncio.timeout(SOON_S):
            await waiting.result()


async def test_one_that_is_cordoned_is_rebuilt_at_once_and_stays_cordoned(
    broker: RunningBroker,
) -> None:
    caretaker, admission = Counting(), Shutdown().admission()
    admission.close(Bar.CORDON, "new disk")
    async with living_slot(broker, caretaker, admission) as slot:
        await reaches(slot, EnvState.READY)
        slot.rebuild(BIGGER, "")
        await comes(lambda: caretaker.rebuilds == [BIGGER])
        await reaches(slot, EnvState.READY)
        assert slot.report().cordon_reason == "new disk"


async def test_a_quarantined_one_is_trusted_again_and_a_failed_one_is_broken(
    broker: RunningBroker,
) -> None:
    caretaker = Counting()
    caretaker.trouble = DriverError("brbm1", "stuck")
    standards = Standards(quarantine=Rules(turnovers=2))
    async with living_slot(broker, caretaker, standards=standards) as slot:
        await reaches(slot, EnvState.QUARANTINED)
        slot.rebuild(BIGGER, "")
        await comes(lambda: caretaker.rebuilds)
        await reaches(slot, EnvState.BROKEN)
        assert slot.report().reason == "object brbm1: stuck"
        assert not slot.report().rebuilding
        caretaker.trouble = None
        slot.rebuild(BIGGER, "")
        await reaches(slot, EnvState.READY)


class Named(Counting):
    def __init__(self, env: Environment) -> None:
        super().__init__()
        self.id, self.number = env.id, str(env.number)


class Site:
    """A host whose agent runs here, and whose configuration may be edited."""

    def __init__(self) -> None:
        self.configured = planned(count=2)
        self.caretakers: dict[str, Named] = {}

    def replan(self) -> HostPlan:
        if not self.configured.environments:
            raise ConfigError("host.toml", "leaves no environment")
        return self.configured

    def caretaker(self, env: Environment) -> Caretaker:
        self.caretakers[env.id] = Named(env)
        return self.caretakers[env.id]


class Operator:
    """Rebuilds the whole host, and waits for it."""

    def __init__(self, broker: RunningBroker, agent: Agent) -> None:
        self._endpoints = (broker.endpoint,)
        self._agent = agent
        self.told: list[str] = []

    async def ready(self, count: int) -> None:
        """Wait until the host is seen, with `count` environments that are ready."""

        def are_ready(report: HostReport) -> bool:
            return [env.state for env in report.environments] == count * [EnvState.READY]

        await comes(lambda: are_ready(self._agent.report()))
        async with asyncio.timeout(SOON_S):
            while not (await look(self._endpoints)).hosts:
                await asyncio.sleep(0.01)

    async def rebuild(self, patience: Patience, target: str = "te1") -> dict[str, Outcome]:
        chosen = choose(await look(self._endpoints), [target])
        order = rebuild_order("", chosen)
        vigil = Vigil(self._endpoints, chosen, order, lambda _, text: self.told.append(text))
        async with asyncio.timeout(SOON_S):
            return {each.target: each for each in await vigil.run(patience)}


@asynccontextmanager
async def operated(broker: RunningBroker, site: Site) -> AsyncIterator[Operator]:
    """An agent of `site` that lives in this process."""
    with tempfile.TemporaryDirectory(prefix="testenv-rebuild-") as folder:
        path = Path(folder) / "journal.db"
        async with Journal.open(path, now=partial(datetime.now, UTC)) as journal:
            agent = Agent(
                "te1",
                [broker.endpoint],
                [site.caretaker(env) for env in site.configured.environments],
                journal,
                drain_timeout_s=0,
                timing=QUICK,
                workshop=Workshop(site.replan, site.caretaker),
            )
            life = asyncio.create_task(agent.run())
            try:
                yield Operator(broker, agent)
            finally:
                signal.raise_signal(signal.SIGTERM)
                await asyncio.wait([life], timeout=SOON_S)


async def test_a_host_is_rebuilt_as_leases_end_and_waiting_clients_are_served(
    broker: RunningBroker,
) -> None:
    site = Site()
    async with operated(broker, site) as operator, client(broker) as holder:
        await operator.ready(2)
        await holder.request()
        offer = await holder.offer()
        site.configured = planned(count=2, memory_mib=512)
        left = await operator.rebuild(Patience(waits=True, deadline_s=0.5))
        assert sorted(each.result for each in left.values()) == [Result.DONE, Result.LEASED]
        assert "leased by" in operator.told[-1]
        waiting = asyncio.create_task(operator.rebuild(Patience(waits=True)))
        await holder.request()
        offer.complete()
        (await holder.offer()).complete()
        assert {each.result for each in (await waiting).values()} == {Result.DONE}
        for env in site.configured.environments:
            assert env in site.caretakers[env.id].rebuilds


async def test_a_count_that_grows_or_shrinks_is_taken_up(broker: RunningBroker) -> None:
    site = Site()
    async with operated(broker, site) as operator:
        await operator.ready(2)
        site.configured = planned(count=3)
        grown = await operator.rebuild(Patience(waits=True))
        assert {name: each.result for name, each in grown.items()} == {
            "te1/1": Result.DONE,
            "te1/2": Result.DONE,
            "te1/3": Result.DONE,
        }
        await operator.ready(3)
        site.configured = planned(count=1)
        shrunk = await operator.rebuild(Patience(waits=True))
        assert {name: each.result for name, each in shrunk.items()} == {
            "te1/1": Result.DONE,
            "te1/2": Result.REMOVED,
            "te1/3": Result.REMOVED,
        }
        assert site.caretakers["te1/3"].is_removed
        await operator.ready(1)


async def test_a_bad_configuration_is_refused_and_nothing_is_destroyed(
    broker: RunningBroker,
) -> None:
    site = Site()
    async with operated(broker, site) as operator:
        await operator.ready(2)
        site.configured = site.configured.model_copy(update={"environments": ()})
        [outcome] = (await operator.rebuild(Patience(waits=True))).values()
        assert outcome.result is Result.FAILED
        assert "host.toml: leaves no environment" in outcome.detail
        assert not any(each.rebuilds or each.is_removed for each in site.caretakers.values())
        await operator.ready(2)


async def test_a_failed_environment_is_broken_and_the_others_come_back(
    broker: RunningBroker,
) -> None:
    site = Site()
    async with operated(broker, site) as operator:
        await operator.ready(2)
        site.caretakers["te1/1"].trouble = DriverError("seed_1", "no such image")
        outcomes = await operator.rebuild(Patience(waits=True))
        assert outcomes["te1/1"].result is Result.FAILED
        assert outcomes["te1/1"].detail == "is broken: object seed_1: no such image"
        assert outcomes["te1/2"].result is Result.DONE
