"""A hold in an environment's life, over a real broker: when it begins, what it keeps from
happening, and what happens where it can't be."""

import pytest

from hosts.quarantine import Rules
from hosts.slot import Slot
from hosts.state import Event
from hosts.vetting import Standards
from schemas.control import HoldRequest
from schemas.errors import DriverError, HostError
from schemas.status import EnvState
from tests.functional.brokers import RunningBroker
from tests.functional.client_rig import on_one_broker
from tests.functional.slot_rig import (
    Counting,
    client,
    comes,
    journalled,
    living_slot,
    offered,
    reaches,
)
from tests.functional.test_rebuild import BIGGER

pytestmark = on_one_broker


def wish(**more: object) -> HoldRequest:
    return HoldRequest.model_validate({"environment": "te1/1", "holder": "ann"} | more)


async def held(slot: Slot) -> None:
    """Wait until it is, and who takes it gets its data file."""
    await reaches(slot, EnvState.HELD)
    answers: list[str] = []

    async def taken() -> bool:
        answer = await slot.hold(wish(take=True))
        answers.extend([answer.data_file] if answer.data_file else [])
        return bool(answers)

    while not await taken():
        await comes(lambda: slot.report().state is EnvState.HELD)


async def test_a_held_environment_is_secluded_and_registered_nowhere(broker: RunningBroker) -> None:
    caretaker = Counting()
    async with living_slot(broker, caretaker) as slot:
        await reaches(slot, EnvState.READY)
        await slot.hold(wish())
        await held(slot)
        assert caretaker.is_secluded
        assert await offered(broker.endpoint) == 0
        await slot.hold(wish(connect=True))
        await comes(lambda: not caretaker.is_secluded)
        await slot.hold(wish(connect=False))
        await comes(lambda: caretaker.is_secluded)
        assert (caretaker.fences, caretaker.turnovers) == (0, 0)
        assert slot.unhold()
        assert not slot.unhold()
        await reaches(slot, EnvState.READY)
        assert (caretaker.fences, caretaker.turnovers) == (1, 1)
        await journalled(slot, event=Event.UNHELD, reason="an operator has ended it")


async def test_what_cannot_be_cut_off_is_not_held(broker: RunningBroker) -> None:
    caretaker = Counting()
    async with living_slot(broker, caretaker) as slot:
        await reaches(slot, EnvState.READY)
        caretaker.wire_trouble = DriverError("br-ctlplane", "stuck")
        await slot.hold(wish())
        await comes(lambda: caretaker.turnovers)
        await reaches(slot, EnvState.READY)
        assert slot.report().hold is None
        why = "it can't be cut off from outside: object br-ctlplane: stuck"
        await journalled(slot, event=Event.UNHELD, reason=why)


async def test_what_cannot_be_connected_is_held_all_the_same_and_says_so(
    broker: RunningBroker,
) -> None:
    caretaker = Counting()
    async with living_slot(broker, caretaker) as slot:
        await reaches(slot, EnvState.READY)
        await slot.hold(wish())
        await held(slot)
        caretaker.wire_trouble = DriverError("br-ctlplane", "stuck")
        await slot.hold(wish(connect=True))
        await comes(lambda: slot.report().reason == "not connected: object br-ctlplane: stuck")
        assert slot.report().state is EnvState.HELD


async def test_a_hold_expires_and_may_be_made_longer_or_shorter(broker: RunningBroker) -> None:
    async with living_slot(broker, Counting()) as slot:
        await reaches(slot, EnvState.READY)
        await slot.hold(wish(for_s=3600))
        await held(slot)
        await slot.hold(wish(reason="a look"))
        hold = slot.report().hold
        assert hold
        assert (hold.for_s, hold.reason, hold.holder) == (3600, "a look", "ann")
        await slot.hold(wish(for_s=0.1))
        await reaches(slot, EnvState.READY)
        await journalled(slot, event=Event.UNHELD, reason="its time is over")


async def test_a_broken_environment_is_held_instead_of_built_again(broker: RunningBroker) -> None:
    caretaker = Counting()
    caretaker.trouble = DriverError("brbm1", "stuck")
    async with living_slot(broker, caretaker) as slot:
        await reaches(slot, EnvState.BROKEN)
        await slot.hold(wish())
        await held(slot)
        builds, caretaker.trouble = caretaker.builds, None
        assert slot.report().reason == "object brbm1: stuck"
        slot.unhold()
        await reaches(slot, EnvState.READY)
        assert caretaker.builds == builds


async def test_a_quarantined_environment_stays_what_it_is(broker: RunningBroker) -> None:
    caretaker = Counting()
    caretaker.trouble = DriverError("brbm1", "stuck")
    standards = Standards(quarantine=Rules(turnovers=1))
    async with living_slot(broker, caretaker, standards=standards) as slot:
        await reaches(slot, EnvState.QUARANTINED)
        with pytest.raises(HostError, match="te1/1 is quarantined: it is kept as it is"):
            await slot.hold(wish())
        assert slot.report().hold is None
        caretaker.trouble = None
        slot.clear()
        await reaches(slot, EnvState.READY)


async def test_a_rebuild_waits_for_the_end_of_a_hold(broker: RunningBroker) -> None:
    caretaker = Counting()
    async with living_slot(broker, caretaker) as slot:
        await reaches(slot, EnvState.READY)
        await slot.hold(wish())
        await held(slot)
        slot.rebuild(BIGGER, "")
        slot.clear()
        await held(slot)
        assert caretaker.rebuilds == []
        slot.unhold()
        await comes(lambda: caretaker.rebuilds == [BIGGER])
        await reaches(slot, EnvState.READY)


async def test_nobody_waits_longer_for_an_environment_whose_hold_was_taken_back(
    broker: RunningBroker,
) -> None:
    async with living_slot(broker, Counting()) as slot, client(broker) as holder:
        await reaches(slot, EnvState.READY)
        await slot.hold(wish())
        await held(slot)
        await holder.request()
        slot.unhold()
        (await holder.offer()).complete()
        await reaches(slot, EnvState.READY)
