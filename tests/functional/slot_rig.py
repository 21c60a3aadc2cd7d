"""A slot with all that it needs, a caretaker of nothing that counts, and a client of toci's."""

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from broker import admin
from broker.client import SubmittedJob, submit
from broker.endpoint import Endpoint
from broker.link import Link
from broker.links import Links, OneLink
from broker.worker import Assignment, Worker
from hosts.admission import Admission, Shutdown
from hosts.caretaker import Caretaker
from hosts.chronicle import read_journal
from hosts.datafile import lease_data
from hosts.health import Health
from hosts.holds import HoldLimits, Holds
from hosts.journal import Journal
from hosts.reception import Reception
from hosts.slot import Slot, SlotTiming
from hosts.verify import Differences
from hosts.vetting import DEMANDS_NOTHING, Standards, Vetting
from hosts.vitals import Vital
from schemas.plan import Environment
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
        self.rebuilds: list[Environment] = []
        self.is_removed = False
        self.is_secluded = False
        self.wire_trouble: Exception | None = None
        self.fenced = ""
        self.found: Differences = ()
        self.differing: Differences = ()
        self.verifying: Exception | None = None
        self.trouble: Exception | None = None
        self.data_trouble: Exception | None = None

    async def build(self) -> None:
        self.builds += 1
        if self.trouble:
            raise self.trouble

    async def rebuild(self, plan: Environment) -> None:
        self.rebuilds.append(plan)
        if self.trouble:
            raise self.trouble

    async def remove(self) -> None:
        self.is_removed = True
        if self.trouble:
            raise self.trouble

    async def fence(self, lease: str) -> Differences:
        self.fences += 1
        self.fenced = lease
        return self.found

    async def seclude(self) -> None:
        self.is_secluded = True
        if self.wire_trouble:
            raise self.wire_trouble

    async def connect(self) -> None:
        self.is_secluded = False
        if self.wire_trouble:
            raise self.wire_trouble

    async def turn_over(self) -> None:
        self.turnovers += 1
        if self.trouble:
            raise self.trouble

    async def differences(self) -> Differences:
        if self.verifying:
            raise self.verifying
        return self.differing

    def data_file(self, lease: Lease, secret: str, terms: Terms | None) -> bytes:
        if self.data_trouble:
            raise self.data_trouble
        told = lease_data(lease, secret, terms).model_dump(mode="json")
        return json.dumps({"testenv": {"lease": told}}).encode()

    def describe(self) -> bytes:
        return b'{"seed-ip": "203.0.113.10"}'


@asynccontextmanager
async def slot_at(
    brokers: Sequence[Endpoint],
    caretaker: Caretaker,
    admission: Admission | None = None,
    timing: SlotTiming = QUICK,
    standards: Standards = DEMANDS_NOTHING,
    vitals: Sequence[Vital] = (),
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
            admission = admission or Shutdown().admission()
            health = Health(
                vitals,
                {caretaker.id: admission},
                journal,
                check_interval_s=standards.check_interval_s,
            )
            working = [asyncio.create_task(reception.run()), asyncio.create_task(health.run())]
            try:
                vetting = Vetting(caretaker, journal, health, standards)
                holds = Holds("te1", journal, HoldLimits())
                yield Slot(caretaker, links, reception, journal, admission, vetting, holds, timing)
            finally:
                for task in working:
                    task.cancel()
                await asyncio.wait(working, timeout=SOON_S)


@asynccontextmanager
async def living_slot(
    broker: RunningBroker,
    caretaker: Caretaker,
    admission: Admission | None = None,
    timing: SlotTiming = QUICK,
    standards: Standards = DEMANDS_NOTHING,
    vitals: Sequence[Vital] = (),
) -> AsyncIterator[Slot]:
    endpoints = [broker.endpoint]
    async with slot_at(endpoints, caretaker, admission, timing, standards, vitals) as slot:
        life = asyncio.create_task(slot.run())
        try:
            yield slot
        finally:
            life.cancel()
            await asyncio.wait([life], timeout=SOON_S)


async def comes(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(SOON_S):
        while not condition():
            await asyncio.sleep(0.01)


async def journalled(slot: Slot, **wanted: str) -> None:
    """It is in the journal by now, or soon: only grants are waited for."""

    def found() -> bool:
        records = (one._asdict() for one in read_journal(slot._journal.path).events)
        return any(wanted.items() <= one.items() for one in records)

    await comes(found)


async def reaches(slot: Slot, state: EnvState) -> None:
    await comes(lambda: slot.report().state is state)


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


async def offered(broker: Endpoint, function: str = "lockenv") -> int:
    return sum(one.workers for one in await admin.status(broker) if one.name == function)
