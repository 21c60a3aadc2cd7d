"""The signs by which a host is well, each a small question. Synchronous, over the drivers.

A port of an environment that has an error makes that environment differ from its plan
(hosts/verify.py), and not its host sick: a holder may bring it about.
"""

import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from hosts.drivers.base import AddressServer, Disks, Drivers, HostNetwork, Hypervisor, Switch
from schemas.errors import DiskError
from schemas.plan import HostPlan, KernelBoot, PublicNetwork

_GIB = 1 << 30

Look = Callable[[], str | None]
"""Why the host is not well in one respect, or None if it is; or raises a TestenvError to say so."""


@dataclass(frozen=True)
class Vital:
    """One sign. `repair`, where there is one, is tried once when the host is not well in this
    respect, before it is looked at again."""

    name: str
    look: Look
    repair: Callable[[], None] | None = None


def vitals(
    plan: Callable[[], HostPlan],
    drivers: Drivers,
    state_dir: Path,
    *,
    min_free_gib: float,
    repair: Callable[[], None],
) -> tuple[Vital, ...]:
    """All that a host is looked at for whose environments may be replanned, but nothing else.

    `plan`: its plan at any time. `repair` brings back what its environments share.
    """
    public = plan().public

    def restart_address_server() -> None:
        drivers.addresses.remove()  # one that hangs would be left as it is
        repair()

    return (
        Vital("libvirt", lambda: libvirt_answers(drivers.hypervisor)),
        Vital("Open vSwitch", lambda: switch_answers(drivers.switch, public)),
        Vital("address", lambda: has_address(drivers.network, public), repair),
        Vital(
            "address server",
            lambda: address_server_answers(drivers.addresses),
            restart_address_server,
        ),
        Vital("disk space", lambda: has_space(state_dir, min_free_gib)),
        Vital("boot files", BootFiles(plan, drivers.disks).look),
    )


def libvirt_answers(hypervisor: Hypervisor) -> None:
    """It tells our domains. Raises DomainError."""
    hypervisor.domains()


def switch_answers(switch: Switch, public: PublicNetwork) -> str | None:
    """It tells our bridges, and the NIC on the public one works. Raises BridgeError."""
    for bridge in switch.bridges():
        uplink = bridge.ports.get(public.interface)
        if uplink and uplink.error:
            return f"port {uplink.name} of {bridge.name}: {uplink.error}"
    return None


def has_address(network: HostNetwork, public: PublicNetwork) -> str | None:
    """The host's own address is on the public bridge. Raises NetworkError."""
    if public.address in network.addresses(public.bridge):
        return None
    return f"{public.bridge} does not have this host's address {public.address}"


def address_server_answers(addresses: AddressServer) -> str | None:
    return None if addresses.answers() else "the address server does not answer"


def has_space(directory: Path, min_free_gib: float) -> str | None:
    """The disk that `directory` is on has room for what guests write. Raises DiskError."""
    try:
        free_gib = shutil.disk_usage(directory).free / _GIB
    except OSError as exc:
        raise DiskError(str(directory), f"cannot be looked at: {exc.strerror}") from exc
    if free_gib >= min_free_gib:
        return None
    return f"{free_gib:.1f} GiB are free in {directory}, below health.min_free_gib {min_free_gib:g}"


class BootFiles:
    """The base images, kernels and initrds that environments are made from.

    A file is read only when it is not what it was when it was last found good.
    """

    def __init__(self, plan: Callable[[], HostPlan], disks: Disks) -> None:
        self._plan = plan
        self._disks = disks
        self._good: dict[Path, _Stamp] = {}

    def look(self) -> None:
        """Each can be used. Raises DiskError."""
        for path, check in dict(_checks(self._plan(), self._disks)).items():
            stamp = _stamp(path)
            if stamp is None or self._good.get(path) != stamp:
                check(path)
            if stamp:
                self._good[path] = stamp


_Stamp = tuple[int, int, int, int]


def _stamp(path: Path) -> _Stamp | None:
    """Tells a file from what it was before; None where it can't be looked at.

    The time of its last change of mode or owner counts, too: QEMU's user must be able to read it.
    """
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns


def _checks(plan: HostPlan, disks: Disks) -> Iterable[tuple[Path, Callable[[Path], None]]]:
    for domain in plan.domains:
        if domain.disk.base:
            yield domain.disk.base, disks.check_image
        if isinstance(domain.boot, KernelBoot):
            for path in (domain.boot.kernel, domain.boot.initrd):
                if path:
                    yield path, disks.check_readable
