"""A stage for leases: brokers, agents and clients as real processes that a test kills.

with staged(tmp_path, broker) as stage:
    host = stage.host()
    job = stage.job()
    job.begins()
    job.kill()
    host.ended(job.lease)
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from itertools import count, pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pytest

from hosts.chronicle import Chronicle, LeaseRecord, read_journal
from hosts.journal_file import JOURNAL_NAME
from hosts.lease import End
from schemas.errors import JournalError
from schemas.terms import Terms
from tests.functional.brokers import GEARMAND, GEARMAND_TUNED, OURS, RunningBroker
from tests.functional.client_rig import children_of, is_alive

BIN = Path(sys.executable).parent
COMMAND = Path(__file__).with_name("lease_command.py")

BOUND_S = 30.0
"""No wait of a test is longer."""

SLACK_S = 1.5
"""What a busy machine of two processors may add to what takes milliseconds."""

PATIENT = Terms(beat_s=0.3, ttl_s=20, margin_s=2, reattach_s=15, untaken_s=2)
"""For leases that must outlive a death, which a busy machine may take seconds to undo."""

HASTY = Terms(beat_s=0.2, ttl_s=3, margin_s=1, reattach_s=2, untaken_s=2)
"""For leases that must end."""

over_all_brokers = pytest.mark.parametrize(
    "broker", [OURS, GEARMAND, GEARMAND_TUNED], ids=str, indirect=True
)

T = TypeVar("T")


class Sign(NamedTuple):
    """What lease_command.py writes; `at` is the wall clock's, as the journal's times are."""

    what: str
    lease: str
    generation: int
    pid: int
    at: float


class Held(NamedTuple):
    """A lease as `testenv status` shows it."""

    id: str
    generation: int


class Host:
    """`testenv-host serve` of one environment, and its journal."""

    def __init__(self, stage: "Stage", number: str, state_dir: Path, drain_s: float) -> None:
        self.name = f"{socket.gethostname()}-{number}"
        self.environment = f"{self.name}/1"
        self.state_dir = state_dir
        self._stage = stage
        self._number = number
        self._drain_s = drain_s
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process
        return self._process

    @property
    def log(self) -> str:
        """What all its processes so far have said."""
        return self._log_path.read_text(errors="replace")

    def start(self) -> None:
        """Start it; `ready` waits for more."""
        argv = [str(BIN / "testenv-host"), "--config", str(self._stage.config), "serve"]
        options = ["-b", self._stage.addresses, "-n", self._number, "-t", "600"]
        options += ["--state-dir", str(self.state_dir), "--drain-timeout", str(self._drain_s)]
        with self._log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [*argv, str(self._stage.datafile), *options], stdout=log, stderr=log
            )

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait(timeout=BOUND_S)

    def stop(self) -> int:
        """SIGTERM, as `systemctl stop` does; its exit status."""
        self.process.terminate()
        return self.process.wait(timeout=BOUND_S)

    def end(self) -> None:
        """Whatever runs of it."""
        if self._process:
            self.kill()

    def ready(self) -> None:
        """Wait until it offers its environment."""
        wait_for(lambda: self.state == "ready", lambda: self.log)

    @property
    def state(self) -> str:
        """The environment's, as the journal has it."""
        found = [each.state for each in self.journal.environments if each.id == self.environment]
        return found[0] if found else ""

    @property
    def journal(self) -> Chronicle:
        """As it is now; empty while there is none."""
        try:
            return read_journal(self.state_dir / self.name / JOURNAL_NAME)
        except JournalError:
            return Chronicle((), (), ())

    @property
    def leases(self) -> list[LeaseRecord]:
        return [each for each in self.journal.leases if each.environment == self.environment]

    @property
    def uses(self) -> list[LeaseRecord]:
        """Leases but for those that nobody wanted or took.

        gearmand gives the request of a lost agent to the next one that asks, for as long as the
        client is connected: an offer more, which is declined, or comes to nobody.
        """
        return [each for each in self.leases if each.reason not in (End.DECLINED, End.UNTAKEN)]

    def ended(self, lease: str) -> LeaseRecord:
        """Wait until a lease has ended."""
        return wait_for(
            lambda: next((each for each in self.leases if each.id == lease and each.ended), None),
            lambda: self.log,
        )

    def states_after(self, lease: str) -> list[str]:
        """Where the end of a lease has brought the environment so far."""
        events = self.journal.events
        grants = [n for n, each in enumerate(events) if each.lease == lease]
        return [str(each.state) for each in events[grants[0] + 1 :] if each.state]

    @property
    def _log_path(self) -> Path:
        return self._stage.folder / f"{self.name}.log"


class Job:
    """A testenv-client whose command is lease_command.py."""

    def __init__(self, stage: "Stage", name: str, argv: list[str], folder: Path) -> None:
        self.name = name
        self._stage = stage
        self._folder = folder
        with (folder / "stderr").open("wb") as stderr:
            self.process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
                env={**os.environ, "TESTENV_BROKER": "", "TMPDIR": str(folder)},
            )

    @property
    def said(self) -> str:
        return (self._folder / "stderr").read_text(errors="replace")

    @property
    def signs(self) -> list[Sign]:
        """Its command's signs of life."""
        path = self._folder / "signs"
        lines = path.read_text().splitlines() if path.exists() else []
        return [Sign(*json.loads(line)) for line in lines]

    @property
    def lease(self) -> str:
        return self.signs[0].lease

    @property
    def held(self) -> Held:
        """What its command was given."""
        first = self.signs[0]
        return Held(first.lease, first.generation)

    @property
    def last_sign(self) -> float:
        """When anything of its command lived last."""
        return max(each.at for each in self.signs)

    @property
    def pids(self) -> set[int]:
        """Of its command and of the child that left the command's session."""
        return {each.pid for each in self.signs}

    @property
    def guard(self) -> int:
        return children_of(self.process.pid)[0]

    def begins(self) -> None:
        """Wait until its command runs, and has its child."""
        self._comes_to(lambda: any(each.what == "child" for each in self.signs))

    def waits(self) -> None:
        """Wait until a broker has its request."""
        self.says("waiting for lockenv")

    def says(self, text: str) -> None:
        self._comes_to(lambda: text in self.said)

    def _comes_to(self, reached: Callable[[], bool]) -> None:
        wait_for(lambda: reached() or self.process.poll() is not None, lambda: self.said)
        assert reached(), f"{self.name} has exited with {self.process.returncode}: {self.said}"

    def release(self) -> None:
        """Let its command end."""
        (self._folder / "release").touch()

    def exits(self) -> int:
        return self.process.wait(timeout=BOUND_S)

    def ends_well(self, status: int = 0) -> None:
        """Let its command end, which nobody else may have ended."""
        self.release()
        assert self.exits() == status, self.said

    def kill(self, *more: int) -> float:
        """SIGKILL to the client, and to `more` in the same instant; when that was."""
        at = time.time()
        for pid in (self.process.pid, *more):
            os.kill(pid, signal.SIGKILL)
        self.process.wait(timeout=BOUND_S)
        return at

    def is_dead(self) -> bool:
        """Whether nothing of its command lives."""
        return not any(map(is_alive, self.pids))

    def end(self) -> None:
        """Whatever runs of it; a client that is stopped is not waited for by its guard."""
        if self.process.poll() is None:
            self.kill()


class Stage:
    """Where a play takes place. Made by `staged`."""

    def __init__(self, folder: Path, brokers: tuple[RunningBroker, ...], terms: Terms) -> None:
        self.folder = folder
        self.brokers = brokers
        self.terms = terms
        self.config = folder / "lease.toml"
        lines = (f"{key} = {value}\n" for key, value in terms._asdict().items())
        self.config.write_text("[lease]\n" + "".join(lines))
        self.datafile = folder / "env.json"
        self.datafile.write_text('{"seed-ip": "203.0.113.10"}')
        self._numbers = count(1)
        self.hosts: list[Host] = []
        self.jobs: list[Job] = []

    @property
    def addresses(self) -> str:
        return ",".join(str(each.endpoint) for each in self.brokers)

    def host(self, *, state_dir: Path | None = None, drain_s: float = 0) -> Host:
        """A new one, which offers its environment."""
        number = str(len(self.hosts) + 1)
        host = Host(self, number, state_dir or self.folder / "state", drain_s)
        self.hosts.append(host)
        host.start()
        host.ready()
        return host

    def job(self, *options: str, status: int = 0, brokers: str = "", setsid: bool = True) -> Job:
        """A client that asks for an environment now; its command runs until it is released.

        `setsid`: whether the command's child leaves its session.
        """
        name = f"job-{next(self._numbers)}"
        folder = self.folder / name
        folder.mkdir()
        client = [str(BIN / "testenv-client"), "-b", brokers or self.addresses, "-n", name]
        command = [sys.executable, "-S", str(COMMAND), str(folder), "600", str(status)]
        command += ["setsid"] if setsid else []
        job = Job(self, name, [*client, *options, "--", *command], folder)
        self.jobs.append(job)
        return job

    def running_job(self, *options: str, status: int = 0, setsid: bool = True) -> Job:
        """A client whose command runs."""
        job = self.job(*options, status=status, setsid=setsid)
        job.begins()
        return job

    def waiting_job(self, *options: str, status: int = 0) -> Job:
        """A client whose request a broker has."""
        job = self.job(*options, status=status)
        job.waits()
        return job

    def holder_of(self, host: Host) -> Job:
        """Whose command has run last on it."""
        [job] = [job for job in self.jobs if job.signs and job.lease == host.leases[-1].id]
        return job

    def status(self) -> dict[str, Any]:
        """`testenv status --json`: what the agents tell, by environment."""
        argv = [str(BIN / "testenv"), "status", "--json", "-b", self.addresses]
        shown = subprocess.run(argv, capture_output=True, timeout=BOUND_S, check=True)
        reports = [host["report"] for host in json.loads(shown.stdout)["hosts"]]
        return {env["id"]: env for each in reports if each for env in each["environments"]}

    def holds(self, host: Host, held: Held, *, state: str = "active") -> None:
        """Wait until `testenv status` shows that lease, and the host hears of its client."""

        def shown() -> bool:
            env = self.status().get(host.environment) or {}
            lease = env.get("lease") or {}
            seen = (lease.get("id"), lease.get("generation"), env.get("lease_state"))
            return seen == (*held, state)

        wait_for(shown, lambda: host.log)

    def assert_no_overlap(self) -> None:
        """No command found another in its environment, and none lived on into the next one's."""
        commands = [job.signs for job in self.jobs if job.signs]
        assert not [each for signs in commands for each in signs if each.what == "overlap"]
        for host in self.hosts:
            ours = {each.id for each in host.leases}
            mine = sorted(
                (signs for signs in commands if signs[0].lease in ours), key=lambda s: s[0].at
            )
            for before, after in pairwise(mine):
                assert max(each.at for each in before) <= after[0].at
                assert before[0].generation < after[0].generation


@contextmanager
def staged(folder: Path, *brokers: RunningBroker, terms: Terms = PATIENT) -> Iterator[Stage]:
    """A stage on which nobody lives on when the play is over, and where no two ever met."""
    stage = Stage(folder, brokers, terms)
    try:
        yield stage
        stage.assert_no_overlap()
    finally:
        for job in stage.jobs:
            job.end()
        for host in stage.hosts:
            host.end()


def wait_for(
    found: Callable[[], T | None], explain: Callable[[], str] = str, bound_s: float = BOUND_S
) -> T:
    """Wait until `found` gives something true, and return that."""
    deadline = time.monotonic() + bound_s
    while not (value := found()):
        assert time.monotonic() < deadline, f"did not happen in time:\n{explain()}"
        time.sleep(0.02)
    return value


def when(at: str | None) -> float:
    """A time of the journal, as a Sign's."""
    assert at
    return datetime.fromisoformat(at).timestamp()
