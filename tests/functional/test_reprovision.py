"""`testenv rebuild --reprovision` on a broker, two agents and a command that replaces them."""

import os
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from schemas.exits import SIGNAL_BASE, ExitStatus
from tests.functional.brokers import OURS, running_broker
from tests.functional.lease_rig import HASTY, Host, Stage, staged, wait_for
from tests.functional.operator_rig import Operator, Said, cordon_of

COMMAND = Path(__file__).with_name("reprovision_command.py")
REASON = "a new system"


class Cloud:
    """Two hosts that offer their environments, and can be made anew."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.operator = Operator(stage)
        self.folder = stage.folder / "cloud"
        self.folder.mkdir()
        self.first, self.second = self.hosts = (stage.host(), stage.host())
        for host in self.hosts:
            self.place(host, "pid", str(host.process.pid))

    @property
    def template(self) -> str:
        return shlex.join([sys.executable, "-S", str(COMMAND), str(self.folder), "{host}"])

    @property
    def deeds(self) -> list[str]:
        """What the commands have done so far."""
        path = self.folder / "deeds"
        return path.read_text().splitlines() if path.exists() else []

    def place(self, host: Host, word: str, text: str = "") -> Path:
        """A file for the command."""
        path = self.folder / f"{host.name}.{word}"
        path.write_text(text)
        return path

    def words(self, *more: str, template: str = "") -> tuple[str, ...]:
        command = ("--reprovision-command", template or self.template)
        return ("rebuild", "--reprovision", *command, "--reason", REASON, *more)

    def begins(self, host: Host) -> None:
        """Wait until the command runs for `host`."""
        wait_for(lambda: f"begin {host.name}" in self.deeds, lambda: str(self.deeds))

    def end(self) -> None:
        """The agents that commands have started."""
        for host in self.hosts:
            with suppress(ProcessLookupError):
                os.kill(int((self.folder / f"{host.name}.pid").read_text()), signal.SIGKILL)


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[Cloud]:
    with running_broker(OURS) as broker, staged(tmp_path, broker, terms=HASTY) as stage:
        cloud = Cloud(stage)
        try:
            yield cloud
        finally:
            cloud.end()


def one_line(said: Said) -> str:
    [line] = said.err.splitlines()
    return line


def test_hosts_are_made_anew_one_by_one_and_the_others_serve_meanwhile(cloud: Cloud) -> None:
    first, second, operator = cloud.first, cloud.second, cloud.operator
    cloud.place(first, "wipe", str(first.state_dir / first.name))
    cloud.place(first, "waits")
    operator.environment["TESTENV_REPROVISION_COMMAND"] = cloud.template
    words = ("rebuild", first.name, second.name, "--reprovision", "--reason", REASON)
    with operator.typing(*words, "--yes", "--json") as command:
        cloud.begins(first)
        assert cordon_of(first) == REASON
        assert cordon_of(second) is None, "its turn has not come"
        job = cloud.stage.running_job()
        assert [each.id for each in second.leases] == [job.lease]
        cloud.place(first, "go")
        wait_for(lambda: cordon_of(second) == REASON, lambda: str(cloud.deeds))
        assert f"begin {second.name}" not in cloud.deeds, "a lease runs there"
        job.ends_well()
        said = operator.reads(command)
    assert said.status == 0, said.err
    assert said.results == {first.environment: "done", second.environment: "done"}
    both = [f"{what} {host.name}" for host in cloud.hosts for what in ("begin", "end")]
    assert cloud.deeds == both
    assert f"\n{first.name}: making {first.name} anew\n" in said.err
    assert "2 hosts, 1 at a time\n" in said.err
    assert not first.leases, "its journal is gone, and the cordon with it"
    assert second.leases, "its journal is not, and so the cordon was lifted"
    wait_for(lambda: [cordon_of(host) for host in cloud.hosts] == [None, None])


def test_after_a_command_that_fails_no_other_host_is_begun_and_it_may_be_repeated(
    cloud: Cloud,
) -> None:
    first, second, operator = cloud.first, cloud.second, cloud.operator
    fails = cloud.place(first, "fails")
    words = cloud.words(first.name, second.name, "--yes")
    said = operator.types(*words)
    assert (said.status, said.out) == (ExitStatus.FAILED, "")
    why = "its command exited with status 3; it stays cordoned"
    assert f"testenv: {first.name}: {why}\n" in said.err
    assert f"\n{first.name}: no such image\n" in said.err
    assert f"{second.name}: not begun, because {first.name} has not come back" in said.err
    assert (cordon_of(first), cordon_of(second)) == (REASON, None)
    assert cloud.deeds == [f"begin {first.name}"]
    fails.unlink()
    again = operator.types(*words)
    assert again.status == 0, again.err
    assert again.out.splitlines() == [f"{host.environment}: reprovisioned" for host in cloud.hosts]
    wait_for(lambda: cordon_of(first) is None)


def test_a_host_that_is_leased_at_the_deadline_is_left_and_the_next_has_its_turn(
    cloud: Cloud,
) -> None:
    job = cloud.stage.running_job()
    leased, free = sorted(cloud.hosts, key=lambda host: not host.leases)
    words = cloud.words("*", "--deadline", "0s", "--json")
    asked = cloud.operator.types(*words)
    assert asked.status == ExitStatus.USAGE, "nobody can be asked"
    assert f"{leased.environment}: is waited for: leased by {job.name}" in asked.err
    assert cordon_of(leased) is None
    said = cloud.operator.types(*words, "--yes")
    assert said.status == ExitStatus.STILL_LEASED, said.err
    assert said.results == {leased.environment: "leased", free.environment: "done"}
    assert cloud.deeds == [f"begin {free.name}", f"end {free.name}"]
    assert job.process.poll() is None
    revoked = cloud.operator.types(
        *cloud.words(leased.name, "--deadline", "0s"), "--revoke", "--yes"
    )
    assert revoked.status == 0, revoked.err
    assert job.exits() == ExitStatus.LEASE_LOST
    assert REASON in job.said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda each: each.name)
def test_who_interrupts_it_ends_the_command_and_is_told_how_each_host_stands(
    cloud: Cloud, number: signal.Signals
) -> None:
    first, second = cloud.hosts
    cloud.place(first, "waits")
    with cloud.operator.typing(*cloud.words("*", "--yes")) as command:
        cloud.begins(first)
        command.send_signal(number)
        said = cloud.operator.reads(command)
    assert (said.status, said.out) == (SIGNAL_BASE + signal.SIGINT, "")
    assert cloud.deeds == [f"begin {first.name}", f"terminated {first.name}"]
    standing = "its command was ended: look after the host; it stays cordoned"
    assert f"testenv: {first.name}: {standing}\n" in said.err
    assert f"testenv: {second.name}: waits for its turn\n" in said.err
    assert (cordon_of(first), cordon_of(second)) == (REASON, None)


def test_hosts_may_be_made_anew_at_the_same_time(cloud: Cloud) -> None:
    for host in cloud.hosts:
        cloud.place(host, "waits")
    with cloud.operator.typing(*cloud.words("*", "--yes", "--at-once", "2")) as command:
        for host in cloud.hosts:
            cloud.begins(host)
        for host in cloud.hosts:
            cloud.place(host, "go")
        assert cloud.operator.reads(command).status == 0


@pytest.mark.parametrize(
    ("template", "within", "why"),
    [
        ("true {host}", "2s", "no new agent has registered within 2s: the old agent still answers"),
        ("sleep 60{host}0", "9s", "its command exited with status 1"),
        ("sh -c 'sleep 60; : {host}'", "1s", "its command did not end within 1s, and was ended"),
        ("sh -c 'kill -9 $$; : {host}'", "9s", "its command was ended by SIGKILL"),
    ],
)
def test_a_host_that_does_not_come_back_in_time_has_failed(
    cloud: Cloud, template: str, within: str, why: str
) -> None:
    words = cloud.words(cloud.first.name, "--yes", "--boot-timeout", within, template=template)
    said = cloud.operator.types(*words)
    assert (said.status, said.out) == (ExitStatus.FAILED, "")
    assert f"testenv: {cloud.first.name}: {why}" in said.err.splitlines()[-1]
    assert cordon_of(cloud.first) == REASON


def test_what_can_t_be_done_is_refused_in_one_line_before_anything_is(cloud: Cloud) -> None:
    host, types = cloud.first, cloud.operator.types
    for template, complaint in (
        ("true", "'true' does not say where the host's name goes"),
        ("true ${HOME} {host}", "only {host} may stand in braces"),
        ("true '{host}", "no closing quotation"),
        ("no-such-program {host}", "there is no program 'no-such-program'"),
    ):
        said = types(*cloud.words(host.name, "--yes", template=template))
        assert said.status == ExitStatus.USAGE
        assert one_line(said).startswith("testenv: --reprovision-command: ")
        assert complaint in one_line(said)
    part = types(*cloud.words(host.environment, "--yes"))
    assert part.status == ExitStatus.FAILED
    assert f"{host.environment}: only a whole host can be reprovisioned" in one_line(part)
    without = types("rebuild", host.name, "--reprovision", "--yes")
    assert without.status == ExitStatus.USAGE
    assert "set TESTENV_REPROVISION_COMMAND, as in: openstack" in one_line(without)
    stray = types("rebuild", host.name, "--at-once", "2", "--yes")
    assert one_line(stray) == "testenv: --at-once: belongs to --reprovision"
    assert not cloud.deeds
    assert cordon_of(host) is None
