"""From a lease's end to the next offer, on real libvirt and Open vSwitch in a lab host."""

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from lxml import etree

from tests.benchmarks.figures import Bar, Benchmark, Figure, Key
from tests.e2e.fleet import Fleet, config_text, running_fleet
from tests.lab import LabHost, LabProcess

NODES = 4
RUNS = 10
_WHAT = f"turnover, one seed and {NODES} nodes"
_OURS = "testenv-host"
_BY_HAND = "virsh, qemu-img and ovs-vsctl in turn"
_READY = {"te1/1": "ready"}
_SETTLE_S = 3.0
"""A seed that boots takes a CPU, of which there may be two."""


def _config(host: LabHost) -> str:
    text = config_text(host, 1, count=1)
    return text.replace("count = 2\nmemory_mib = 256", f"count = {NODES}\nmemory_mib = 64")


def _start_nodes(host: LabHost) -> None:
    """As a lease leaves them: all on."""
    for index in range(NODES):
        host.run(["virsh", "start", f"baremetalbrbm1_{index}"])


def _by_agent(fleet: Fleet, host: LabHost) -> None:
    """One lease, and what follows."""
    with fleet.lease() as (_, end):
        _start_nodes(host)
        time.sleep(_SETTLE_S)
        end()
    time.sleep(_SETTLE_S)  # asking for the state takes a CPU, too
    fleet.wait_for_states(_READY)


@contextmanager
def _stopped(agent: LabProcess) -> Iterator[None]:
    """It must not repair meanwhile what is done by hand."""
    agent.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        agent.send_signal(signal.SIGCONT)
        os.kill(agent.pid, signal.SIGCONT)  # nsenter has stopped along with its child


def _by_hand(host: LabHost, script: str) -> float:
    """Milliseconds that an admin's shell script takes for the same steps."""
    _start_nodes(host)
    time.sleep(_SETTLE_S)
    start = time.monotonic()
    host.run(["sh", "-euc", script])
    return (time.monotonic() - start) * 1e3


def _journalled_ms(fleet: Fleet, host: LabHost) -> list[float]:
    """From each lease's end to READY."""
    events = json.loads(fleet.admin(host, "journal", "--json").stdout)["events"]
    ended = [event["at"] for event in events if event["state"] == "dirty"]
    ready = [event["at"] for event in events if event["state"] == "ready"][1:]
    return [_ms_between(*pair) for pair in zip(ended, ready, strict=True)]


def _ms_between(earlier: str, later: str) -> float:
    return (datetime.fromisoformat(later) - datetime.fromisoformat(earlier)).total_seconds() * 1e3


def _script(host: LabHost) -> Iterator[str]:
    names = ["seed_1", *(f"baremetalbrbm1_{index}" for index in range(NODES))]
    scratch = host.run(["mktemp", "-d"]).stdout.strip()
    domains = {}
    for name in names:
        xml = host.run(["virsh", "dumpxml", "--inactive", name]).stdout
        host.path(f"{scratch}/{name}.xml").write_text(xml)
        domains[name] = etree.fromstring(xml)
    ports = {
        str(target): "br-ctlplane" if target == "te1s0" else "brbm1"
        for domain in domains.values()
        for target in domain.xpath("devices/interface/target/@dev")
    }
    disks = [str(domain.xpath("string(devices/disk/source/@file)")) for domain in domains.values()]
    look = [f"virsh dumpxml --inactive {name}; virsh dominfo {name}" for name in names]
    look += ["ovs-vsctl show; ovs-vsctl list port; ip -details link show"]
    yield from (f"virsh destroy {name}" for name in names)
    yield "virsh list --all"
    yield from (f"ovs-vsctl del-port {bridge} {port}" for port, bridge in ports.items())
    yield from look
    for name in names:
        yield f"virsh undefine {name} --managed-save --nvram --snapshots-metadata"
    yield "ovs-vsctl del-br brbm1"
    mark = host.run(["ovs-vsctl", "br-get-external-id", "brbm1", "testenv-host"]).stdout.strip()
    settings = f"datapath_type=netdev external_ids:testenv-host={mark}"
    yield f"ovs-vsctl add-br brbm1 -- set bridge brbm1 {settings}"
    for port, bridge in ports.items():
        yield f"ovs-vsctl add-port {bridge} {port} -- clear port {port} tag trunks"
    yield from (f"rm {disk}; qemu-img create -q -f qcow2 {disk} 1G" for disk in disks)
    yield from (f"rm -f /var/lib/testenv/console/{name}.log" for name in names)
    yield from (f"virsh define --validate {scratch}/{name}.xml" for name in names)
    yield "virsh start seed_1"
    yield from look
    yield from (f"qemu-img info --force-share {disk}" for disk in disks)


def _measure(runs: int) -> Iterator[Figure]:
    if os.geteuid() != 0:
        yield Figure(_WHAT, _OURS, "ms", note="needs root")
        return
    runs = min(runs, RUNS)
    with (
        TemporaryDirectory(prefix="testenv-lab-") as workdir,
        TemporaryDirectory(prefix="testenv-logs-") as logs,
        running_fleet(Path(workdir), Path(logs), hosts=1) as fleet,
    ):
        [host] = fleet.lab.hosts.values()
        fleet.configure(host, _config(host))
        with fleet.broker("testenv-broker"):
            agent = fleet.start_agent(host)
            try:
                fleet.wait_for_states(_READY)
                script = "\n".join(_script(host))
                by_hand_ms = []
                for _ in range(runs):  # in turn, so that both see the same machine
                    _by_agent(fleet, host)
                    with _stopped(agent):
                        by_hand_ms.append(_by_hand(host, script))
                yield Figure.of(_WHAT, _OURS, "ms", _journalled_ms(fleet, host))
                yield Figure.of(_WHAT, _BY_HAND, "ms", by_hand_ms)
            finally:
                fleet.stop_agents()


TURNOVER = Benchmark(
    "turnover",
    f"From a lease's end, with one seed and {NODES} nodes running, to READY, as the agent's journal"
    " has it: power off, unplug, see what changed, definitions, disks, bridge, ports, the seed on,"
    " verify. Beside it the same steps as a shell script, in turn with the agent on the same"
    " environment of a lab host without KVM.",
    _OURS,
    _measure,
    (Bar(Key(_WHAT, _OURS), 0.5, relative_to=Key(_WHAT, _BY_HAND)),),
)
