"""The brokers that are measured, each set up for a crowd, and what their processes cost."""

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from broker.endpoint import Endpoint
from tests.functional.brokers import (
    GEARD,
    GEARMAND,
    GEARMAND_TUNED,
    BrokerKind,
    RunningBroker,
    running_broker,
)

OPEN_FILES = 16_384
"""What 10,000 connections need, in a broker and in us."""

_CONFIG = """\
listen = "{listen}"
[limits]
connections_per_subject = 16384
queued_per_subject = 16384
"""
"""All peers of a benchmark have one address, which is what a subject is without TLS."""


def _ours(listen: Endpoint, folder: Path) -> list[str]:
    config = folder / "broker.toml"
    config.write_text(_CONFIG.format(listen=listen))
    return [str(Path(sys.executable).with_name("testenv-broker")), "run", "--config", str(config)]


OURS = BrokerKind("testenv-broker", _ours)

RIVALS = (OURS, GEARD, GEARMAND, GEARMAND_TUNED)


@contextmanager
def running_rival(kind: BrokerKind) -> Iterator[RunningBroker]:
    """A broker that may have as many connections as a benchmark makes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < OPEN_FILES:
        # Raising the hard limit needs root.
        resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, max(hard, OPEN_FILES)))
    with running_broker(kind) as broker:
        yield broker


def cpu_s(pid: int) -> float:
    """CPU time of a process and its threads so far, as clock_getcpuclockid(3) has it.

    /proc/<pid>/stat counts in hundredths of a second; a dispatched job costs a fraction of a
    thousandth.
    """
    return time.clock_gettime((~pid << 3) | 2)


def resident_kb(pid: int) -> int:
    """Memory of a process that is in RAM now."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])
