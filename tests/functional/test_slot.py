"""One environment's life over real brokers: offered, leased, turned over, offered again."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from broker import admin
from broker.client import Outcome, SubmittedJob, submit
from broker.endpoint import Endpoint
from broker.link import Link
from broker.links import Links, OneLink
from broker.worker import Assignment, Worker
from hosts.admission import Admission
from hosts.lease import LeaseTiming
from hosts.slot import Slot, SlotTiming
from schemas.errors import DriverError
from schemas.lock import LockRequest, lost_lease
from schemas.status import EnvState, Lease
from tests.functional.brokers import RunningBroker, running_broker

QUICK = SlotTiming(lease=LeaseTiming(untaken_s=0.5, poll_s=0.2, margin_s=0.3), retry_s=0.2)
SOON_S = 10.0


class Caretaker:
    """A real caretaker of nothing: counts what it is asked for, and fails when told to."""

    id = "te1/1"
    number = "1"

    def __init__(self, labels: tuple[str, ...] = ()) -> None:
        self.labels = labels
        self.builds = 0
        self.turnovers = 0
        self.trouble: Exception | None = None
        self.data_trouble: Exception | None = None

    async def build(self) -> None:
        self.builds += 1
        if self.trouble:
            raise self.trouble

    async def turn_over(self) -> None:
        self.turnovers += 1
        if self.trouble:
            raise self.trouble

    def data_file(self, lease: Lease) -> bytes:
        if self.data_trouble:
            raise self.data_trouble
        return json.dumps({"testenv": {"lease": {"id": lease.id}}}).encode()


@asynccontextmanager
async def living_slot(
    broker: RunningBroker,
    caretaker: Caretaker,
    admission: Admission | None = None,
    timing: SlotTiming = QUICK,
) -> AsyncIterator[Slot]:
    admission = admission or Admission()
    async with Links([broker.endpoint], client_id="te1/1") as links:
        slot = Slot(caretaker, links, admission, timing)
        life = asyncio.create_task(slot.run())
        try:
            yield slot
        finally:
            life.cancel()
            await asyncio.wait([life], timeout=SOON_S)


@asynccontextmanager
async def client(broker: RunningBroker) -> AsyncIterator["V1Client"]:
    async with await Link.open(broker.endpoint, client_id="client") as link:
        yield V1Client(link)


class V1Client:
    """The wire as a client of toci's sees it, one step at a time."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self._worker = Worker(OneLink(link), ["callback_1"])

    async def request(
        self, arguments: bytes | None = None, function: str = "lockenv"
    ) -> SubmittedJob:
        wish = arguments or b'{"callback_name": "callback_1", "timeout": "60"}'
        return await submit(self.link, function, wish)

    async def offer(self) -> Assignment:
        async with asyncio.timeout(SOON_S):
            offer = await self._worker.take()
        assert offer is not None
        return offer


async def reaches(slot: Slot, state: EnvState) -> None:
    async with asyncio.timeout(SOON_S):
        while slot.report().state is not state:
            await asyncio.sleep(0.01)


async def offered(broker: Endpoint, function: str = "lockenv") -> int:
    return sum(one.workers for one in await admin.status(broker) if one.name == function)


async def test_an_environment_is_registered_once_it_is_ready(broker: RunningBroker) -> None:
    async with living_slot(broker, Caretaker()) as slot:
        await reaches(slot, EnvState.READY)
        async with asyncio.timeout(SOON_S):
            while await offered(broker.endpoint) != 1:
                await asyncio.sleep(0.01)


async def test_a_lease_ends_in_turnover_and_the_next_offer(broker: RunningBroker) -> None:
    caretaker = Caretaker()
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
            assert caretaker.turnovers == turnovers


async def test_nothing_is_registered_while_a_lease_runs(broker: RunningBroker) -> None:
    async with living_slot(broker, Caretaker(("big",))), client(broker) as holder:
        await holder.request(function="lockenv:big")
        offer = await holder.offer()
        assert await offered(broker.endpoint) == 0
        assert await offered(broker.endpoint, "lockenv:big") <= 1
        second = await holder.request()
        assert not (await second.status()).running
        offer.complete()
        await holder.offer()


async def test_a_client_that_fails_its_callback_ends_its_lease(broker: RunningBroker) -> None:
    caretaker = Caretaker()
    async with living_slot(broker, caretaker) as slot, client(broker) as holder:
        await holder.request()
        (await holder.offer()).fail()
        await reaches(slot, EnvState.READY)
        assert caretaker.turnovers == 1


async def test_a_dead_client_ends_its_lease_on_both_brokers(broker: RunningBroker) -> None:
    caretaker = Caretaker()
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
    caretaker = Caretaker()
    async with living_slot(broker, caretaker) as slot:
        async with client(broker) as somebody:
            await somebody.request(b'{"callback_name": "callback_nobody"}')
            await reaches(slot, EnvState.LEASED)
            await reaches(slot, EnvState.READY)
        # Turned over all the same: a client that took it and died at once looks like none.
        assert caretaker.turnovers == 1


async def test_a_client_that_comes_too_late_is_not_called(broker: RunningBroker) -> None:
    async with living_slot(broker, Caretaker()) as slot, client(broker) as late:
        await late.request()
        await reaches(slot, EnvState.LEASED)
        await reaches(slot, EnvState.READY)
        worker = Worker(OneLink(late.link), ["callback_1"])
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await worker.take()


async def test_a_lease_ends_at_its_timeout_plus_the_margin(broker: RunningBroker) -> None:
    caretaker = Caretaker()
    async with living_slot(broker, caretaker) as slot, client(broker) as holder:
        lock = await holder.request(b'{"callback_name": "callback_1", "timeout": "1"}')
        await holder.offer()
        loop = asyncio.get_running_loop()
        began = loop.time()
        assert (await lock.result()).outcome is Outcome.COMPLETE
        assert loop.time() - began >= 1.0 + QUICK.lease.margin_s - 0.2
        await reaches(slot, EnvState.READY)
        assert caretaker.turnovers == 1


@pytest.mark.parametrize(
    "arguments", [b"not json", b"{}", b'{"callback_name": "c", "timeout": "x"}']
)
async def test_an_unusable_request_is_refused_and_the_next_one_served(
    broker: RunningBroker, arguments: bytes
) -> None:
    caretaker = Caretaker()
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
    caretaker = Caretaker()
    caretaker.trouble = DriverError("brbm1", "no such switch")
    async with living_slot(broker, caretaker) as slot:
        await reaches(slot, EnvState.BROKEN)
        assert slot.report().reason == "object brbm1: no such switch"
        assert await offered(broker.endpoint) == 0
        caretaker.trouble = None
        await reaches(slot, EnvState.READY)
        assert slot.report().reason == ""


async def test_a_defect_in_a_driver_is_told_as_the_reason(broker: RunningBroker) -> None:
    caretaker = Caretaker()
    caretaker.trouble = KeyError("tag")
    async with living_slot(broker, caretaker) as slot:
        await reaches(slot, EnvState.BROKEN)
        assert slot.report().reason == "internal error: KeyError('tag')"


async def test_a_defect_while_a_lease_runs_keeps_the_environment_until_its_timeout(
    broker: RunningBroker,
) -> None:
    caretaker = Caretaker()
    caretaker.data_trouble = KeyError("seed")
    async with living_slot(broker, caretaker) as slot, client(broker) as holder:
        lock = await holder.request(b'{"callback_name": "callback_1", "timeout": "1"}')
        await reaches(slot, EnvState.LEASED)
        async with asyncio.timeout(SOON_S):
            assert (await lock.result()).outcome is Outcome.FAIL
        await reaches(slot, EnvState.READY)
        assert caretaker.turnovers == 1


async def test_a_failed_turnover_is_never_offered(broker: RunningBroker) -> None:
    caretaker = Caretaker()
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
    admission = Admission()
    async with living_slot(broker, Caretaker(), admission) as slot, client(broker) as holder:
        await holder.request()
        offer = await holder.offer()
        admission.cordon()
        assert slot.report().cordoned
        assert slot.report().state is EnvState.LEASED
        offer.complete()
        await reaches(slot, EnvState.READY)
        waiting = await holder.request()
        assert await offered(broker.endpoint) == 0
        assert not (await waiting.status()).running
        admission.uncordon()
        await holder.offer()


async def test_stopping_lets_the_running_lease_end(broker: RunningBroker) -> None:
    admission = Admission()
    caretaker = Caretaker()
    async with Links([broker.endpoint], client_id="te1/1") as links, client(broker) as holder:
        slot = Slot(caretaker, links, admission, QUICK)
        life = asyncio.create_task(slot.run())
        await holder.request()
        offer = await holder.offer()
        admission.stop()
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
    caretaker = Caretaker()
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


OUR_WISH = LockRequest("callback_1", timeout_s=3600, holder="me", stops_within_s=0.2)


async def test_our_client_s_promise_frees_the_environment_after_a_broker_s_restart(
    broker: RunningBroker,
) -> None:
    async with living_slot(broker, Caretaker()) as slot:
        async with client(broker) as holder:
            await holder.request(OUR_WISH.dump())
            await holder.offer()
            broker.kill()
            await asyncio.sleep(OUR_WISH.stops_within_s or 0)
            assert slot.report().state is EnvState.LEASED
        broker.restart()
        await reaches(slot, EnvState.READY)


async def test_a_client_that_is_still_connected_is_told_that_its_lease_is_lost(
    broker: RunningBroker,
) -> None:
    """Only the agent's connection breaks: without the notice its client would run on."""
    caretaker = Caretaker()
    async with (
        Links([broker.endpoint], client_id="te1/1") as links,
        client(broker) as holder,
    ):
        slot = Slot(caretaker, links, Admission(), QUICK)
        life = asyncio.create_task(slot.run())
        try:
            await holder.request(OUR_WISH.dump())
            await holder.offer()
            lease = slot.report().lease
            assert lease
            links.up[0].abort("cut")
            notice = await holder.offer()
            assert lost_lease(notice.arguments) == lease.id
            assert slot.report().state is EnvState.LEASED
            notice.fail()
            async with asyncio.timeout(SOON_S):
                while not caretaker.turnovers:
                    await asyncio.sleep(0.01)
        finally:
            life.cancel()
            await asyncio.wait([life], timeout=SOON_S)


async def test_our_client_cut_off_keeps_its_environment_until_its_promise_is_over(
    broker: RunningBroker,
) -> None:
    """To the broker it looks dead, but its command runs until it notices."""
    wish = LockRequest("callback_1", timeout_s=3600, holder="me", stops_within_s=1.0)
    caretaker = Caretaker()
    async with living_slot(broker, caretaker) as slot:
        async with client(broker) as holder:
            await holder.request(wish.dump())
            await holder.offer()
            holder.link.abort("cut")
            cut = asyncio.get_running_loop().time()
        async with asyncio.timeout(SOON_S):
            while not caretaker.turnovers:
                await asyncio.sleep(0.01)
        assert asyncio.get_running_loop().time() - cut >= 1.0
        await reaches(slot, EnvState.READY)


async def test_our_client_that_declines_gives_its_environment_back_at_once(
    broker: RunningBroker,
) -> None:
    wish = LockRequest("callback_1", timeout_s=3600, holder="me", stops_within_s=3000)
    async with living_slot(broker, Caretaker()) as slot, client(broker) as holder:
        await holder.request(wish.dump())
        (await holder.offer()).exception(b"declined")
        await reaches(slot, EnvState.READY)


async def test_a_client_that_needs_long_to_stop_gets_that_time_after_its_timeout(
    broker: RunningBroker,
) -> None:
    wish = LockRequest("callback_1", timeout_s=1, holder="me", stops_within_s=2.0)
    async with living_slot(broker, Caretaker()), client(broker) as holder:
        lock = await holder.request(wish.dump())
        await holder.offer()
        began = asyncio.get_running_loop().time()
        assert (await lock.result()).outcome is Outcome.COMPLETE
        assert asyncio.get_running_loop().time() - began >= 2.8


@pytest.fixture
def second_broker(broker: RunningBroker) -> Iterator[RunningBroker]:
    with running_broker(broker.kind) as second:
        yield second


async def test_two_brokers_never_lease_one_environment_twice(
    broker: RunningBroker, second_broker: RunningBroker
) -> None:
    caretaker = Caretaker()
    endpoints = [broker.endpoint, second_broker.endpoint]
    async with Links(endpoints, client_id="te1/1") as links:
        slot = Slot(caretaker, links, Admission(), QUICK)
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
