"""One environment's life over real brokers: offered, leased, turned over, offered again."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest

from broker.client import Outcome
from broker.links import OneLink
from broker.worker import Worker
from hosts.admission import Bar, Shutdown
from hosts.slot import SlotTiming
from schemas.errors import DriverError
from schemas.status import EnvState
from tests.functional.brokers import RunningBroker, running_broker
from tests.functional.slot_rig import (
    QUICK,
    SOON_S,
    Counting,
    client,
    living_slot,
    offered,
    reaches,
    slot_at,
)


async def test_an_environment_is_registered_once_it_is_ready(broker: RunningBroker) -> None:
    async with living_slot(broker, Counting()) as slot:
        await reaches(slot, EnvState.READY)
        async with asyncio.timeout(SOON_S):
            while await offered(broker.endpoint) != 1:
                await asyncio.sleep(0.01)


async def test_a_lease_ends_in_turnover_and_the_next_offer(broker: RunningBroker) -> None:
    caretaker = Counting()
    async with living_slot(broker, caretaker) as slot, client(broker) as holder:
        for turnovers in (1, 2):
            lock = await holder.request()
            offer = await holder.offer()
            report = slot.report()
            assert report.state is EnvState.LEASED
            assert report.lease is not None
            assert report.lease.generation == turnovers
            assert json.loads(offer.arguments)["testenv"]["lease"]["id"] == report.lease.id
            offer.complete()
            assert (await lock.result()).outcome is Outcome.COMPLETE
            await reaches(slot, EnvState.READY)
            assert caretaker.fences == caretaker.turnovers == turnovers


async def test_nothing_is_registered_while_a_lease_runs(broker: RunningBroker) -> None:
    async with living_slot(broker, Counting(("big",))), client(broker) as holder:
        await holder.request(function="lockenv:big")
        offer = await holder.offer()
        assert await offered(broker.endpoint) == 0
        assert await offered(broker.endpoint, "lockenv:big") <= 1
        second = await holder.request()
        assert not (await second.status()).running
        offer.complete()
        await holder.offer()


async def test_a_client_that_fails_its_callback_ends_its_lease(broker: RunningBroker) -> None:
    caretaker = Counting()
    async with living_slot(broker, caretaker) as slot, client(broker) as holder:
        await holder.request()
        (await holder.offer()).fail()
        await reaches(slot, EnvState.READY)
        assert caretaker.turnovers == 1


async def test_a_dead_client_ends_its_lease_on_both_brokers(broker: RunningBroker) -> None:
    caretaker = Counting()
    async with living_slot(broker, caretaker) as slot:
        async with client(broker) as holder:
            await holder.request()
            await holder.offer()
            holder.link.abort("killed")
        await reaches(slot, EnvState.READY)
        assert caretaker.turnovers == 1


async def test_a_request_without_a_client_behind_it_costs_seconds_not_hours(
    broker: RunningBroker,
) -> None:
    caretaker = Counting()
    async with living_slot(broker, caretaker) as slot:
        async with client(broker) as somebody:
            await somebody.request(b'{"callback_name": "callback_nobody"}')
            await reaches(slot, EnvState.LEASED)
            await reaches(slot, EnvState.READY)
        # Turned over all the same: a client that took it and died at once looks like none.
        assert caretaker.turnovers == 1


async def test_a_client_that_comes_too_late_is_not_called(broker: RunningBroker) -> None:
    async with living_slot(broker, Counting()) as slot, client(broker) as late:
        await late.request()
        await reaches(slot, EnvState.LEASED)
        await reaches(slot, EnvState.READY)
        worker = Worker(OneLink(late.link), ["callback_1"])
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await worker.take()


async def test_a_lease_ends_at_its_timeout_plus_the_margin(broker: RunningBroker) -> None:
    caretaker = Counting()
    async with living_slot(broker, caretaker) as slot, client(broker) as holder:
        lock = await holder.request(b'{"callback_name": "callback_1", "timeout": "1"}')
        await holder.offer()
        loop = asyncio.get_running_loop()
        began = loop.time()
        assert (await lock.result()).outcome is Outcome.COMPLETE
        assert loop.time() - began >= 1.0 + QUICK.terms.margin_s - 0.2
        await reaches(slot, EnvState.READY)
        assert caretaker.turnovers == 1


@pytest.mark.parametrize(
    "arguments", [b"not json", b"{}", b'{"callback_name": "c", "timeout": "x"}']
)
async def test_an_unusable_request_is_refused_and_the_next_one_served(
    broker: RunningBroker, arguments: bytes
) -> None:
    caretaker = Counting()
    async with living_slot(broker, caretaker), client(broker) as holder:
        bad = await holder.request(arguments)
        async with asyncio.timeout(SOON_S):
            assert (await bad.result()).outcome is Outcome.FAIL
        await holder.request()
        await holder.offer()
        assert caretaker.turnovers == 0


async def test_an_environment_that_cannot_be_built_is_broken_until_it_can(
    broker: RunningBroker,
) -> None:
    caretaker = Counting()
    caretaker.trouble = DriverError("brbm1", "no such switch")
    async with living_slot(broker, caretaker) as slot:
        await reaches(slot, EnvState.BROKEN)
        assert slot.report().reason == "object brbm1: no such switch"
        assert await offered(broker.endpoint) == 0
        caretaker.trouble = None
        await reaches(slot, EnvState.READY)
        assert slot.report().reason == ""


async def test_a_defect_in_a_driver_is_told_as_the_reason(broker: RunningBroker) -> None:
    caretaker = Counting()
    caretaker.trouble = KeyError("tag")
    async with living_slot(broker, caretaker) as slot:
        await reaches(slot, EnvState.BROKEN)
        assert slot.report().reason == "internal error: KeyError('tag')"


async def test_a_defect_while_a_lease_runs_keeps_the_environment_until_its_timeout(
    broker: RunningBroker,
) -> None:
    caretaker = Counting()
    caretaker.data_trouble = KeyError("seed")
    async with living_slot(broker, caretaker) as slot, client(broker) as holder:
        lock = await holder.request(b'{"callback_name": "callback_1", "timeout": "1"}')
        await reaches(slot, EnvState.LEASED)
        async with asyncio.timeout(SOON_S):
            assert (await lock.result()).outcome is Outcome.FAIL
        await reaches(slot, EnvState.READY)
        assert caretaker.turnovers == 1


async def test_a_failed_turnover_is_never_offered(broker: RunningBroker) -> None:
    caretaker = Counting()
    async with living_slot(broker, caretaker, timing=SlotTiming(retry_s=60)) as slot:
        async with client(broker) as holder:
            await holder.request()
            offer = await holder.offer()
            caretaker.trouble = DriverError("seed_1", "stuck")
            offer.complete()
            await reaches(slot, EnvState.BROKEN)
        assert await offered(broker.endpoint) == 0


async def test_a_cordoned_environment_finishes_its_lease_and_takes_no_other(
    broker: RunningBroker,
) -> None:
    admission = Shutdown().admission()
    async with living_slot(broker, Counting(), admission) as slot, client(broker) as holder:
        await holder.request()
        offer = await holder.offer()
        admission.close(Bar.CORDON, "new disk")
        assert slot.report().cordoned
        assert slot.report().cordon_reason == "new disk"
        assert slot.report().state is EnvState.LEASED
        offer.complete()
        await reaches(slot, EnvState.READY)
        waiting = await holder.request()
        assert await offered(broker.endpoint) == 0
        assert not (await waiting.status()).running
        admission.close(Bar.SICK, "no disk space")
        admission.open(Bar.CORDON)
        assert slot.report().withdrawn == "no disk space"
        assert await offered(broker.endpoint) == 0
        admission.open(Bar.SICK)
        await holder.offer()


async def test_stopping_lets_a_v1_client_s_lease_end(broker: RunningBroker) -> None:
    shutdown = Shutdown()
    caretaker = Counting()
    async with (
        slot_at([broker.endpoint], caretaker, shutdown.admission()) as slot,
        client(broker) as holder,
    ):
        life = asyncio.create_task(slot.run())
        await holder.request()
        offer = await holder.offer()
        shutdown.stop()
        done, _ = await asyncio.wait([life], timeout=0.3)
        assert not done
        offer.complete()
        async with asyncio.timeout(SOON_S):
            await life
        assert caretaker.turnovers == 1


async def test_a_v1_client_keeps_its_environment_when_the_broker_dies(
    broker: RunningBroker,
) -> None:
    """It is told nothing and its command runs on: only its timeout makes that certain."""
    caretaker = Counting()
    async with living_slot(broker, caretaker) as slot:
        async with client(broker) as holder:
            await holder.request(b'{"callback_name": "callback_1", "timeout": "2"}')
            await holder.offer()
            broker.kill()
            began = asyncio.get_running_loop().time()
        broker.restart()
        await reaches(slot, EnvState.READY)
        assert asyncio.get_running_loop().time() - began >= 2.0
        assert caretaker.turnovers == 1


@pytest.fixture
def second_broker(broker: RunningBroker) -> Iterator[RunningBroker]:
    with running_broker(broker.kind) as second:
        yield second


async def test_two_brokers_never_lease_one_environment_twice(
    broker: RunningBroker, second_broker: RunningBroker
) -> None:
    caretaker = Counting()
    endpoints = [broker.endpoint, second_broker.endpoint]
    async with slot_at(endpoints, caretaker) as slot:
        life = asyncio.create_task(slot.run())
        try:
            async with client(broker) as one, client(second_broker) as other:
                await asyncio.gather(one.request(), other.request())
                offers: dict[str, Any] = {
                    "one": asyncio.create_task(one.offer()),
                    "other": asyncio.create_task(other.offer()),
                }
                done, pending = await asyncio.wait(
                    offers.values(), return_when=asyncio.FIRST_COMPLETED, timeout=SOON_S
                )
                assert len(done) == 1
                still, _ = await asyncio.wait(pending, timeout=0.5)
                assert not still
                done.pop().result().complete()
                (await pending.pop()).complete()
                await reaches(slot, EnvState.READY)
                assert caretaker.turnovers == 2
        finally:
            life.cancel()
            await asyncio.wait([life], timeout=SOON_S)
