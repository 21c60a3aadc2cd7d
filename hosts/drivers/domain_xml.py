"""A planned domain as libvirt's XML, and such XML read back. Pure: no connection needed.

The format is libvirt's, https://libvirt.org/formatdomain.html; all that is used here came before
libvirt 8.0 (Ubuntu 22.04). lxml builds and escapes it.
"""

import hashlib
from pathlib import Path

from lxml import etree
from lxml.builder import E, ElementMaker

from hosts.drivers.base import BOOT_ORDERS, DomainDetails, DriveInfo, NicInfo
from schemas.plan import Disk, Domain, KernelBoot, Nic

MARK_NAMESPACE = "urn:testenv:domain"
"""XML namespace of our element in a domain's `<metadata>`."""
MARK_PREFIX = "testenv"
ARCH = "x86_64"
MACHINE = "q35"

_MARKS = f"metadata/{{{MARK_NAMESPACE}}}owner"

_OFFLOADS = {
    "host": ("csum", "gso", "tso4", "tso6", "ecn", "ufo"),
    "guest": ("csum", "tso4", "tso6", "ecn", "ufo"),
}


def domain_xml(domain: Domain, *, host: str, domain_type: str, datapath_type: str) -> str:
    """The XML that defines `domain`, marked as `host`'s.

    `domain_type` is kvm or qemu. With `datapath_type` netdev the NICs do no offloading: Open
    vSwitch's userspace datapath never fills in the checksums that a virtio guest leaves to the
    device, so that TCP fails while ping works.
    """
    offload = datapath_type != "netdev"
    root = E.domain(
        E.name(domain.name),
        E.uuid(str(domain.uuid)),
        E.metadata(mark_element(host)),
        E.memory(str(domain.memory_mib), unit="MiB"),
        *([E.memoryBacking(E.hugepages())] if domain.hugepages else []),
        E.vcpu(str(domain.cpus)),
        _os(domain.boot),
        E.features(E.acpi(), E.apic()),
        _cpu(domain_type),
        E.clock(offset="utc"),
        E.on_poweroff("destroy"),
        E.on_reboot("restart"),
        E.on_crash("destroy"),
        E.devices(
            _disk(domain.disk),
            *(_interface(nic, offload=offload) for nic in domain.nics),
            *_console(domain),
            E.rng(E.backend("/dev/urandom", model="random"), model="virtio"),
            E.memballoon(model="none"),
        ),
        type=domain_type,
    )
    return etree.tostring(root, encoding="unicode", pretty_print=True)


def mark_element(host: str) -> etree._Element:
    """What marks a domain as `host`'s, for its `<metadata>`."""
    maker = ElementMaker(namespace=MARK_NAMESPACE, nsmap={MARK_PREFIX: MARK_NAMESPACE})
    return maker("owner", host=host)


def sealed_mark(host: str, seal: str) -> str:
    """The same with the definition's `seal_of`, for virDomainSetMetadata: it refuses an element
    that is in the namespace already, and puts this one there itself."""
    return etree.tostring(E.owner(host=host, seal=seal), encoding="unicode")


def seal_of(definition: str) -> str:
    """A digest of all of a definition but our own mark.

    libvirt fills in what a template leaves open (addresses, controllers, the machine's version),
    so that a definition can only be compared with what libvirt itself made of our template. The
    seal is taken of that, right after defining, and kept in the mark.
    """
    root = etree.fromstring(definition, etree.XMLParser(remove_blank_text=True))
    for mark in root.findall(_MARKS):
        parent = mark.getparent()
        if parent is not None:
            parent.remove(mark)
    return hashlib.sha256(etree.tostring(root, method="c14n")).hexdigest()


def read_definition(
    definition: str, *, running: bool, leftovers: tuple[str, ...] = ()
) -> DomainDetails:
    """What libvirt's XML of a domain of ours, inactive and with nothing left out, says."""
    root = etree.fromstring(definition)
    mark = root.find(_MARKS)
    return DomainDetails(
        running=running,
        memory_mib=int(root.findtext("memory", default="0")) // 1024,  # libvirt shows KiB
        cpus=int(root.findtext("vcpu", default="0")),
        nics=tuple(_read_nic(nic) for nic in root.iterfind("devices/interface")),
        drives=tuple(_read_drive(disk) for disk in root.iterfind("devices/disk")),
        boot=_read_boot(root),
        leftovers=leftovers + (("NVRAM",) if root.find("os/nvram") is not None else ()),
        altered=mark is None or mark.get("seal") != seal_of(definition),
    )


def _read_nic(nic: etree._Element) -> NicInfo:
    mac, target = nic.find("mac"), nic.find("target")
    ours = nic.get("type") == "ethernet" and target is not None
    return NicInfo(
        mac="" if mac is None else mac.get("address", ""),
        port=target.get("dev", "") if ours and target is not None else "",
    )


def _read_drive(disk: etree._Element) -> DriveInfo:
    source, driver = disk.find("source"), disk.find("driver")
    path = None if source is None else source.get("file")
    return DriveInfo(
        path=Path(path) if path else None,
        format="" if driver is None else driver.get("type", ""),
    )


def _read_boot(root: etree._Element) -> tuple[str, ...] | KernelBoot:
    kernel, initrd = root.findtext("os/kernel"), root.findtext("os/initrd")
    if kernel:
        return KernelBoot(
            kernel=Path(kernel),
            initrd=Path(initrd) if initrd else None,
            cmdline=root.findtext("os/cmdline", default=""),
        )
    return tuple(boot.get("dev", "") for boot in root.iterfind("os/boot"))


def marked_host(mark: str) -> str:
    """The host that a mark, as libvirt returns it, names; "" if it names none."""
    return etree.fromstring(mark).get("host", "")


def qemu_credentials(capabilities: str) -> tuple[int, int]:
    """The (uid, gid) that libvirt runs QEMU as, from its capabilities document.

    They stand in the DAC security model's base label, `+64055:+64055`. Root where there is none.
    """
    label = etree.fromstring(capabilities).findtext(
        "host/secmodel[model='dac']/baselabel", default="+0:+0"
    )
    uid, gid = label.split(":")
    return int(uid), int(gid)


def emulator_path(domain_capabilities: str) -> str:
    """The QEMU program, from libvirt's domain capabilities document."""
    return etree.fromstring(domain_capabilities).findtext("path", default="")


def _os(boot: str | KernelBoot) -> etree._Element:
    machine = E.type("hvm", arch=ARCH, machine=MACHINE)
    match boot:
        case KernelBoot(kernel=kernel, initrd=initrd, cmdline=cmdline):
            return E.os(
                machine,
                E.kernel(str(kernel)),
                *([E.initrd(str(initrd))] if initrd else []),
                *([E.cmdline(cmdline)] if cmdline else []),
            )
        case order:
            return E.os(machine, *(E.boot(dev=device) for device in BOOT_ORDERS[order]))


def _cpu(domain_type: str) -> etree._Element:
    if domain_type == "kvm":
        # Nested guests run in jobs too, and nothing here ever migrates.
        return E.cpu(mode="host-passthrough", check="none")
    # QEMU's default CPU lacks x86-64-v2, without which RHEL 9 and its kin do not boot.
    return E.cpu(mode="maximum", check="none")


def _disk(disk: Disk) -> etree._Element:
    # cache=unsafe: a disk lives as long as its lease, and after a power cut of the host nobody
    # trusts it. discard: what the guest trims is given back to the host.
    return E.disk(
        E.driver(name="qemu", type=disk.format, cache="unsafe", discard="unmap"),
        E.source(file=str(disk.path)),
        E.target(dev="vda", bus="virtio"),
        type="file",
        device="disk",
    )


def _interface(nic: Nic, *, offload: bool) -> etree._Element:
    # managed=no: the tap is ours and stays when the domain stops, and so do its port and tag.
    interface = E.interface(
        E.mac(address=nic.mac),
        E.target(dev=nic.port, managed="no"),
        E.model(type="virtio"),
        type="ethernet",
    )
    if not offload:
        interface.append(
            E.driver(
                *(E(side, dict.fromkeys(features, "off")) for side, features in _OFFLOADS.items())
            )
        )
    return interface


def _console(domain: Domain) -> tuple[etree._Element, etree._Element]:
    # A pty, so that a person can attach, which virtlogd copies to the log. append: a job wants
    # every boot of its nodes, and who makes the disk fresh also makes the log fresh.
    log = E.log(file=str(domain.console), append="on")
    serial = E.serial(log, E.target(port="0"), type="pty")
    console = E.console(E.target(type="serial", port="0"), type="pty")
    return serial, console
