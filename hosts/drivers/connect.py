"""The real drivers of one host, from its configuration."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from hosts.drivers.base import AddressServer, DiskInfo, Drivers
from hosts.drivers.command import Credentials
from hosts.drivers.disks import QemuImg, make_overlay
from hosts.drivers.dnsmasq import Dnsmasq, StaticAddresses
from hosts.drivers.domain_xml import qemu_credentials
from hosts.drivers.hypervisor import LibvirtHypervisor
from hosts.drivers.kvm import prove_kvm
from hosts.drivers.libvirt_connection import LibvirtConnection
from hosts.drivers.memory import LinuxMemory
from hosts.drivers.network import LinuxNetwork
from hosts.drivers.switch import OvsSwitch, detect_datapath_type
from hosts.drivers.trial import Trial, running_guest
from schemas.config import HostConfig
from schemas.errors import ImageError

_LAST_WORDS = 200
"""Characters of a console, for people."""


def connect(config: HostConfig) -> Drivers:
    """Everything that `config`'s host acts through; what it leaves to `auto` is found out.

    Proving KVM takes up to 4 s. Raises HypervisorError when libvirt cannot be reached; Open vSwitch
    and the others are first needed, and first missed, when they are used.
    """
    connection = LibvirtConnection(config.hypervisor.uri)
    qemu = qemu_user(connection)
    domain_type = chosen_domain_type(config, connection)
    host = config.host.name
    datapath_type = chosen_datapath_type(config)
    return Drivers(
        hypervisor=LibvirtHypervisor(connection, host, domain_type, datapath_type),
        switch=OvsSwitch(config.switch.ovsdb, host, datapath_type),
        network=LinuxNetwork(host, qemu.uid),
        addresses=_address_server(config),
        disks=QemuImg(qemu),
        memory=LinuxMemory(),
    )


def boot_test(config: HostConfig, marker: str, within_s: float) -> Callable[[Path, DiskInfo], None]:
    """What boots an image as a seed of `config`'s, until it says `marker` on its serial console.

    It raises ImageError if that is not said within `within_s`; HypervisorError, DomainError.
    """

    def boots(image: Path, info: DiskInfo) -> None:
        connection = LibvirtConnection(config.hypervisor.uri)
        domain_type = chosen_domain_type(config, connection)
        memory_mib = config.environments.seed.memory_mib
        overlay = partial(make_overlay, image, info.format)
        trial = Trial("boot-test", domain_type, memory_mib, "qcow2", overlay, within_s)
        with running_guest(connection, config.host.state_dir, trial) as console:
            if console.heard(marker.encode(), within_s) is None:
                said = console.read().decode(errors="replace").split()
                raise ImageError(
                    str(image),
                    f"did not say {marker!r} within {within_s:g} s of its boot; its last words:"
                    f" {' '.join(said)[-_LAST_WORDS:] or 'none'}",
                )

    return boots


def chosen_domain_type(config: HostConfig, connection: LibvirtConnection) -> str:
    """libvirt's type for domains: as configured, or KVM where it is proved to work."""
    chosen = config.hypervisor.domain_type
    return prove_kvm(connection, config.host.state_dir).domain_type if chosen == "auto" else chosen


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
