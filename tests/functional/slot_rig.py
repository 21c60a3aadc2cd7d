"""A slot with all that it needs, and a caretaker of nothing that counts."""

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from broker.endpoint import Endpoint
from broker.links import Links
from hosts.admission import Admission, Shutdown
from hosts.caretaker import Caretaker
from hosts.datafile import lease_data
from hosts.journal import Journal
from hosts.reception import Reception
from hosts.slot import Slot, SlotTiming
from schemas.status import EnvState, Lease
from schemas.terms import Terms
from tests.functional.brokers import RunningBroker

QUICK = SlotTiming(
    Terms(beat_s=0.2, ttl_s=2.0, margin_s=0.3, reattach_s=0.5, untaken_s=0.5),
    retry_s=0.2,
)
SOON_S = 10.0


class Counting:
    """A real caretaker of nothing: counts what it is asked for, and fails when told to."""

    id = "te1/1"
    number = "1"

    def __init__(self, labels: tuple[str, ...] = ()) -> None:
        self.labels = labels
        self.builds = 0
        self.fences = 0
        self.turnovers = 0
        self.trouble: Exception | None = None
        self.data_trouble: Exception | None = None

    async def build(self) -> None:
        self.builds += 1
        if self.trouble:
            raise self.trouble

    async def fence(self) -> None:
        self.fences += 1

    async def turn_over(self) -> None:
        self.turnovers += 1
        if self.trouble:
            raise self.trouble

    def data_file(self, lease: Lease, secret: str, terms: Terms) -> bytes:
        if self.data_trouble:
            raise self.data_trouble
        told = lease_data(lease, secret, terms).model_dump(mode="json")
        return json.dumps({"testenv": {"lease": told}}).encode()


@asynccontextmanager
async def slot_at(
    brokers: Sequence[Endpoint],
    caretaker: Caretaker,
    admission: Admission | None = None,
    timing: SlotTiming = QUICK,
) -> AsyncIterator[Slot]:
    """A slot with all that it needs, not yet alive."""
    with tempfile.TemporaryDirectory(prefix="testenv-slot-") as folder:
        path = Path(folder) / "journal.db"
        async with (
            Journal.open(path, now=partial(datetime.now, UTC)) as journal,
            Links(brokers, client_id="te1/1") as links,
            Links(brokers, client_id="te1/leases") as others,
        ):
            reception = Reception(others)
            receiving = asyncio.create_task(reception.run())
            try:
                admission = admission or Shutdown().admission()
                yield Slot(caretaker, links, reception, journal, admission, timing)
            finally:
                receiving.cancel()
                await asyncio.wait([receiving], timeout=SOON_S)


@asynccontextmanager
async def living_slot(
    broker: RunningBroker,
    caretaker: Caretaker,
    admission: Admission | None = None,
    timing: SlotTiming = QUICK,
) -> AsyncIterator[Slot]:
    async with slot_at([broker.endpoint], caretaker, admission, timing) as slot:
        life = asyncio.create_task(slot.run())
        try:
            yield slot
        finally:
            life.cancel()
            await asyncio.wait([life], timeout=SOON_S)


async def reaches(slot: Slot, state: EnvState) -> None:
    async with asyncio.timeout(SOON_S):
        while slot.report().state is not state:
            await asyncio.sleep(0.01)
