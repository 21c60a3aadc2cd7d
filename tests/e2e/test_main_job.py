"""The main job, on real VMs and real Open vSwitch: lock, use, give back."""

import json
from contextlib import ExitStack
from typing import Any

from lxml import etree

from tests.e2e.conftest import ALL_READY
from tests.e2e.fleet import Fleet, wait_until
from tests.lab import LabHost

SEED_ANSWERS = """
ip=$(jq -r '."seed-ip"' "$TE_DATAFILE")
curl -fsS --retry 60 --retry-delay 1 --retry-all-errors --connect-timeout 1 "http://$ip/" >&2
"""


def host_of(fleet: Fleet, document: dict[str, Any]) -> LabHost:
    return fleet.lab.hosts[document["testenv"]["host"]]


def virsh(host: LabHost, *words: str) -> str:
    return host.run(["virsh", "-c", "qemu:///system", *words]).stdout


def test_every_environment_of_both_hosts_is_offered(fleet: Fleet) -> None:
    assert {name: env["state"] for name, env in fleet.environments().items()} == ALL_READY


def test_the_data_file_describes_what_libvirt_really_has(fleet: Fleet) -> None:
    with fleet.lease() as (document, end):
        host = host_of(fleet, document)
        extension = document["testenv"]
        for machine in (extension["seed"], *extension["nodes"]):
            domain = etree.fromstring(virsh(host, "dumpxml", machine["name"]).encode())
            macs = [mac.get("address") for mac in domain.findall("devices/interface/mac")]
            ports = [dev.get("dev") for dev in domain.findall("devices/interface/target")]
            assert macs == [nic["mac"] for nic in machine["nics"]]
            assert ports == [nic["port"] for nic in machine["nics"]]
            assert domain.findtext("uuid") == machine["uuid"]
            for nic in machine["nics"]:
                bridge = host.run(["ovs-vsctl", "port-to-br", nic["port"]]).stdout.strip()
                assert bridge == nic["bridge"]
        end()


def test_the_seed_answers_at_its_address_on_the_ci_network(fleet: Fleet) -> None:
    fleet.job(SEED_ANSWERS)


def test_a_node_that_is_powered_on_boots_from_its_own_seed(fleet: Fleet) -> None:
    """The seed's DHCP, QEMU's iPXE, the private bridge: all of it is the environment's own."""
    with fleet.lease() as (document, end):
        node = document["nodes"][0]
        virsh(host_of(fleet, document), "start", node["name"])
        url = f"http://{document['seed-ip']}/nodes"

        def reported() -> bool:
            answer = fleet.lab.ci.run(["curl", "-fsS", "-m", "2", url], check=False).stdout
            return node["ports"][0]["address"] in answer

        wait_until(reported, 90, fleet.log)
        end()


def test_what_a_holder_did_is_gone_for_the_next(fleet: Fleet) -> None:
    """A node's console, a tag on its port, more CPUs, a disk written to: all undone."""
    with fleet.lease() as (document, end):
        host = host_of(fleet, document)
        node = document["testenv"]["nodes"][0]
        before = virsh(host, "dumpxml", "--inactive", node["name"])
        [disk] = etree.fromstring(before.encode()).xpath("devices/disk/source/@file")
        changed = before.replace("<vcpu placement='static'>1<", "<vcpu placement='static'>2<")
        assert changed != before
        host.run(["virsh", "define", "/dev/stdin"], stdin=changed)
        host.run(["ovs-vsctl", "set", "port", node["nics"][0]["port"], "tag=42"])
        host.run(["qemu-io", "-c", "write -P 7 0 1M", disk])
        virsh(host, "start", node["name"])
        end()
        env = document["testenv"]["lease"]["environment"]
        wait_until(lambda: fleet.environments()[env]["state"] == "ready", 60, fleet.log)
    assert virsh(host, "dumpxml", "--inactive", node["name"]) == before
    assert virsh(host, "domstate", node["name"]).strip() == "shut off"
    tag = host.run(["ovs-vsctl", "get", "port", node["nics"][0]["port"], "tag"]).stdout
    assert tag.strip() == "[]"
    assert not host.path(f"/var/lib/testenv/console/{node['name']}.log").exists()
    read = host.run(["qemu-io", "-r", "-c", "read -P 0 0 1M", disk]).stdout
    assert "verification failed" not in read


def test_two_environments_are_never_on_one_private_bridge(fleet: Fleet) -> None:
    for host in fleet.lab.hosts.values():
        for number in (1, 2):
            ports = host.run(["ovs-vsctl", "list-ports", f"brbm{number}"]).stdout.split()
            assert sorted(ports) == [f"te{number}n0e0", f"te{number}n1e0", f"te{number}s1"]


def test_a_second_client_waits_and_gets_its_turn(fleet: Fleet) -> None:
    with ExitStack() as stack:
        leases = [stack.enter_context(fleet.lease()) for _ in range(4)]
        held = {document["testenv"]["lease"]["environment"] for document, _ in leases}
        assert held == set(ALL_READY)
        with fleet.client("true") as waiting:
            _, end = leases[0]
            end()
            assert waiting.wait(timeout=60) == 0
    fleet.wait_for_states(ALL_READY)


def test_old_readers_read_the_data_file(fleet: Fleet) -> None:
    document = json.loads(
        fleet.job(
            """
            jq -e '.nodes | length == 2' "$TE_DATAFILE" >&2
            seed_ip=$(os-apply-config -m "$TE_DATAFILE" --key seed-ip --type netaddress)
            device=$(os-apply-config -m "$TE_DATAFILE" --key seed-route-dev --type netdevice)
            jq --arg ip "$seed_ip" --arg dev "$device" '. + {ip: $ip, dev: $dev}' "$TE_DATAFILE"
            """
        )
    )
    assert document["ip"] == document["seed-ip"]
    assert document["dev"] == document["seed-route-dev"] == "br-ctlplane"
