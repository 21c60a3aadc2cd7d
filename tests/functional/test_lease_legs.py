"""A lease on the wire, packet by packet: what an agent tells its client, and whom it believes."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from broker.client import Outcome, Progress, ProgressKind, SubmittedJob, submit
from broker.link import Link
from broker.links import OneLink
from broker.protocol import Kind
from broker.worker import Assignment, Worker
from schemas.legs import Attach, Offered, Result, Resume, is_confirmation
from schemas.lock import LockRequest
from schemas.names import lease_function
from schemas.status import EnvState
from tests.functional.brokers import RunningBroker
from tests.functional.slot_rig import QUICK, SOON_S, Counting, living_slot, reaches

CALLBACK = "callback_1"
WISH = LockRequest(CALLBACK, timeout_s=60, holder="me", job="1", version=2)


class Client:
    """The wire as our client sees it. `told` is what came on its lock leg."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.told: list[Progress] = []
        self._worker = Worker(OneLink(link), [CALLBACK])

    async def ask(self, function: str = "lockenv", words: bytes = WISH.dump()) -> SubmittedJob:
        return await submit(self.link, function, words, on_progress=self.told.append)

    async def called(self) -> Assignment:
        async with asyncio.timeout(SOON_S):
            call = await self._worker.take()
        assert call
        return call

    async def leased(self) -> tuple[Offered, Assignment]:
        """Ask, ack, and be confirmed."""
        await self.ask()
        call = await self.called()
        offered = Offered.of(json.loads(call.arguments))
        assert offered
        call.status(1, 0)
        await self.hears(ProgressKind.DATA)
        return offered, call

    async def hears(self, kind: ProgressKind) -> Progress:
        """The next of that kind."""
        async with asyncio.timeout(SOON_S):
            while not (found := next((one for one in self.told if one.kind is kind), None)):
                await asyncio.sleep(0.005)
        self.told.remove(found)
        return found


@asynccontextmanager
async def client(broker: RunningBroker) -> AsyncIterator[Client]:
    async with await Link.open(broker.endpoint, client_id="client") as link:
        yield Client(link)


def attach(lease: Offered, secret: str = "", result: str = "") -> bytes:
    callback = "" if result else CALLBACK
    return Attach(lease.id, lease.generation, secret or lease.secret, callback, result).dump()


async def test_command_is_confirmed_after_the_ack_and_not_before(broker: RunningBroker) -> None:
    async with living_slot(broker, Counting()) as slot, client(broker) as holder:
        await holder.ask()
        call = await holder.called()
        offered = Offered.of(json.loads(call.arguments))
        assert offered
        assert offered.terms == QUICK.terms
        await asyncio.sleep(0.1)
        assert holder.told == []
        assert slot.report().lease_state == "offered"
        call.status(1, 0)
        assert is_confirmation((await holder.hears(ProgressKind.DATA)).data, offered.id)
        assert slot.report().lease_state == "active"


async def test_client_that_never_acks_is_no_holder(broker: RunningBroker) -> None:
    caretaker = Counting()
    async with living_slot(broker, caretaker) as slot, client(broker) as mute:
        job = await mute.ask()
        await mute.called()
        async with asyncio.timeout(SOON_S):
            assert (await job.result()).outcome is Outcome.FAIL
        await reaches(slot, EnvState.READY)
    assert (caretaker.fences, caretaker.turnovers) == (0, 0)


async def test_declined_offer_costs_no_turnover(broker: RunningBroker) -> None:
    caretaker = Counting()
    async with living_slot(broker, caretaker) as slot, client(broker) as holder:
        await holder.ask()
        (await holder.called()).exception(b"declined")
        await reaches(slot, EnvState.READY)
    assert (caretaker.fences, caretaker.turnovers) == (0, 0)


async def test_beats_are_echoed(broker: RunningBroker) -> None:
    async with living_slot(broker, Counting()), client(broker) as holder:
        _, call = await holder.leased()
        assert (await holder.hears(ProgressKind.STATUS)).denominator == 1
        for beat in (2, 3):
            call.status(beat, 0)
            async with asyncio.timeout(SOON_S):
                while (await holder.hears(ProgressKind.STATUS)).denominator != beat:
                    pass


async def test_silent_client_is_fenced_after_ttl_and_margin_and_not_before(
    broker: RunningBroker,
) -> None:
    caretaker = Counting()
    async with living_slot(broker, caretaker) as slot, client(broker) as holder:
        await holder.leased()
        heard = asyncio.get_running_loop().time()
        await reaches(slot, EnvState.READY)
        waited_s = asyncio.get_running_loop().time() - heard
    assert waited_s >= QUICK.terms.ttl_s + QUICK.terms.margin_s - 0.05
    assert caretaker.fences == 1


async def test_client_comes_back_on_another_connection(broker: RunningBroker) -> None:
    caretaker = Counting()
    async with living_slot(broker, caretaker) as slot:
        async with client(broker) as holder:
            lease, _ = await holder.leased()
        async with client(broker) as again:
            await again.ask(lease_function(lease.id), attach(lease))
            call = await again.called()
            while not (resume := Resume.parse(call.arguments)):
                call = await again.called()  # gearmand makes the offer again
            assert resume == Resume(lease.id, lease.generation, resume.leg)
            call.status(7, 0)
            assert (await again.hears(ProgressKind.STATUS)).denominator == 7
            assert slot.report().lease_state == "active"
            call.complete(Result("exited", 0).dump())
            await reaches(slot, EnvState.READY)
    assert caretaker.turnovers == 1


async def test_stranger_without_the_secret_gets_and_ends_nothing(broker: RunningBroker) -> None:
    async with (
        living_slot(broker, Counting()) as slot,
        client(broker) as holder,
        client(broker) as stranger,
    ):
        lease, call = await holder.leased()
        wrong = [
            attach(lease, secret="0" * 32),
            attach(lease, secret="0" * 32, result="client killed"),
            attach(lease._replace(generation=lease.generation + 1)),
            attach(lease._replace(id="f" * 32)),
            b"{}",
            b"[" * 100_000,
            attach(lease).replace(lease.secret.encode(), b"\\ud800"),
        ]
        for words in wrong:
            job = await stranger.ask(lease_function(lease.id), words)
            async with asyncio.timeout(SOON_S):
                assert (await job.result()).outcome is Outcome.EXCEPTION
            call.status(9, 0)
        assert slot.report().lease_state == "active"


async def test_numbers_that_nobody_can_relay_or_store_cost_a_lying_client_no_more_than_its_lease(
    broker: RunningBroker,
) -> None:
    caretaker = Counting()
    async with living_slot(broker, caretaker) as slot, client(broker) as liar:
        _, call = await liar.leased()
        call.link.send_work(Kind.WORK_STATUS, call.handle.encode(), b"9" * 15, b"0")
        call.complete(b'{"testenv": {"reason": "exited", "exit_code": 1%s}}' % (b"0" * 30))
        await reaches(slot, EnvState.READY)
        await liar.leased()
    assert caretaker.turnovers >= 1


async def test_client_may_come_back_as_often_as_its_connection_is_cut(
    broker: RunningBroker,
) -> None:
    async with living_slot(broker, Counting()) as slot:
        async with client(broker) as holder:
            lease, _ = await holder.leased()
        newest = 0
        for _ in range(8):
            async with client(broker) as again:
                await again.ask(lease_function(lease.id), attach(lease))
                # gearmand makes the offer and older calls again.
                call = await again.called()
                while not (resume := Resume.parse(call.arguments)) or resume.leg <= newest:
                    call = await again.called()
                newest = resume.leg
                call.status(7, 0)
                assert (await again.hears(ProgressKind.STATUS)).denominator == 7
        assert slot.report().lease_state in ("active", "suspect")


async def test_guard_s_goodbye_ends_the_lease(broker: RunningBroker) -> None:
    caretaker = Counting()
    async with (
        living_slot(broker, caretaker) as slot,
        client(broker) as holder,
        client(broker) as guard,
    ):
        lease, _ = await holder.leased()
        job = await guard.ask(lease_function(lease.id), attach(lease, result="client killed"))
        async with asyncio.timeout(SOON_S):
            assert (await job.result()).outcome is Outcome.COMPLETE
        await reaches(slot, EnvState.READY)
    assert caretaker.fences == 1


async def test_revoked_lease_is_told_why_and_waited_for(broker: RunningBroker) -> None:
    caretaker = Counting()
    async with living_slot(broker, caretaker) as slot, client(broker) as holder:
        job = await holder.ask()
        call = await holder.called()
        call.status(1, 0)
        await holder.hears(ProgressKind.DATA)
        assert slot.revoke("maintenance")
        async with asyncio.timeout(SOON_S):
            end = await job.result()
        assert (end.outcome, end.data) == (Outcome.EXCEPTION, b"maintenance")
        assert slot.report().state is EnvState.LEASED
        assert caretaker.fences == 0
        call.complete(Result("lease lost").dump())
        await reaches(slot, EnvState.READY)
    assert caretaker.fences == 1


async def test_client_that_comes_back_too_late_is_told_why_its_lease_ends(
    broker: RunningBroker,
) -> None:
    async with (
        living_slot(broker, Counting()) as slot,
        client(broker) as holder,
        client(broker) as again,
    ):
        lease, _ = await holder.leased()
        holder.link.abort("cut")
        job = await again.ask(lease_function(lease.id), attach(lease))
        call = await again.called()
        while not Resume.parse(call.arguments):
            call = await again.called()  # gearmand makes the offer again
        assert slot.revoke("maintenance")
        async with asyncio.timeout(SOON_S):
            while slot.report().lease_state != "ending":
                await asyncio.sleep(0.005)
        call.status(7, 0)
        async with asyncio.timeout(SOON_S):
            end = await job.result()
        assert (end.outcome, end.data) == (Outcome.EXCEPTION, b"maintenance")
