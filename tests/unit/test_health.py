"""A host is well by small signs, looked at in time and never twice at once."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from ipaddress import IPv4Interface
from pathlib import Path

import pytest

from hosts.admission import Admission, Bar, Shutdown
from hosts.builder import Builder
from hosts.chronicle import read_journal
from hosts.drivers.fake import FakeMachine, fake_drivers
from hosts.health import Health
from hosts.journal import Journal
from hosts.plan import plan_host
from hosts.vitals import Vital, vitals
from schemas.config import HostConfig
from schemas.errors import BridgeError, DiskError, HypervisorError
from schemas.plan import Facts, HostPlan

ENV = "te1/1"
FOREVER_S = 3600.0


class Patient:
    """Something that is well or not, and counts how often it is looked at."""

    def __init__(self) -> None:
        self.trouble: str | None = None
        self.looks = 0

    def look(self) -> str | None:
        self.looks += 1
        return self.trouble


class Ward:
    """A Health of one patient, with all that it needs."""

    def __init__(self, health: Health, admission: Admission, path: Path) -> None:
        self.health = health
        self.admission = admission
        self._path = path

    def journalled(self) -> list[tuple[str, str]]:
        return [(one.event, one.reason) for one in read_journal(self._path).events]


@asynccontextmanager
async def ward(
    folder: Path, *signs: Vital, check_interval_s: float = FOREVER_S
) -> AsyncIterator[Ward]:
    path = folder / "journal.db"
    async with Journal.open(path, now=partial(datetime.now, UTC)) as journal:
        admission = Shutdown().admission()
        health = Health(signs, {ENV: admission}, journal, check_interval_s=check_interval_s)
        life = asyncio.create_task(health.run())
        try:
            yield Ward(health, admission, path)
        finally:
            life.cancel()
            await asyncio.wait([life])


async def comes(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_sick_host_withdraws_its_environments_and_offers_them_again(
    tmp_path: Path,
) -> None:
    patient = Patient()
    async with ward(tmp_path, Vital("it", patient.look), check_interval_s=0.05) as host:
        assert await host.health.trouble() == ""
        patient.trouble = "no disk space"
        await comes(lambda: host.admission.reason(Bar.SICK) == "no disk space")
        patient.trouble = "still no disk space"
        await comes(lambda: host.admission.reason(Bar.SICK) == "still no disk space")
        patient.trouble = None
        await comes(lambda: host.admission.reason(Bar.SICK) is None)
        assert not host.admission.closed.is_set()
    assert host.journalled() == [("withdrawn", "no disk space"), ("well again", "")]


async def test_a_look_that_is_fresh_enough_is_not_taken_again(tmp_path: Path) -> None:
    patient = Patient()
    async with ward(tmp_path, Vital("it", patient.look)) as host:
        for _ in range(3):
            assert await host.health.trouble() == ""
        assert patient.looks == 1
        await host.health.trouble(anew=True)
        assert patient.looks == 2


async def test_no_answer_is_older_than_the_interval(tmp_path: Path) -> None:
    patient = Patient()
    path = tmp_path / "journal.db"
    async with Journal.open(path, now=partial(datetime.now, UTC)) as journal:
        health = Health([Vital("it", patient.look)], {}, journal, check_interval_s=0.05)
        await health.trouble()
        patient.trouble = "ill"
        await asyncio.sleep(0.06)
        assert await health.trouble() == "ill"


async def test_a_host_that_was_not_well_is_looked_at_anew_at_once(tmp_path: Path) -> None:
    patient = Patient()
    patient.trouble = "no address yet"
    async with ward(tmp_path, Vital("it", patient.look)) as host:
        assert await host.health.trouble() == "no address yet"
        patient.trouble = None
        assert await host.health.trouble() == ""


async def test_all_who_ask_at_once_share_a_look(tmp_path: Path) -> None:
    patient = Patient()
    async with ward(tmp_path, Vital("it", patient.look)) as host:
        await asyncio.gather(*(host.health.trouble() for _ in range(20)))
    assert patient.looks == 1


async def test_what_hangs_does_not_answer_and_is_not_asked_twice_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hosts.health.LOOK_S", 0.1)
    freed = threading.Event()
    looks = []

    def hang() -> None:
        looks.append(1)
        freed.wait(10)

    async with ward(tmp_path, Vital("libvirt", hang)) as host:
        for _ in range(3):
            assert await host.health.trouble() == "libvirt: does not answer within 0.1 s"
        assert len(looks) == 1
        freed.set()
        assert await host.health.trouble() == ""


async def test_what_can_be_repaired_is_before_anything_is_withdrawn(tmp_path: Path) -> None:
    patient = Patient()
    patient.trouble = "the address is gone"

    def repair() -> None:
        patient.trouble = None

    async with ward(tmp_path, Vital("it", patient.look, repair)) as host:
        assert await host.health.trouble() == ""
    assert patient.looks == 2
    assert host.journalled() == []


async def test_a_repair_that_fails_is_the_reason(tmp_path: Path) -> None:
    patient = Patient()
    patient.trouble = "the address is gone"

    def repair() -> None:
        raise BridgeError("br-ctlplane", "ovsdb-server does not answer")

    async with ward(tmp_path, Vital("it", patient.look, repair)) as host:
        assert await host.health.trouble() == "bridge br-ctlplane: ovsdb-server does not answer"


async def test_a_defect_in_a_look_is_a_reason_and_not_the_end(tmp_path: Path) -> None:
    def defect() -> None:
        raise KeyError("port")

    async with ward(tmp_path, Vital("it", defect)) as host:
        assert await host.health.trouble() == "it: internal error: KeyError('port')"


async def test_a_host_without_signs_is_always_well(tmp_path: Path) -> None:
    async with ward(tmp_path) as host:
        assert await host.health.trouble(anew=True) == ""


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "seed.qcow2"
    path.write_text("an image")
    return path


@pytest.fixture
def machine(image: Path) -> FakeMachine:
    return FakeMachine(devices={"eth1": ""}, images={image})


def planned(image: Path) -> HostPlan:
    config = HostConfig.model_validate(
        {
            "host": {"name": "te1", "state_dir": "/nowhere"},
            "public": {"interface": "eth1"},
            "environments": {"count": 2, "seed": {"image": image}},
        }
    )
    return plan_host(config, Facts(memory_mib=65536, cpus=64, disk_gib=500))


def troubles(
    machine: FakeMachine, image: Path, folder: Path, *, min_free_gib: float = 0
) -> dict[str, str]:
    """What each sign says of a host with two environments, to an agent that has just started."""
    plan, drivers = planned(image), fake_drivers(machine, "te1")
    signs = vitals(lambda: plan, drivers, folder, min_free_gib=min_free_gib, repair=lambda: None)
    found = {}
    for sign in signs:
        try:
            why = sign.look()
        except (HypervisorError, BridgeError, DiskError) as error:
            why = str(error)
        if why:
            found[sign.name] = why
    return found


def built(machine: FakeMachine, image: Path, folder: Path) -> None:
    plan = planned(image)
    builder = Builder(plan, fake_drivers(machine, "te1"), folder)
    for env in plan.environments:
        builder.build(env)


def drop_address(machine: FakeMachine) -> None:
    machine.addresses.clear()
    machine.addresses[IPv4Interface("203.0.113.1/25")] = "br-ctlplane"


def break_uplink(machine: FakeMachine) -> None:
    ports = machine.bridges["br-ctlplane"].ports
    ports["eth1"] = replace(ports["eth1"], error="no such device")


def stop_address_server(machine: FakeMachine) -> None:
    machine.is_deaf = True


def stop_libvirt(machine: FakeMachine) -> None:
    machine.fail_on("domains", "", HypervisorError("qemu:///system", "does not answer"))


def stop_switch(machine: FakeMachine) -> None:
    machine.fail_on("bridges", "", BridgeError("unix:db.sock", "does not answer"))


def test_a_host_as_it_was_built_is_well(machine: FakeMachine, image: Path, tmp_path: Path) -> None:
    built(machine, image, tmp_path)
    assert troubles(machine, image, tmp_path) == {}


@pytest.mark.parametrize(
    ("harm", "sign", "why"),
    [
        (stop_libvirt, "libvirt", "libvirt at qemu:///system: does not answer"),
        (stop_switch, "Open vSwitch", "bridge unix:db.sock: does not answer"),
        (break_uplink, "Open vSwitch", "port eth1 of br-ctlplane: no such device"),
        (
            drop_address,
            "address",
            "br-ctlplane does not have this host's address 203.0.113.1/24",
        ),
        (stop_address_server, "address server", "the address server does not answer"),
    ],
)
def test_whatever_is_wrong_is_said(
    machine: FakeMachine,
    image: Path,
    tmp_path: Path,
    harm: Callable[[FakeMachine], None],
    sign: str,
    why: str,
) -> None:
    built(machine, image, tmp_path)
    harm(machine)
    assert troubles(machine, image, tmp_path) == {sign: why}


@pytest.mark.parametrize(
    ("harm", "name"), [(drop_address, "address"), (stop_address_server, "address server")]
)
def test_what_the_environments_share_is_repaired(
    machine: FakeMachine,
    image: Path,
    tmp_path: Path,
    harm: Callable[[FakeMachine], None],
    name: str,
) -> None:
    built(machine, image, tmp_path)
    served = machine.reservations
    harm(machine)
    plan, drivers = planned(image), fake_drivers(machine, "te1")
    repair = Builder(plan, drivers, tmp_path).ensure_host
    signs = vitals(lambda: plan, drivers, tmp_path, min_free_gib=0, repair=repair)
    (sign,) = (each for each in signs if each.name == name)
    assert sign.repair
    sign.repair()
    assert sign.look() is None
    assert machine.reservations == served


def test_a_broken_port_of_an_environment_is_that_ones_matter(
    machine: FakeMachine, image: Path, tmp_path: Path
) -> None:
    built(machine, image, tmp_path)
    bridge = machine.bridges["brbm1"]
    bridge.ports = {name: replace(port, error="gone") for name, port in bridge.ports.items()}
    assert bridge.ports
    assert troubles(machine, image, tmp_path) == {}


def test_too_little_disk_space_is_told_in_gib(
    machine: FakeMachine, image: Path, tmp_path: Path
) -> None:
    built(machine, image, tmp_path)
    found = troubles(machine, image, tmp_path, min_free_gib=1e9)
    assert found["disk space"].endswith(
        f" GiB are free in {tmp_path}, below health.min_free_gib 1e+09"
    )


def test_an_image_is_read_again_only_when_it_was_changed(
    machine: FakeMachine, image: Path, tmp_path: Path
) -> None:
    built(machine, image, tmp_path)
    signs = vitals(
        lambda: planned(image),
        fake_drivers(machine, "te1"),
        tmp_path,
        min_free_gib=0,
        repair=lambda: None,
    )
    (look,) = (sign.look for sign in signs if sign.name == "boot files")
    look()
    read_once = machine.calls
    look()
    assert machine.calls == read_once
    image.write_text("another image")
    look()
    assert machine.calls == read_once + 1
    machine.images.clear()
    image.unlink()
    for _ in range(2):
        with pytest.raises(DiskError, match="there is no such file"):
            look()
