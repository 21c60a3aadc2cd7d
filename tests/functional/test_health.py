"""What keeps an environment from being offered, over a real broker: a sick host, a change behind
our back, too many failures."""

import asyncio

from hosts.quarantine import Rules
from hosts.state import Event
from hosts.verify import Difference
from hosts.vetting import Standards
from hosts.vitals import Vital
from schemas.errors import DriverError
from schemas.status import EnvState
from tests.functional.brokers import RunningBroker
from tests.functional.client_rig import on_one_broker
from tests.functional.slot_rig import (
    SOON_S,
    Counting,
    client,
    comes,
    journalled,
    living_slot,
    offered,
    reaches,
)

pytestmark = on_one_broker

OFTEN = Standards(check_interval_s=0.1)


class Host:
    """A host that is as well as it is told to be."""

    def __init__(self) -> None:
        self.trouble: str | None = None

    @property
    def vital(self) -> Vital:
        return Vital("host", lambda: self.trouble)


async def is_offered(broker: RunningBroker, count: int) -> None:
    async with asyncio.timeout(SOON_S):
        while await offered(broker.endpoint) != count:
            await asyncio.sleep(0.01)


async def test_a_sick_host_offers_nothing_until_it_is_well_and_lets_leases_run(
    broker: RunningBroker,
) -> None:
    host, caretaker = Host(), Counting()
    async with (
        living_slot(broker, caretaker, standards=OFTEN, vitals=[host.vital]) as slot,
        client(broker) as holder,
    ):
        await is_offered(broker, 1)
        host.trouble = "no disk space"
        await comes(lambda: slot.report().withdrawn == "no disk space")
        await is_offered(broker, 0)
        waiting = await holder.request()
        host.trouble = None
        offer = await holder.offer()
        assert slot.report().withdrawn == ""
        host.trouble = "no disk space"
        await comes(lambda: slot.report().withdrawn)
        assert slot.report().state is EnvState.LEASED
        offer.complete()
        async with asyncio.timeout(SOON_S):
            await waiting.result()
        await reaches(slot, EnvState.READY)
        await is_offered(broker, 0)


async def test_a_ready_environment_that_somebody_changed_is_turned_over(
    broker: RunningBroker,
) -> None:
    caretaker = Counting()
    async with living_slot(broker, caretaker, standards=OFTEN) as slot:
        await is_offered(broker, 1)
        caretaker.differing = (Difference("brbm1_0_0", "tag 42, planned none"),)
        await comes(lambda: caretaker.turnovers)
        caretaker.differing = ()
        await reaches(slot, EnvState.READY)
        await is_offered(broker, 1)
        assert caretaker.fenced == ""
        await journalled(slot, state=EnvState.DIRTY, reason="brbm1_0_0: tag 42, planned none")


async def test_comparing_it_with_its_plan_loses_no_request(broker: RunningBroker) -> None:
    standards = Standards(check_interval_s=0.01)
    async with (
        living_slot(broker, Counting(), standards=standards) as slot,
        client(broker) as holder,
    ):
        for _ in range(20):
            await holder.request()
            (await holder.offer()).complete()
            await reaches(slot, EnvState.READY)


async def test_what_fails_too_often_in_a_row_rests_until_it_is_cleared(
    broker: RunningBroker,
) -> None:
    caretaker = Counting()
    caretaker.trouble = DriverError("brbm1", "stuck")
    standards = Standards(quarantine=Rules(turnovers=3))
    async with living_slot(broker, caretaker, standards=standards) as slot:
        await reaches(slot, EnvState.QUARANTINED)
        assert caretaker.builds == 3
        assert slot.report().reason == (
            "3 failures to make it ready, without a good turnover in between: object brbm1: stuck"
        )
        caretaker.trouble = None
        assert await offered(broker.endpoint) == 0
        assert slot.clear()
        await reaches(slot, EnvState.READY)
        assert slot.report().reason == ""
        await journalled(slot, event=Event.CLEARED)


async def test_failures_of_a_sick_host_are_not_the_environment_s(broker: RunningBroker) -> None:
    host, caretaker = Host(), Counting()
    host.trouble = "libvirt: does not answer"
    caretaker.trouble = DriverError("seed_1", "libvirt does not answer")
    standards = Standards(quarantine=Rules(turnovers=1), check_interval_s=0.1)
    async with living_slot(broker, caretaker, standards=standards, vitals=[host.vital]) as slot:
        await reaches(slot, EnvState.BROKEN)
        caretaker.trouble = None
        await asyncio.sleep(0.5)
        assert caretaker.builds == 1  # nothing is made on a sick host
        host.trouble = None
        await reaches(slot, EnvState.READY)
