"""A holder who goes to libvirt and Open vSwitch directly, and what the next one sees of it."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.fleet import Fleet
from tests.lab import LabHost

SEED, FIRST, SECOND = "seed_1", "baremetalbrbm1_0", "baremetalbrbm1_1"
DISKS = "/var/lib/testenv/disks"


@pytest.fixture
def fleet(lab_fleet: Fleet) -> Iterator[Fleet]:
    """A broker, and te1's agent with one environment; destroyed afterwards."""
    with lab_fleet.serving_one():
        yield lab_fleet


def environment(host: LabHost) -> dict[str, Any]:
    """te1/1 as an admin's tools show it."""
    columns = ["--format=csv", "--columns=name,tag,trunks,vlan_mode", "list", "port"]
    info = ["qemu-img", "info", "--force-share", "--output=json"]
    return {
        **{
            name: host.run(["virsh", "dumpxml", "--inactive", name]).stdout
            for name in (SEED, FIRST, SECOND)
        },
        **{
            path: json.loads(host.run([*info, path]).stdout)
            for path in host.run(["sh", "-c", f"ls {DISKS}/*"]).stdout.split()
        },
        "domains": sorted(host.run(["virsh", "list", "--all", "--name"]).stdout.split()),
        "private bridge": host.run(["ovs-vsctl", "list-ports", "brbm1"]).stdout,
        "public bridge": host.run(["ovs-vsctl", "list-ports", "br-ctlplane"]).stdout,
        "ports": sorted(host.run(["ovs-vsctl", *columns]).stdout.splitlines()),
    }


def redefine(host: LabHost, domain: str, old: str, new: str) -> None:
    xml = host.run(["virsh", "dumpxml", "--inactive", domain]).stdout
    assert old in xml
    host.run(["virsh", "define", "/dev/stdin"], stdin=xml.replace(old, new))


def found(fleet: Fleet, host: LabHost, lease: str) -> str:
    """What the host's journal says was found different after `lease`."""
    events = json.loads(fleet.admin(host, "journal", "--json").stdout)["events"]
    [reason] = [
        event["reason"]
        for event in events
        if event["event"] == "found different" and event["lease"] == lease
    ]
    return str(reason)


def test_a_holder_who_sabotages_by_libvirt_and_open_vswitch_leaves_no_trace(fleet: Fleet) -> None:
    te1 = fleet.lab.hosts["te1"]
    before = environment(te1)
    with fleet.lease() as (document, end):
        nodes = document["testenv"]["nodes"]
        first_port, mac = nodes[0]["nics"][0]["port"], nodes[1]["nics"][0]["mac"]
        redefine(te1, FIRST, "<boot dev='network'/>", "<boot dev='cdrom'/>")
        extra = f"{DISKS}/extra.raw"
        te1.run(["qemu-img", "create", "-q", "-f", "raw", extra, "1M"])
        te1.run(["virsh", "attach-disk", FIRST, extra, "vdb", "--config", "--subdriver", "raw"])
        redefine(te1, SECOND, mac, "52:54:00:00:00:42")
        te1.run(["qemu-io", "-c", "write -P 7 0 64M", f"{DISKS}/{SECOND}.qcow2"])
        te1.run(["ovs-vsctl", "set", "port", first_port, "tag=42"])
        te1.run(["ip", "tuntap", "add", "dev", "stray", "mode", "tap"])
        te1.run(["ovs-vsctl", "add-port", "brbm1", "stray"])
        te1.run(["virsh", "undefine", SEED])
        te1.run(["virsh", "start", SECOND])
        end()
    fleet.wait_for_states({"te1/1": "ready"})
    te1.run(["sh", "-c", f"ip link delete stray; rm {extra}"])
    with fleet.lease() as (_, end):
        assert environment(te1) == before
        end()
    second_port = nodes[1]["nics"][0]["port"]
    disk = f"{DISKS}/{FIRST}.qcow2 (qcow2)"
    cards = f"52:54:00:00:00:42 on {second_port}, planned {mac} on {second_port}"
    assert set(found(fleet, te1, document["testenv"]["lease"]["id"]).split("; ")) == {
        f"{SEED}: is missing",
        f"{FIRST}: disks are {disk}, {extra} (raw), planned {disk}",
        f"{FIRST}: boots from cdrom, hd, planned network, hd",
        f"{SECOND}: network cards are {cards}",
        f"{first_port}: tag 42, planned none",
        "brbm1: stray port stray",
    }
