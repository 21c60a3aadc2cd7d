"""What every Hypervisor promises about domains."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest

from hosts.drivers.base import (
    BOOT_ORDERS,
    DomainDetails,
    DomainInfo,
    DriveInfo,
    Hypervisor,
    NicInfo,
)
from schemas.errors import DomainError, ForeignObject
from schemas.plan import Domain, KernelBoot
from tests.contract.plans import build, planned_domain
from tests.contract.rigs import Rig

VERBS: dict[str, Callable[[Hypervisor, Domain], object]] = {
    "start": lambda driver, domain: driver.start_domain(domain.name),
    "power off": lambda driver, domain: driver.power_off_domain(domain.name),
    "remove": lambda driver, domain: driver.remove_domain(domain.name),
    "ensure": lambda driver, domain: driver.ensure_domain(domain),
    "inspect": lambda driver, domain: driver.inspect_domain(domain.name),
}
KERNEL_BOOT = KernelBoot(kernel=Path("/k"), initrd=Path("/i"), cmdline="console=ttyS0 <&>")


def test_an_ensured_domain_is_ours_and_off(rig: Rig) -> None:
    domain = planned_domain(rig)
    build(rig, domain)
    assert rig.drivers.hypervisor.domains() == (DomainInfo("seed_1", domain.uuid, running=False),)
    assert rig.domains() == {"seed_1": False}


def test_a_started_domain_runs_and_starting_it_again_changes_nothing(rig: Rig) -> None:
    domain = planned_domain(rig, ports=("te1s0",))
    build(rig, domain)
    rig.drivers.hypervisor.start_domain("seed_1")
    first = rig.run_of("seed_1")
    rig.drivers.hypervisor.start_domain("seed_1")
    assert rig.drivers.hypervisor.domains() == (DomainInfo("seed_1", domain.uuid, running=True),)
    assert rig.run_of("seed_1") == first


def test_starting_a_domain_that_is_not_there_is_an_error_that_names_it(rig: Rig) -> None:
    with pytest.raises(DomainError, match="seed_1"):
        rig.drivers.hypervisor.start_domain("seed_1")


def test_a_domain_starts_only_with_its_disk(rig: Rig) -> None:
    domain = planned_domain(rig)
    rig.drivers.hypervisor.ensure_domain(domain)
    with pytest.raises(DomainError, match="seed_1"):
        rig.drivers.hypervisor.start_domain("seed_1")
    rig.drivers.disks.make_fresh(domain.disk)
    rig.drivers.hypervisor.start_domain("seed_1")
    assert rig.domains() == {"seed_1": True}


def test_a_domain_starts_only_with_its_taps(rig: Rig) -> None:
    domain = planned_domain(rig, ports=("te1s0",))
    build(rig, domain)
    rig.drivers.network.remove_tap("te1s0")
    with pytest.raises(DomainError, match="seed_1"):
        rig.drivers.hypervisor.start_domain("seed_1")
    assert rig.devices().isdisjoint({"te1s0"})
    rig.drivers.network.ensure_tap("te1s0")
    rig.drivers.hypervisor.start_domain("seed_1")


def test_power_off_stops_a_domain_and_its_tap_stays(rig: Rig) -> None:
    build(rig, planned_domain(rig, ports=("te1s0",)))
    rig.drivers.hypervisor.start_domain("seed_1")
    rig.drivers.hypervisor.power_off_domain("seed_1")
    assert rig.domains() == {"seed_1": False}
    assert "te1s0" in rig.devices()


def test_power_off_of_a_stopped_or_missing_domain_is_nothing(rig: Rig) -> None:
    rig.drivers.hypervisor.power_off_domain("seed_1")
    build(rig, planned_domain(rig))
    rig.drivers.hypervisor.power_off_domain("seed_1")
    assert rig.domains() == {"seed_1": False}


def test_ensuring_a_running_domain_again_leaves_it_running(rig: Rig) -> None:
    domain = planned_domain(rig)
    build(rig, domain)
    rig.drivers.hypervisor.start_domain("seed_1")
    first = rig.run_of("seed_1")
    rig.drivers.hypervisor.ensure_domain(domain)
    assert rig.run_of("seed_1") == first


def test_a_changed_plan_counts_from_the_next_start(rig: Rig) -> None:
    build(rig, planned_domain(rig, memory_mib=64))
    rig.drivers.hypervisor.start_domain("seed_1")
    rig.drivers.hypervisor.ensure_domain(planned_domain(rig, memory_mib=96))
    assert rig.domains() == {"seed_1": True}
    assert rig.memory_mib("seed_1") == 96


@pytest.mark.parametrize("boot", ["network", "disk", KERNEL_BOOT])
def test_a_domain_is_seen_as_it_was_planned(
    rig: Rig, boot: Literal["network", "disk"] | KernelBoot
) -> None:
    domain = planned_domain(rig, ports=("te1s0", "te1s1"), memory_mib=80, boot=boot)
    build(rig, domain)
    assert rig.drivers.hypervisor.inspect_domain("seed_1") == DomainDetails(
        running=False,
        memory_mib=80,
        cpus=1,
        nics=tuple(NicInfo(nic.mac, nic.port) for nic in domain.nics),
        drives=(DriveInfo(domain.disk.path, "qcow2"),),
        boot=boot if isinstance(boot, KernelBoot) else BOOT_ORDERS[boot],
    )
    assert rig.drivers.hypervisor.inspect_domain("seed_2") is None


def test_what_a_holder_has_changed_is_seen_until_the_domain_is_made_again(rig: Rig) -> None:
    domain, hypervisor = planned_domain(rig, memory_mib=64), rig.drivers.hypervisor
    build(rig, domain)
    rig.set_memory("seed_1", 96)
    rig.set_autostart("seed_1")
    seen = hypervisor.inspect_domain("seed_1")
    assert seen
    assert (seen.memory_mib, seen.altered, seen.leftovers) == (96, True, ("autostart",))
    hypervisor.remove_domain("seed_1")
    hypervisor.ensure_domain(domain)
    seen = hypervisor.inspect_domain("seed_1")
    assert seen
    assert (seen.memory_mib, seen.altered, seen.leftovers) == (64, False, ())


def test_a_domain_that_runs_is_not_taken_for_changed(rig: Rig) -> None:
    build(rig, planned_domain(rig, ports=("te1s0",)))
    rig.drivers.hypervisor.start_domain("seed_1")
    seen = rig.drivers.hypervisor.inspect_domain("seed_1")
    assert seen
    assert (seen.running, seen.altered, seen.leftovers) == (True, False, ())


def test_removing_a_running_domain_leaves_nothing_and_may_be_repeated(rig: Rig) -> None:
    build(rig, planned_domain(rig))
    rig.drivers.hypervisor.start_domain("seed_1")
    rig.drivers.hypervisor.remove_domain("seed_1")
    rig.drivers.hypervisor.remove_domain("seed_1")
    assert rig.domains() == {}
    assert rig.drivers.hypervisor.domains() == ()


@pytest.mark.parametrize("verb", VERBS)
def test_a_domain_without_our_mark_is_refused_and_untouched(rig: Rig, verb: str) -> None:
    domain = planned_domain(rig, memory_mib=96)
    rig.plant_domain(planned_domain(rig, memory_mib=64))
    with pytest.raises(ForeignObject, match="seed_1"):
        VERBS[verb](rig.drivers.hypervisor, domain)
    assert rig.domains() == {"seed_1": False}
    assert rig.memory_mib("seed_1") == 64
    assert rig.drivers.hypervisor.domains() == ()


def test_another_hosts_domain_is_refused_by_its_owners_name(rig: Rig) -> None:
    build(rig, planned_domain(rig))
    other = rig.drivers_of("other").hypervisor
    with pytest.raises(ForeignObject) as caught:
        other.remove_domain("seed_1")
    assert caught.value.owner == "contract"
    assert other.domains() == ()
    assert rig.domains() == {"seed_1": False}


def test_an_agent_started_again_knows_its_domains(rig: Rig) -> None:
    build(rig, planned_domain(rig))
    assert rig.drivers_of("contract").hypervisor.domains() == rig.drivers.hypervisor.domains()
