"""The lab: the CI network and the hosts on it."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from contextlib import ExitStack
from typing import TYPE_CHECKING, Self

from tests.lab.errors import LabError
from tests.lab.host import OVS_SCHEMA, LabHost
from tests.lab.image import ensure_image
from tests.lab.namespace import Namespace, kill_leftover
from tests.lab.network import CI_ADDRESS, Network

if TYPE_CHECKING:
    from pathlib import Path

TOOLS = (
    *("unshare", "nsenter", "ip", "ethtool", "virsh", "libvirtd", "virtlogd"),
    *("qemu-system-x86_64", "ovsdb-server", "ovsdb-tool", "ovs-vswitchd", "ovs-vsctl"),
)
LOCK_NAME = "lab.lock"


class Lab:
    """Hosts and a CI network, alive while the context is.

    `workdir` must be empty, or be an earlier lab's: what that left behind is removed. Afterwards
    it holds the hosts' logs. It can't be under /run. Raises LabError without root or a tool.

    `ci` is the CI machine: `ci_address` (hosts also know it as "ci") on the management network,
    203.0.113.2 on the public one.
    """

    ci_address = CI_ADDRESS

    def __init__(self, workdir: Path) -> None:
        self.workdir = workdir.resolve()
        self.hosts: dict[str, LabHost] = {}
        self.ci = Namespace("ci", self.workdir / "ci.pid")
        self._network = Network(self.ci)
        self._lifetime = ExitStack()

    def __enter__(self) -> Self:
        _check_machine()
        with ExitStack() as stack:
            self._claim(stack)
            stack.callback(self.ci.stop)
            self.ci.start()
            self._network.create_bridges()
            self._lifetime = stack.pop_all()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._lifetime.close()

    def add_host(self, name: str) -> LabHost:
        """Make a host and boot it. Its management address is 198.51.100.11, the next one's .12."""
        if not re.fullmatch(r"[a-z][a-z0-9-]{0,9}", name) or name in {"ci", *self.hosts}:
            raise LabError(f"no good name for a lab host: {name!r} (new, lower case, 10 at most)")
        image = ensure_image()
        address = f"198.51.100.{11 + len(self.hosts)}"
        host = LabHost(name, self.workdir / name, self._network, address)
        self.hosts[name] = host
        self._lifetime.callback(host.stop)
        host.install(image)
        host.power_on()
        return host

    def _claim(self, stack: ExitStack) -> None:
        """Own the work directory, and remove what a crashed lab left in it."""
        self.workdir.mkdir(parents=True, exist_ok=True)
        lock_path = self.workdir / LOCK_NAME
        if not lock_path.exists() and any(self.workdir.iterdir()):
            raise LabError(f"{self.workdir} is not empty, and no lab's")
        lock = stack.enter_context(lock_path.open("w"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise LabError(f"a lab is already running in {self.workdir}") from exc
        for pid_file in self.workdir.glob("*.pid"):
            kill_leftover(pid_file)
        for path in self.workdir.iterdir():
            if path.is_dir():
                shutil.rmtree(path)


def _check_machine() -> None:
    if os.geteuid() != 0:
        raise LabError("the lab needs root, for its namespaces")
    missing = [tool for tool in TOOLS if not shutil.which(tool)]
    missing += [] if OVS_SCHEMA.exists() else [str(OVS_SCHEMA)]
    if missing:
        raise LabError(f"the lab lacks {', '.join(missing)}: run `make setup`")
