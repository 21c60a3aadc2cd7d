"""What this machine has to give, or what an admin says that it has."""

import json
import os
from pathlib import Path

from pydantic import ValidationError

from hosts.drivers.memory import LinuxMemory
from schemas.errors import ConfigError
from schemas.plan import Facts

_MIB = 1024**2
_GIB = 1024**3


def machine_facts(state_dir: Path) -> Facts:
    """This machine's memory, CPUs, and the disk space that environments may use.

    The disk is what is free below `state_dir` plus what our own disks already use there, so that
    the answer is the same before and after building.
    """
    where = state_dir
    while not where.exists():
        where = where.parent
    space = os.statvfs(where)
    used = sum(
        path.stat().st_blocks * 512 for path in (state_dir / "disks").glob("*") if path.is_file()
    )
    pages = LinuxMemory().hugepages()
    return Facts(
        memory_mib=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // _MIB,
        cpus=os.cpu_count() or 1,
        disk_gib=(space.f_bavail * space.f_frsize + used) // _GIB,
        hugepages=pages.total,
        hugepage_kib=pages.size_kib or Facts.model_fields["hugepage_kib"].default,
    )


def read_facts(path: Path) -> Facts:
    """Facts of another machine, from a JSON file. Raises ConfigError, naming file and key."""
    try:
        return Facts.model_validate(json.loads(path.read_text()))
    except OSError as exc:
        raise ConfigError(path, f"cannot be read: {exc.strerror}") from exc
    except ValidationError as exc:
        first = exc.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ConfigError(
            path,
            first["msg"],
            key=key,
            remedy="allowed: memory_mib, cpus, disk_gib, hugepages, hugepage_kib, all integers",
        ) from exc
    except (ValueError, RecursionError) as exc:
        raise ConfigError(path, f"is not JSON: {exc}") from exc
