"""The two worlds that the contract suite runs in, with readers and tricks outside the drivers.

A rig plants what is not ours, meddles as a lease's holder could, and looks at the outcome. The real
one does so with virsh, ovs-vsctl, ip and qemu-img, never with the drivers that are tested.
"""

import json
import shutil
import subprocess
from contextlib import suppress
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path
from typing import Protocol

from hosts.drivers.base import Drivers, PortInfo
from hosts.drivers.connect import qemu_user
from hosts.drivers.disks import QemuImg
from hosts.drivers.dnsmasq import Dnsmasq
from hosts.drivers.fake import FakeBridge, FakeDomain, FakeMachine, fake_drivers
from hosts.drivers.hypervisor import LibvirtHypervisor
from hosts.drivers.libvirt_connection import LibvirtConnection
from hosts.drivers.memory import LinuxMemory
from hosts.drivers.network import LinuxNetwork
from hosts.drivers.switch import OvsSwitch, detect_datapath_type
from schemas.plan import Domain

HOST = "contract"
BRIDGE = "br-ctlplane"
ADDRESS = IPv4Interface("203.0.113.1/24")
OVSDB = "unix:/run/openvswitch/db.sock"
LIBVIRT = "qemu:///system"


class Rig(Protocol):
    """A machine with `drivers` of HOST. Looking is by name; "" is no owner, None no such thing."""

    drivers: Drivers
    directory: Path
    """Where disks and images go."""

    def drivers_of(self, host: str) -> Drivers:
        """Drivers of another host on the same machine; the same host's are an agent restarted."""

    def plant_domain(self, domain: Domain) -> None:
        """Somebody else's domain of this name."""

    def domains(self) -> dict[str, bool]:
        """Every domain there is, and whether it is powered on."""

    def memory_mib(self, domain: str) -> int:
        """What the domain will have at its next start."""

    def set_memory(self, domain: str, memory_mib: int) -> None:
        """As a holder could, from the next start on."""

    def set_autostart(self, domain: str) -> None: ...

    def run_of(self, domain: str) -> object:
        """Tells one power-on of a domain from the next."""

    def plant_bridge(self, name: str) -> None: ...

    def plant_port(self, bridge: str, port: str) -> None: ...

    def set_vlans(self, port: str, tag: int, trunks: tuple[int, ...]) -> None: ...

    def bridges(self) -> dict[str, set[str]]:
        """Every bridge there is, and its ports."""

    def plant_device(self, name: str) -> None:
        """A network device that is not ours."""

    def devices(self) -> set[str]:
        """Every network device there is."""

    def address_holders(self, address: IPv4Address) -> dict[str, IPv4Interface]:
        """The devices that have `address`, and the prefix length that they have it with."""

    def reserve_hugepages(self, mib: int) -> None:
        """So much memory is huge pages, and no more."""

    def plant_image(self, name: str) -> Path:
        """A base image that can be used."""

    def close(self) -> None:
        """Remove all that the test made."""


class FakeRig:
    """Everything in memory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.machine = FakeMachine()
        self.drivers = fake_drivers(self.machine, HOST)
        self._runs = 0

    def drivers_of(self, host: str) -> Drivers:
        return fake_drivers(self.machine, host)

    def plant_domain(self, domain: Domain) -> None:
        self.machine.domains[domain.name] = FakeDomain(owner="", plan=domain)

    def domains(self) -> dict[str, bool]:
        return {name: domain.running for name, domain in self.machine.domains.items()}

    def memory_mib(self, domain: str) -> int:
        return self.machine.domains[domain].plan.memory_mib

    def set_memory(self, domain: str, memory_mib: int) -> None:
        there = self.machine.domains[domain]
        there.plan = there.plan.model_copy(update={"memory_mib": memory_mib})

    def set_autostart(self, domain: str) -> None:
        self.machine.domains[domain].leftovers += ("autostart",)

    def run_of(self, domain: str) -> object:
        return self.machine.domains[domain].running

    def plant_bridge(self, name: str) -> None:
        self.machine.bridges[name] = FakeBridge(owner="")
        self.machine.devices[name] = ""

    def plant_port(self, bridge: str, port: str) -> None:
        self.machine.bridges[bridge].ports[port] = PortInfo(port)

    def set_vlans(self, port: str, tag: int, trunks: tuple[int, ...]) -> None:
        for bridge in self.machine.bridges.values():
            if port in bridge.ports:
                bridge.ports[port] = replace(bridge.ports[port], tag=tag, trunks=trunks)

    def bridges(self) -> dict[str, set[str]]:
        return {name: set(bridge.ports) for name, bridge in self.machine.bridges.items()}

    def plant_device(self, name: str) -> None:
        self.machine.devices[name] = ""

    def devices(self) -> set[str]:
        return set(self.machine.devices)

    def address_holders(self, address: IPv4Address) -> dict[str, IPv4Interface]:
        return {
            device: held for held, device in self.machine.addresses.items() if held.ip == address
        }

    def reserve_hugepages(self, mib: int) -> None:
        self.machine.hugepages = mib // 2

    def plant_image(self, name: str) -> Path:
        image = self.directory / name
        self.machine.images.add(image)
        return image

    def close(self) -> None:
        """Nothing is held."""


class RealRig:
    """This lab host's own libvirt, Open vSwitch, kernel and dnsmasq."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.datapath_type = detect_datapath_type()
        self._made: list[Drivers] = []
        self._devices_before = self.devices()
        self._pages_before = LinuxMemory().hugepages().total
        self.drivers = self.drivers_of(HOST)

    def drivers_of(self, host: str) -> Drivers:
        connection = LibvirtConnection(LIBVIRT)
        qemu = qemu_user(connection)
        drivers = Drivers(
            hypervisor=LibvirtHypervisor(connection, host, "qemu", self.datapath_type),
            switch=OvsSwitch(OVSDB, host, self.datapath_type),
            network=LinuxNetwork(host, qemu.uid),
            addresses=Dnsmasq(BRIDGE, ADDRESS, self.directory),
            disks=QemuImg(qemu),
            memory=LinuxMemory(),
        )
        self._made.append(drivers)
        return drivers

    def plant_domain(self, domain: Domain) -> None:
        xml = (
            f"<domain type='qemu'><name>{domain.name}</name><memory unit='MiB'>64</memory>"
            "<os><type arch='x86_64'>hvm</type></os></domain>"
        )
        path = self.directory / "foreign.xml"
        path.write_text(xml)
        tool("virsh", "define", path)

    def domains(self) -> dict[str, bool]:
        def names(*options: str) -> list[str]:
            return tool("virsh", "list", "--name", *options).split()

        return dict.fromkeys(names("--all"), False) | dict.fromkeys(names(), True)

    def memory_mib(self, domain: str) -> int:
        xml = tool("virsh", "dumpxml", "--inactive", "--xpath", "/domain/memory/text()", domain)
        return int(xml) // 1024

    def set_memory(self, domain: str, memory_mib: int) -> None:
        tool("virsh", "setmaxmem", domain, f"{memory_mib}M", "--config")

    def set_autostart(self, domain: str) -> None:
        tool("virsh", "autostart", domain)

    def run_of(self, domain: str) -> object:
        return tool("virsh", "domid", domain)

    def plant_bridge(self, name: str) -> None:
        datapath = f"datapath_type={self.datapath_type}"
        tool("ovs-vsctl", "add-br", name, "--", "set", "bridge", name, datapath)

    def plant_port(self, bridge: str, port: str) -> None:
        tool("ovs-vsctl", "add-port", bridge, port)

    def set_vlans(self, port: str, tag: int, trunks: tuple[int, ...]) -> None:
        words = ",".join(map(str, trunks))
        tool("ovs-vsctl", "set", "port", port, f"tag={tag}", f"trunks=[{words}]")

    def bridges(self) -> dict[str, set[str]]:
        names = tool("ovs-vsctl", "list-br").split()
        return {name: set(tool("ovs-vsctl", "list-ports", name).split()) for name in names}

    def plant_device(self, name: str) -> None:
        tool("ip", "tuntap", "add", "dev", name, "mode", "tap")

    def devices(self) -> set[str]:
        return {link["ifname"] for link in json.loads(tool("ip", "-json", "link", "show"))}

    def address_holders(self, address: IPv4Address) -> dict[str, IPv4Interface]:
        shown = json.loads(tool("ip", "-json", "address", "show"))
        return {
            link["ifname"]: IPv4Interface(f"{info['local']}/{info['prefixlen']}")
            for link in shown
            for info in link["addr_info"]
            if info.get("local") == str(address)
        }

    def reserve_hugepages(self, mib: int) -> None:
        page_kib = self.drivers.memory.hugepages().size_kib
        tool("sysctl", "-q", f"vm.nr_hugepages={mib * 1024 // page_kib}")

    def plant_image(self, name: str) -> Path:
        image = self.directory / name
        tool("qemu-img", "create", "-q", "-f", "qcow2", image, "1G")
        return image

    def close(self) -> None:
        self.drivers.addresses.remove()
        for drivers in self._made:
            drivers.close()
        for name, running in self.domains().items():
            if running:
                # A libvirtd that was just restarted may only now find out that it does not run.
                with suppress(AssertionError):
                    tool("virsh", "destroy", name)
                assert not self.domains().get(name)
            # A transient domain has gone with its power.
            if name in self.domains():
                tool("virsh", "undefine", name, "--managed-save", "--snapshots-metadata")
        for name in self.bridges():
            tool("ovs-vsctl", "del-br", name)
        tool("sysctl", "-q", f"vm.nr_hugepages={self._pages_before}")
        for name in self.devices() - self._devices_before:
            # The other end of a pair has gone with the first.
            if name in self.devices():
                tool("ip", "link", "delete", "dev", name)


def tool(*argv: str | Path) -> str:
    """What an admin's tool prints. Raises CalledProcessError, or TimeoutExpired after 30 s."""
    done = subprocess.run(
        [str(word) for word in argv], capture_output=True, text=True, timeout=30, check=False
    )
    if done.returncode:
        raise AssertionError(f"{argv}: {done.stderr}")
    return done.stdout


def lacking(*programs: str) -> list[str]:
    """Which of `programs` this machine does not have."""
    return [program for program in programs if shutil.which(program) is None]
