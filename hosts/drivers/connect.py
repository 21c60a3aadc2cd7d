"""The real drivers of one host, from its configuration."""

from hosts.drivers.base import AddressServer, Drivers
from hosts.drivers.command import Credentials
from hosts.drivers.disks import QemuImg
from hosts.drivers.dnsmasq import Dnsmasq, StaticAddresses
from hosts.drivers.domain_xml import qemu_credentials
from hosts.drivers.hypervisor import LibvirtHypervisor
from hosts.drivers.kvm import prove_kvm
from hosts.drivers.libvirt_connection import LibvirtConnection
from hosts.drivers.network import LinuxNetwork
from hosts.drivers.switch import OvsSwitch, detect_datapath_type
from schemas.config import HostConfig
from schemas.errors import DriverError


def connect(config: HostConfig) -> Drivers:
    """Everything that `config`'s host acts through; what it leaves to `auto` is found out.

    Proving KVM takes up to 4 s. Raises HypervisorError when libvirt cannot be reached; Open vSwitch
    and the others are first needed, and first missed, when they are used.
    """
    connection = LibvirtConnection(config.hypervisor.uri)
    try:
        qemu = qemu_user(connection)
        domain_type = config.hypervisor.domain_type
        if domain_type == "auto":
            domain_type = prove_kvm(connection, config.host.state_dir).domain_type
    except DriverError:
        connection.close()
        raise
    host = config.host.name
    datapath_type = chosen_datapath_type(config)
    return Drivers(
        hypervisor=LibvirtHypervisor(connection, host, domain_type, datapath_type),
        switch=OvsSwitch(config.switch.ovsdb, host, datapath_type),
        network=LinuxNetwork(host, qemu.uid),
        addresses=_address_server(config),
        disks=QemuImg(qemu),
    )


def chosen_datapath_type(config: HostConfig) -> str:
    """What bridges are on: as configured, or what this kernel has."""
    chosen = config.switch.datapath_type
    return detect_datapath_type() if chosen == "auto" else chosen


def qemu_user(connection: LibvirtConnection) -> Credentials:
    """Whom libvirt runs QEMU as. Raises HypervisorError."""
    with connection.naming(connection.uri, "asking for its capabilities") as libvirt:
        uid, gid = qemu_credentials(libvirt.getCapabilities())
    return Credentials(uid, gid)


def _address_server(config: HostConfig) -> AddressServer:
    dnsmasq = Dnsmasq(config.public.bridge, config.public.address, config.host.state_dir)
    return StaticAddresses(dnsmasq) if config.public.provider == "static" else dnsmasq
