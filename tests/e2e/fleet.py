"""A whole fleet in a lab: a broker, agents on lab hosts, clients on the CI network."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tests.lab import Lab, LabHost, LabProcess

BIN = str(Path(sys.executable).parent)
BROKER = "198.51.100.1:4730"
READY_WITHIN_S = 90.0

CONFIG = """
[host]
name = "{name}"
brokers = ["{broker}"]
[public]
interface = "eth1"
address = "203.0.113.{own}/24"
seed_addresses = ["203.0.113.{first}", "203.0.113.{last}"]
[environments]
count = {count}
[environments.seed]
memory_mib = 256
kernel = "{images}/vmlinuz"
initrd = "{images}/seed.initrd"
cmdline = "{cmdline}"
[environments.nodes]
count = 2
memory_mib = 256
"""
AWAIT_BROKER = f"until (: > /dev/tcp/{BROKER.replace(':', '/')}) 2>/dev/null; do sleep 0.05; done"

BROKERS = {
    "testenv-broker": [f"{BIN}/testenv-broker", "run", "--insecure", "--listen", BROKER],
    "gearmand": ["gearmand", "--listen=198.51.100.1", "--port=4730", "--log-file=stderr"],
}


def config_text(host: LabHost, number: int, count: int = 2) -> str:
    """The configuration of the lab's host `number` (from 1): seeds at .20, .30, ..."""
    first = 10 + 10 * number
    return CONFIG.format(
        name=host.name,
        broker=BROKER,
        own=10 + number,
        first=first,
        last=first + 9,
        count=count,
        images=host.images,
        cmdline=host.image.cmdline("seed"),
    )


class Fleet:
    """What the tests do with the fleet: only what a job, an admin or an operator could do."""

    def __init__(self, lab: Lab, logs: Path) -> None:
        self.lab = lab
        self._logs = logs
        self._agents: dict[str, LabProcess] = {}

    @contextmanager
    def broker(self, kind: str) -> Iterator[None]:
        """`kind` is one of BROKERS, on the CI network."""
        with (self._logs / f"{kind}.log").open("a") as log:
            broker = self.lab.ci.popen(BROKERS[kind], stdout=log, stderr=log)
            try:
                self.lab.ci.run(["bash", "-c", AWAIT_BROKER], timeout=20)
                yield
            finally:
                broker.terminate()
                broker.wait(timeout=20)

    @contextmanager
    def serving(self, broker: str = "testenv-broker") -> Iterator[None]:
        """A broker. Afterwards no agent runs; hosts are empty, and configured as at first."""
        with self.broker(broker):
            try:
                yield
            finally:
                self.stop_agents()
                for number, host in enumerate(self.lab.hosts.values(), start=1):
                    self.configure(host, config_text(host, number))
                    self.admin(host, "destroy", "--yes")

    @contextmanager
    def serving_one(self, more: str = "") -> Iterator[LabHost]:
        """The same, with one environment, te1/1, which is ready: its host. `more`: what its
        configuration says besides."""
        te1 = self.lab.hosts["te1"]
        with self.serving():
            self.configure(te1, config_text(te1, 1, count=1) + more)
            self.start_agent(te1)
            self.wait_for_states({"te1/1": "ready"})
            yield te1

    def configure(self, host: LabHost, text: str) -> Path:
        """Write the host's configuration; its path as the host sees it."""
        path = Path("/var/lib/testenv/host.toml")
        host.path(path).write_text(text)
        return path

    def admin(self, host: LabHost, *words: str, check: bool = True) -> Any:
        """`testenv-host` with the host's configuration, on the host; the finished process."""
        argv = [f"{BIN}/testenv-host", "--config", "/var/lib/testenv/host.toml", *words]
        return host.run(argv, check=check, timeout=120)

    def start_agent(self, host: LabHost) -> LabProcess:
        argv = [f"{BIN}/testenv-host", "--config", "/var/lib/testenv/host.toml", "run"]
        with (self._logs / f"{host.name}.log").open("a") as log:
            agent = host.popen([*argv, "--drain-timeout", "10"], stdout=log, stderr=log)
        self._agents[host.name] = agent
        return agent

    def stop_agents(self) -> None:
        """All that run, in order; none may fail."""
        agents, self._agents = self._agents, {}
        for agent in agents.values():
            agent.terminate()
        for name, agent in agents.items():
            assert agent.wait(timeout=60) == 0, f"the agent of {name} failed\n{self.log()}"

    @contextmanager
    def client(self, script: str, **popen: Any) -> Iterator[LabProcess]:
        """A CI job: `testenv-client` with a shell script, on the CI network."""
        argv = _job_command(script)
        with self.lab.ci.popen(argv, **popen) as job:
            try:
                yield job
            finally:
                job.kill()

    @contextmanager
    def lease(self) -> Iterator[tuple[dict[str, Any], Callable[[], None]]]:
        """A CI job that holds an environment: its data file, and what makes it end well."""
        script = 'jq -c . "$TE_DATAFILE"; read -r go'
        with self.client(script, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as job:

            def end() -> None:
                job.communicate("go\n", timeout=60)
                assert job.returncode == 0

            assert job.stdout
            yield json.loads(job.stdout.readline()), end

    def job(self, script: str, timeout: float = 120) -> str:
        """A CI job that must succeed; its stdout."""
        return self.lab.ci.run(_job_command(script), timeout=timeout).stdout

    def environments(self) -> dict[str, dict[str, Any]]:
        """What `testenv status` tells, by environment."""
        argv = [f"{BIN}/testenv", "status", "--json", "-b", BROKER]
        hosts = json.loads(self.lab.ci.run(argv, timeout=30).stdout)["hosts"]
        reports = [host["report"] for host in hosts if host["report"]]
        return {env["id"]: env for report in reports for env in report["environments"]}

    def wait_for_states(self, expected: dict[str, str]) -> None:
        """Wait until exactly these environments are in these states."""

        def states() -> dict[str, str]:
            return {name: env["state"] for name, env in self.environments().items()}

        wait_until(lambda: states() == expected, READY_WITHIN_S, self.log)

    def log(self) -> str:
        """What brokers and agents said last."""
        tails = (path.read_text()[-2000:] for path in sorted(self._logs.glob("*.log")))
        return "\n".join(tails)


def _job_command(script: str) -> list[str]:
    with_our_path = f'PATH="{BIN}:$PATH"\n{script}'
    return [f"{BIN}/testenv-client", "-b", BROKER, "--", "sh", "-euc", with_our_path]


def wait_until(
    condition: Callable[[], bool], timeout: float, explain: Callable[[], str] = str
) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not so within {timeout} s\n{explain()}"
        time.sleep(0.2)


@contextmanager
def running_fleet(workdir: Path, logs: Path, hosts: int = 2) -> Iterator[Fleet]:
    """A lab with `hosts` configured hosts, te1 and on; no broker and no agents yet."""
    with ExitStack() as stack:
        lab = stack.enter_context(Lab(workdir))
        fleet = Fleet(lab, logs)
        for number in range(1, hosts + 1):
            host = lab.add_host(f"te{number}")
            fleet.configure(host, config_text(host, number))
        yield fleet
