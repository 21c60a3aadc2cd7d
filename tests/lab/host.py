"""A lab host: a machine of namespaces with its own libvirt and Open vSwitch."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from tests.lab.errors import LabError
from tests.lab.image import GuestImage
from tests.lab.namespace import Namespace
from tests.lab.network import CI_ADDRESS

if TYPE_CHECKING:
    from tests.lab.network import Network

OVS_SCHEMA = Path("/usr/share/openvswitch/vswitch.ovsschema")
DAEMON_TIMEOUT_S = 30.0

# What survives a power cut lies in the host's own directory ($1) and is bound over the
# machine's. /var/lib becomes links to the machine's entries, so that directories which
# the machine lacks can be there all the same. There is no KVM: guests behave alike
# everywhere, and libvirt, whose probes may open a /dev/kvm that its guests may not, would
# otherwise probe QEMU again at every look-up (7 s for a define).
MOUNTS = """
mkdir /run/machine-lib
mount --rbind /var/lib /run/machine-lib
mount -t tmpfs -o mode=755 tmpfs /var/lib
ln -s /run/machine-lib/* /var/lib
for name in libvirt openvswitch testenv; do
    rm -f "/var/lib/$name"
    mkdir "/var/lib/$name"
    mount --bind "$1/$name" "/var/lib/$name"
done
mount --bind "$1/etc-libvirt" /etc/libvirt
mount --bind "$1/etc-hosts" /etc/hosts
mkdir /run/hugepages
mount -t hugetlbfs hugetlbfs /run/hugepages
mount --bind "$1/cache-libvirt" /var/cache/libvirt
mount --bind "$1/log" /var/log
mkdir /run/openvswitch
if [ -e /dev/kvm ]; then
    install -m 600 /dev/null /run/no-kvm
    mount --bind /run/no-kvm /dev/kvm
fi
"""

LIBVIRT_CONFIGURATION = {
    "libvirtd.conf": 'log_outputs = "3:file:/var/log/libvirt/libvirtd.log"\n',
    "virtlogd.conf": 'log_outputs = "3:file:/var/log/libvirt/virtlogd.log"\n',
    # There are no cgroups to put guests in, and no security module to confine them. A /dev of
    # their own fails on the mount that hides /dev/kvm.
    "qemu.conf": 'cgroup_controllers = []\nsecurity_driver = "none"\nnamespaces = []\n',
}


class LabHost(Namespace):
    """A host with `eth0` (management, address `address`) and `eth1` (public, no address).

    `images` is a directory inside that QEMU can read; `image` are the guest's files in it.
    """

    images = Path("/var/lib/testenv/images")
    image = GuestImage(images)

    def __init__(self, name: str, directory: Path, network: Network, address: str) -> None:
        super().__init__(name, directory.with_suffix(".pid"))
        self.address = address
        self._directory = directory
        self._network = network

    def install(self, image: GuestImage) -> None:
        """Lay out the disk of a new host."""
        for name in ("libvirt", "openvswitch", "testenv", "cache-libvirt", "etc-libvirt"):
            (self._directory / name).mkdir(parents=True)
        for name in ("libvirt/qemu", "openvswitch"):
            (self._directory / "log" / name).mkdir(parents=True)
        for name, text in LIBVIRT_CONFIGURATION.items():
            (self._directory / "etc-libvirt" / name).write_text(text)
        (self._directory / "etc-hosts").write_text(
            f"127.0.0.1 localhost\n{CI_ADDRESS} ci\n{self.address} {self.name}\n"
        )
        shutil.copytree(image.directory, self._directory / "testenv/images")

    def power_on(self) -> None:
        """Boot: what is on disk is as it was, /run is fresh. Raises LabError if a daemon fails."""
        self.start()
        try:
            self.run(["sh", "-ec", MOUNTS, "sh", self._directory])
            self._network.plug_in(self)
            self.run(["ip", "addr", "add", f"{self.address}/24", "dev", "eth0"])
            self._start_switch()
            self._start_libvirt()
        except LabError:
            self.stop()
            raise

    def power_cut(self) -> None:
        """Kill everything at once, VMs too."""
        self.stop()

    def stop(self) -> None:
        if self.running:
            super().stop()
            self._network.unplug(self.name)

    def partition(self) -> None:
        """Cut both NICs off the lab's switches; the host itself runs on."""
        self._network.set_links(self.name, "down")

    def heal(self) -> None:
        self._network.set_links(self.name, "up")

    def _start_switch(self) -> None:
        database = "/var/lib/openvswitch/conf.db"
        if not self.path(database).exists():
            self.run(["ovsdb-tool", "create", database, OVS_SCHEMA])
        detached = ("--pidfile", "--detach", "--no-chdir", "--log-file")
        remote = "--remote=punix:/run/openvswitch/db.sock"
        self._daemon(["ovsdb-server", database, remote, *detached], "openvswitch/ovsdb-server.log")
        self.run(["ovs-vsctl", "--no-wait", "init"])
        self._daemon(["ovs-vswitchd", *detached], "openvswitch/ovs-vswitchd.log")

    def _start_libvirt(self) -> None:
        self._daemon(["virtlogd", "--daemon"], "libvirt/virtlogd.log")
        self._daemon(["libvirtd", "--daemon"], "libvirt/libvirtd.log")
        self._daemon(["virsh", "--connect", "qemu:///system", "list"], "libvirt/libvirtd.log")

    def _daemon(self, argv: list[str], log: str) -> None:
        """Run a command that returns when its daemon is ready."""
        try:
            self.run(argv, timeout=DAEMON_TIMEOUT_S)
        except LabError as exc:
            path = self._directory / "log" / log
            lines = path.read_text().splitlines()[-20:] if path.exists() else ["(no log)"]
            raise LabError("\n".join([str(exc), f"{path}:", *lines])) from exc
