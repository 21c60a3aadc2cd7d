"""This machine's huge pages, of the default size, as Linux tells of them.

Documentation/admin-guide/mm/hugetlbpage.rst of the kernel has the meaning of each line.
"""

from pathlib import Path

from hosts.drivers.base import HugePages
from schemas.errors import MemoryDriverError

MEMINFO = Path("/proc/meminfo")
MOUNTS = Path("/proc/mounts")


class LinuxMemory:
    def __init__(self, meminfo: Path = MEMINFO) -> None:
        self._meminfo = meminfo

    def hugepages(self) -> HugePages:
        try:
            lines = self._meminfo.read_text().splitlines()
        except OSError as exc:
            why = f"cannot be read: {exc.strerror}"
            raise MemoryDriverError(str(self._meminfo), why) from exc
        told = dict(line.split(":", 1) for line in lines if ":" in line)

        def number(key: str) -> int:
            return int(told.get(key, "0").split()[0])

        # What is promised to somebody, and not touched yet, still counts as free there.
        free = number("HugePages_Free") - number("HugePages_Rsvd")
        return HugePages(number("Hugepagesize"), number("HugePages_Total"), max(0, free))


def hugetlbfs_mount(mounts: Path = MOUNTS) -> str | None:
    """Where huge pages are mounted, which is where libvirt looks for them when it starts."""
    for line in mounts.read_text().splitlines():
        _, mount, kind, *_ = line.split()
        if kind == "hugetlbfs":
            return mount
    return None
