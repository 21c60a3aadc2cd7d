"""A planned domain as libvirt's XML."""

from pathlib import Path
from typing import Literal
from uuid import UUID

import pytest
from lxml import etree

from hosts.drivers.base import BOOT_ORDERS, DomainDetails, DriveInfo, NicInfo
from hosts.drivers.domain_xml import (
    MARK_NAMESPACE,
    domain_xml,
    emulator_path,
    marked_host,
    qemu_credentials,
    read_definition,
    seal_of,
)
from schemas.plan import Disk, Domain, KernelBoot, Network, Nic, Role


def planned(**changes: object) -> Domain:
    domain = Domain(
        name="baremetalbrbm1_0",
        uuid=UUID("6f0e6d6e-3d6c-4c0b-8f53-7f4f4b1c5c11"),
        role=Role.NODE,
        cpus=2,
        memory_mib=512,
        disk=Disk(path=Path("/var/lib/testenv/disks/node.qcow2"), size_gib=1, format="qcow2"),
        nics=tuple(
            Nic(
                mac=f"52:54:00:00:00:0{i}", network=Network.PRIVATE, bridge="brbm1", port=f"te1n{i}"
            )
            for i in range(2)
        ),
        boot="network",
        console=Path("/var/lib/testenv/console/node.log"),
    )
    return domain.model_copy(update=changes)


def xml_of(
    domain: Domain, *, host: str = "te1", domain_type: str = "kvm", datapath_type: str = "system"
) -> etree._Element:
    return etree.fromstring(
        domain_xml(domain, host=host, domain_type=domain_type, datapath_type=datapath_type)
    )


def attributes(root: etree._Element, path: str, name: str) -> list[str | None]:
    return [element.get(name) for element in root.iterfind(path)]


def test_name_uuid_and_size_are_the_plans() -> None:
    root = xml_of(planned())
    assert root.get("type") == "kvm"
    assert root.findtext("name") == "baremetalbrbm1_0"
    assert root.findtext("uuid") == "6f0e6d6e-3d6c-4c0b-8f53-7f4f4b1c5c11"
    assert root.findtext("vcpu") == "2"
    assert root.findtext("memory[@unit='MiB']") == "512"


def test_the_mark_names_the_host_and_can_be_read_back() -> None:
    (mark,) = xml_of(planned(), host="te-host.01").findall(f"metadata/{{{MARK_NAMESPACE}}}owner")
    assert marked_host(etree.tostring(mark, encoding="unicode")) == "te-host.01"


def test_each_nic_is_a_tap_that_outlives_the_domain() -> None:
    root = xml_of(planned())
    assert attributes(root, "devices/interface", "type") == ["ethernet"] * 2
    assert attributes(root, "devices/interface/target", "dev") == ["te1n0", "te1n1"]
    assert attributes(root, "devices/interface/target", "managed") == ["no"] * 2
    assert attributes(root, "devices/interface/mac", "address") == [
        "52:54:00:00:00:00",
        "52:54:00:00:00:01",
    ]


@pytest.mark.parametrize(("datapath_type", "drivers"), [("system", 0), ("netdev", 2)])
def test_nics_leave_no_checksums_to_the_userspace_datapath(
    datapath_type: str, drivers: int
) -> None:
    root = xml_of(planned(), datapath_type=datapath_type)
    assert attributes(root, "devices/interface/driver/host", "csum") == ["off"] * drivers
    assert attributes(root, "devices/interface/driver/guest", "csum") == ["off"] * drivers


def test_a_network_booted_domain_tries_its_disk_last() -> None:
    assert attributes(xml_of(planned(boot="network")), "os/boot", "dev") == ["network", "hd"]


def test_a_disk_booted_domain_boots_from_nothing_else() -> None:
    assert attributes(xml_of(planned(boot="disk")), "os/boot", "dev") == ["hd"]


def test_a_direct_kernel_boot_takes_any_command_line_as_it_is() -> None:
    boot = KernelBoot(kernel=Path("/k"), initrd=Path("/i"), cmdline="a=<b> & 'c' \"d\"")
    root = xml_of(planned(boot=boot))
    assert root.findtext("os/kernel") == "/k"
    assert root.findtext("os/initrd") == "/i"
    assert root.findtext("os/cmdline") == "a=<b> & 'c' \"d\""
    assert root.find("os/boot") is None


def test_a_kernel_needs_neither_initrd_nor_command_line() -> None:
    root = xml_of(planned(boot=KernelBoot(kernel=Path("/k"))))
    assert root.find("os/initrd") is None
    assert root.find("os/cmdline") is None


@pytest.mark.parametrize("disk_format", ["qcow2", "raw"])
def test_the_disk_is_opened_in_its_own_format(disk_format: str) -> None:
    disk = Disk(path=Path("/d & e"), size_gib=1, format=disk_format)
    root = xml_of(planned(disk=disk))
    assert attributes(root, "devices/disk/driver", "type") == [disk_format]
    assert attributes(root, "devices/disk/source", "file") == ["/d & e"]


def test_the_console_is_logged_and_each_boot_is_appended() -> None:
    (log,) = xml_of(planned()).findall("devices/serial/log")
    assert (log.get("file"), log.get("append")) == ("/var/lib/testenv/console/node.log", "on")


@pytest.mark.parametrize(
    ("domain_type", "mode"), [("kvm", "host-passthrough"), ("qemu", "maximum")]
)
def test_the_cpu_is_the_best_that_the_domain_type_has(domain_type: str, mode: str) -> None:
    root = xml_of(planned(), domain_type=domain_type)
    assert attributes(root, "cpu", "mode") == [mode]


def definition(domain: Domain, seal: str = "") -> str:
    """What libvirt would show of `domain`, with a mark that is sealed so."""
    root = xml_of(domain)
    (mark,) = root.findall(f"metadata/{{{MARK_NAMESPACE}}}owner")
    if seal:
        mark.set("seal", seal)
    (memory,) = root.findall("memory")
    memory.text, memory.attrib["unit"] = str(domain.memory_mib * 1024), "KiB"
    return etree.tostring(root, encoding="unicode")


@pytest.mark.parametrize(
    "boot", ["network", "disk", KernelBoot(kernel=Path("/k"), cmdline="a <b>")]
)
def test_a_definition_is_read_back_as_it_was_planned(
    boot: Literal["network", "disk"] | KernelBoot,
) -> None:
    domain = planned(boot=boot)
    seal = seal_of(definition(domain))
    assert read_definition(definition(domain, seal), running=True) == DomainDetails(
        running=True,
        memory_mib=512,
        cpus=2,
        nics=tuple(NicInfo(nic.mac, nic.port) for nic in domain.nics),
        drives=(DriveInfo(domain.disk.path, "qcow2"),),
        boot=boot if isinstance(boot, KernelBoot) else BOOT_ORDERS[boot],
    )


def test_a_seal_holds_for_what_was_sealed_and_nothing_else() -> None:
    whole = definition(planned(), seal_of(definition(planned())))
    assert not read_definition(whole, running=False).altered
    assert not read_definition(whole.replace("><", ">\n  <"), running=False).altered
    changed = whole.replace("<on_reboot>restart", "<on_reboot>destroy")
    assert read_definition(changed, running=False).altered
    assert read_definition(definition(planned()), running=False).altered, "never sealed"


def test_what_is_no_tap_and_no_file_is_read_as_such() -> None:
    whole = definition(planned())
    foreign = whole.replace(
        "</devices>",
        "<interface type='network'><mac address='52:54:00:00:00:09'/><target dev='x'/></interface>"
        "<disk type='file' device='cdrom'><target dev='sda'/></disk></devices>",
    )
    found = read_definition(foreign, running=False)
    assert found.nics[-1] == NicInfo("52:54:00:00:00:09", "")
    assert found.drives[-1] == DriveInfo(None, "")


def test_nvram_is_a_leftover() -> None:
    whole = definition(planned()).replace("</os>", "<nvram>/n</nvram></os>")
    assert read_definition(whole, running=False, leftovers=("autostart",)).leftovers == (
        "autostart",
        "NVRAM",
    )


def test_qemus_user_is_read_from_the_capabilities() -> None:
    capabilities = """
    <capabilities><host>
      <secmodel><model>apparmor</model><doi>0</doi></secmodel>
      <secmodel><model>dac</model><doi>0</doi>
        <baselabel type='kvm'>+64055:+109</baselabel>
        <baselabel type='qemu'>+64055:+109</baselabel></secmodel>
    </host></capabilities>"""
    assert qemu_credentials(capabilities) == (64055, 109)


def test_without_a_security_model_qemu_runs_as_root() -> None:
    assert qemu_credentials("<capabilities><host/></capabilities>") == (0, 0)


def test_the_emulator_is_read_from_the_domain_capabilities() -> None:
    document = "<domainCapabilities><path>/usr/bin/qemu-system-x86_64</path></domainCapabilities>"
    assert emulator_path(document) == "/usr/bin/qemu-system-x86_64"
