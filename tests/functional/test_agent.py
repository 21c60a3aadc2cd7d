"""The agent and the operator's view, as real processes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from broker.endpoint import Endpoint
from schemas.exits import ExitStatus
from tests.functional.brokers import RunningBroker, running_broker

BIN = Path(sys.executable).parent
SOON_S = 20.0


def command(name: str, *arguments: str) -> list[str]:
    return [str(BIN / name), *arguments]


@contextmanager
def process(*argv: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
    running = subprocess.Popen(argv, text=True, **options)
    try:
        yield running
    finally:
        running.kill()
        running.wait(timeout=SOON_S)


@contextmanager
def serving(
    broker: RunningBroker, tmp_path: Path, number: str = "1", *more: str
) -> Iterator[subprocess.Popen[str]]:
    """`testenv-host serve` of a ready-made environment, registered."""
    data = tmp_path / "env.json"
    if not data.exists():
        data.write_text('{"seed-ip": "203.0.113.10", "nodes": []}')
    with (tmp_path / f"agent-{number}.log").open("a") as log:
        argv = command("testenv-host", "serve", str(data), "-b", str(broker.endpoint))
        options = ["-n", number, "--state-dir", str(tmp_path), *more]
        with process(*argv, *options, stderr=log) as agent:
            wait_for(lambda: f"-{number}/1" in environments(broker.endpoint))
            yield agent


def status(*endpoints: Endpoint) -> dict[str, Any]:
    brokers = ",".join(str(one) for one in endpoints)
    shown = subprocess.run(
        command("testenv", "status", "--json", "-b", brokers),
        capture_output=True,
        text=True,
        check=True,
        timeout=SOON_S,
    )
    fleet: dict[str, Any] = json.loads(shown.stdout)
    return fleet


def environments(*endpoints: Endpoint) -> dict[str, dict[str, Any]]:
    """Environments by the end of their id (`-<number>/1`): the machine's name varies."""
    found = {}
    for host in status(*endpoints)["hosts"]:
        for env in (host["report"] or {}).get("environments", ()):
            found["-" + env["id"].rsplit("-", 1)[1]] = env
    return found


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + SOON_S
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.05)


def client(broker: RunningBroker, *words: str) -> list[str]:
    return command("testenv-client", "-b", str(broker.endpoint), "--", *words)


def test_the_served_file_reaches_the_job_with_its_lease(
    broker: RunningBroker, tmp_path: Path
) -> None:
    with serving(broker, tmp_path):
        ran = subprocess.run(
            client(broker, "sh", "-c", "cat $TE_DATAFILE; exit 7"),
            capture_output=True,
            timeout=SOON_S,
            check=False,
        )
    assert ran.returncode == 7
    document = json.loads(ran.stdout)
    assert document["seed-ip"] == "203.0.113.10"
    assert document["testenv"]["lease"]["generation"] == 1


def test_a_changed_data_file_is_what_the_next_job_gets(
    broker: RunningBroker, tmp_path: Path
) -> None:
    with serving(broker, tmp_path):
        (tmp_path / "env.json").write_text('{"seed-ip": "203.0.113.77"}')
        ran = subprocess.run(
            client(broker, "sh", "-c", "cat $TE_DATAFILE"),
            capture_output=True,
            timeout=SOON_S,
            check=True,
        )
    assert json.loads(ran.stdout)["seed-ip"] == "203.0.113.77"


def test_a_data_file_that_went_bad_is_broken_with_the_reason(
    broker: RunningBroker, tmp_path: Path
) -> None:
    with serving(broker, tmp_path):
        (tmp_path / "env.json").write_text("{")
        subprocess.run(client(broker, "true"), timeout=SOON_S, check=True)
        wait_for(lambda: environments(broker.endpoint)["-1/1"]["state"] == "broken")
        assert "env.json: is not JSON" in environments(broker.endpoint)["-1/1"]["reason"]


def test_status_tells_who_holds_an_environment_and_how_many_wait(
    broker: RunningBroker, tmp_path: Path
) -> None:
    with (
        serving(broker, tmp_path),
        process(*client(broker, "cat"), stdin=subprocess.PIPE) as holder,
    ):
        wait_for(lambda: environments(broker.endpoint)["-1/1"]["state"] == "leased")
        lease = environments(broker.endpoint)["-1/1"]["lease"]
        assert lease["timeout_s"] == 10800
        assert lease["holder"]
        with process(*client(broker, "true")) as waiting:
            wait_for(lambda: queue(broker)["waiting"] == 1)
            assert queue(broker)["leased"] == 1
            assert queue(broker)["offered"] == 0
            holder.communicate(timeout=SOON_S)
            assert waiting.wait(timeout=SOON_S) == 0


def queue(broker: RunningBroker) -> dict[str, Any]:
    [one] = [q for q in status(broker.endpoint)["queues"] if q["function"] == "lockenv"]
    found: dict[str, Any] = one
    return found


def test_an_agent_that_hangs_is_shown_and_not_waited_for(
    broker: RunningBroker, tmp_path: Path
) -> None:
    with serving(broker, tmp_path) as hung, serving(broker, tmp_path, "2"):
        hung.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        problems = {host["problem"] for host in status(broker.endpoint)["hosts"]}
        assert time.monotonic() - began < 6
        assert problems == {"no answer within 3 s", ""}


def test_an_agent_that_is_gone_is_shown_without_waiting(
    broker: RunningBroker, tmp_path: Path
) -> None:
    with serving(broker, tmp_path) as agent:
        agent.kill()
        agent.wait(timeout=SOON_S)

        def gone() -> bool:
            return all(host["report"] is None for host in status(broker.endpoint)["hosts"])

        wait_for(gone)


def test_one_broker_of_two_is_down_and_the_other_s_fleet_is_shown(
    broker: RunningBroker, tmp_path: Path
) -> None:
    with serving(broker, tmp_path):
        down = Endpoint("127.0.0.1", 1)
        fleet = status(down, broker.endpoint)
        assert {one["broker"]: one["state"] for one in fleet["brokers"]} == {
            str(down): "down",
            str(broker.endpoint): "up",
        }
        assert fleet["hosts"][0]["report"]


def test_status_without_any_broker_exits_69_naming_it() -> None:
    shown = subprocess.run(
        command("testenv", "status", "-b", "127.0.0.1:1"),
        capture_output=True,
        text=True,
        timeout=SOON_S,
        check=False,
    )
    assert shown.returncode == ExitStatus.NO_BROKER
    assert "127.0.0.1:1" in shown.stderr
    assert shown.stdout == ""


def test_a_second_agent_with_the_same_state_directory_is_refused(
    broker: RunningBroker, tmp_path: Path
) -> None:
    with serving(broker, tmp_path) as first:
        second = subprocess.run(
            [*first.args],  # type: ignore[misc]  # a list, as `process` got it
            capture_output=True,
            text=True,
            timeout=SOON_S,
            check=False,
        )
        assert second.returncode == ExitStatus.FAILED
        assert f"an agent already runs on {tmp_path}" in second.stderr
        assert f"(process {first.pid})" in second.stderr


def test_sigterm_leaves_a_running_lease_to_the_next_agent(
    broker: RunningBroker, tmp_path: Path
) -> None:
    with process(*client(broker, "cat"), stdin=subprocess.PIPE) as holder:
        with serving(broker, tmp_path) as agent:
            wait_for(lambda: environments(broker.endpoint)["-1/1"]["state"] == "leased")
            lease = environments(broker.endpoint)["-1/1"]["lease"]
            agent.send_signal(signal.SIGTERM)
            assert agent.wait(timeout=SOON_S) == 0
            assert holder.poll() is None
        with serving(broker, tmp_path):
            wait_for(lambda: environments(broker.endpoint)["-1/1"]["lease_state"] == "active")
            assert environments(broker.endpoint)["-1/1"]["lease"] == lease
            holder.communicate(timeout=SOON_S)
            assert holder.returncode == 0


def test_sigterm_lets_a_v1_client_s_lease_end_and_offers_nothing_new(
    broker: RunningBroker, tmp_path: Path
) -> None:
    with (
        serving(broker, tmp_path) as agent,
        process(*v1_client(broker, "cat"), stdin=subprocess.PIPE) as holder,
    ):
        wait_for(lambda: environments(broker.endpoint)["-1/1"]["state"] == "leased")
        agent.send_signal(signal.SIGTERM)
        wait_for(lambda: status(broker.endpoint)["hosts"][0]["report"]["draining"])
        assert agent.poll() is None
        holder.communicate(timeout=SOON_S)
        assert holder.returncode == 0
        assert agent.wait(timeout=SOON_S) == 0


@pytest.mark.parametrize("how", ["timeout", "second signal"])
def test_a_drain_that_may_not_go_on_ends_the_agent(
    broker: RunningBroker, tmp_path: Path, how: str
) -> None:
    limit = "0.2" if how == "timeout" else "3600"
    with (
        serving(broker, tmp_path, "1", "--drain-timeout", limit) as agent,
        process(*v1_client(broker, "sleep", "600"), start_new_session=True),
    ):
        wait_for(lambda: environments(broker.endpoint)["-1/1"]["state"] == "leased")
        agent.send_signal(signal.SIGTERM)
        if how == "second signal":
            wait_for(lambda: "stopping" in (tmp_path / "agent-1.log").read_text())
            agent.send_signal(signal.SIGTERM)
        assert agent.wait(timeout=SOON_S) == 0


def test_sigusr2_cordons_and_sigusr1_uncordons(broker: RunningBroker, tmp_path: Path) -> None:
    with serving(broker, tmp_path) as agent:
        wait_for(lambda: environments(broker.endpoint)["-1/1"]["offered"])
        agent.send_signal(signal.SIGUSR2)
        wait_for(lambda: not environments(broker.endpoint)["-1/1"]["offered"])
        assert environments(broker.endpoint)["-1/1"]["cordoned"]
        with process(*client(broker, "true")) as waiting:
            wait_for(lambda: queue(broker)["waiting"] == 1)
            assert waiting.poll() is None
            agent.send_signal(signal.SIGUSR1)
            assert waiting.wait(timeout=SOON_S) == 0
        assert not environments(broker.endpoint)["-1/1"]["cordoned"]


def test_an_environment_with_labels_serves_requests_for_any_of_them(
    broker: RunningBroker, tmp_path: Path
) -> None:
    with serving(broker, tmp_path, "1", "--label", "big", "--label", "kvm"):
        for labels in (["--label", "kvm"], ["--label", "kvm", "--label", "big"], []):
            argv = command("testenv-client", "-b", str(broker.endpoint), *labels, "--", "true")
            subprocess.run(argv, timeout=SOON_S, check=True)
        argv = command("testenv-client", "-b", str(broker.endpoint), "--label", "arm")
        ran = subprocess.run(
            [*argv, "--wait-timeout", "1", "--", "true"], timeout=SOON_S, check=False
        )
        assert ran.returncode == ExitStatus.NO_ENVIRONMENT


def v1_client(broker: RunningBroker, *words: str) -> list[str]:
    """toci's client, as it was on the wire in 2014, on gear's own Client and Worker."""
    peer = Path(__file__).parent / "peers" / "v1_client.py"
    return [sys.executable, str(peer), "-b", str(broker.endpoint), "--", *words]


def test_toci_s_client_gets_the_data_file_and_holds_the_environment(
    broker: RunningBroker, tmp_path: Path
) -> None:
    with serving(broker, tmp_path):
        script = 'cat "$TE_DATAFILE"; read -r go; exit 3'
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with process(*v1_client(broker, "sh", "-c", script), **pipes) as holder:
            wait_for(lambda: environments(broker.endpoint)["-1/1"]["state"] == "leased")
            out, _ = holder.communicate("go\n", timeout=SOON_S)
        assert holder.returncode == 3
        assert json.loads(out)["seed-ip"] == "203.0.113.10"
        wait_for(lambda: environments(broker.endpoint)["-1/1"]["state"] == "ready")


def test_toci_s_client_and_ours_take_turns(broker: RunningBroker, tmp_path: Path) -> None:
    with serving(broker, tmp_path):
        for _ in range(2):
            subprocess.run(v1_client(broker, "true"), timeout=SOON_S, check=True)
            subprocess.run(client(broker, "true"), timeout=SOON_S, check=True)


def test_toci_s_client_killed_frees_the_environment(broker: RunningBroker, tmp_path: Path) -> None:
    with serving(broker, tmp_path), process(*v1_client(broker, "sleep", "600")) as holder:
        wait_for(lambda: environments(broker.endpoint)["-1/1"]["state"] == "leased")
        holder.kill()
        wait_for(lambda: environments(broker.endpoint)["-1/1"]["state"] == "ready")


def test_twenty_clients_share_two_environments_and_never_meet(
    broker: RunningBroker, tmp_path: Path
) -> None:
    """Each command takes an exclusive lock on its environment's file, and fails if it is taken."""
    with serving(broker, tmp_path), serving(broker, tmp_path, "2"):
        script = (
            "env=$(jq -r .testenv.lease.environment $TE_DATAFILE | tr / _);"
            f"exec flock --nonblock {tmp_path}/$env.lock sh -c"
            f' \'echo "$1" >> {tmp_path}/ran; sleep 0.05\' sh "$env"'
        )
        clients = [subprocess.Popen(client(broker, "sh", "-c", script)) for _ in range(20)]
        assert [one.wait(timeout=60) for one in clients] == [0] * 20
    ran = (tmp_path / "ran").read_text().splitlines()
    assert len(ran) == 20
    assert len(set(ran)) == 2


def test_a_broker_that_comes_late_gets_the_environment(tmp_path: Path) -> None:
    from tests.functional.brokers import OURS

    with running_broker(OURS) as broker:
        broker.kill()
        data = tmp_path / "env.json"
        data.write_text('{"a": 1}')
        argv = command("testenv-host", "serve", str(data), "-b", str(broker.endpoint))
        with process(*argv, "--state-dir", str(tmp_path)):
            broker.restart()
            wait_for(lambda: environments(broker.endpoint))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["serve", "none.json"], "none.json: cannot be read: No such file or directory"),
        (["--config", "none.toml", "plan"], "none.toml: cannot be read: No such file"),
        (["--config", "none.toml", "run"], "none.toml: cannot be read: No such file"),
    ],
)
def test_bad_input_is_refused_in_one_line_with_exit_2(
    arguments: list[str], message: str, tmp_path: Path
) -> None:
    ran = subprocess.run(
        command("testenv-host", *arguments),
        capture_output=True,
        text=True,
        timeout=SOON_S,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "XDG_STATE_HOME": str(tmp_path)},
    )
    assert ran.returncode == ExitStatus.USAGE
    assert message in ran.stderr
    assert len(ran.stderr.splitlines()) == 1
