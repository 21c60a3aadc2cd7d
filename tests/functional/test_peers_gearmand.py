"""gearmand's own tools on our broker and on gearmand: gearadmin, and gearman as client and worker.

What they print is the same over both brokers, but where a test says so.
"""

import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import gear
import pytest

from broker.endpoint import Endpoint
from tests.functional.brokers import OURS, RunningBroker
from tests.functional.wire_peers import BOUND_S, gear_client, gear_worker, until

ours = pytest.mark.parametrize("broker", [OURS], ids=str, indirect=True)


def run(program: str, at: Endpoint, *arguments: str, stdin: str = "") -> tuple[int, str, str]:
    """A tool of gearmand's, from start to end: its exit status, stdout and stderr."""
    done = subprocess.run(
        [program, "-h", at.host, "-p", str(at.port), *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=BOUND_S,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def gearadmin(at: Endpoint, *arguments: str) -> str:
    """What gearadmin prints."""
    _, out, err = run("gearadmin", at, *arguments)
    return out + err


def gearman(at: Endpoint, *arguments: str, stdin: str = "") -> str:
    """What gearman's client prints; it must succeed."""
    status, out, err = run("gearman", at, *arguments, stdin=stdin)
    assert (status, err) == (0, "")
    return out


@contextmanager
def gearman_worker(at: Endpoint, *arguments: str) -> Iterator["subprocess.Popen[bytes]"]:
    """`gearman -w`, which does a command for each job."""
    command = ["gearman", "-h", at.host, "-p", str(at.port), "-w", *arguments]
    with ExitStack() as stack:
        worker = stack.enter_context(subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *command]))
        stack.callback(worker.kill)
        yield worker


def rows(listing: str) -> list[list[str]]:
    """gearadmin's listing as cells."""
    *lines, end = listing.splitlines()
    assert end == "."
    return sorted(line.split("\t") for line in lines)


# gearadmin


def test_gearadmin_lists_functions_by_jobs_and_priority(broker: RunningBroker) -> None:
    at = broker.endpoint
    for priority in ("-L", "-I", "-I"):
        gearman(at, "-f", "f", "-b", "-s", priority)
    with gearman_worker(at, "-f", "g", "true"):
        until(lambda: "g" in gearadmin(at, "--status"))
        assert rows(gearadmin(at, "--status")) == [["f", "3", "0", "0"], ["g", "0", "0", "1"]]
        assert rows(gearadmin(at, "--priority-status")) == [
            ["f", "2", "0", "1", "0"],
            ["g", "0", "0", "0", "1"],
        ]


def test_gearadmin_lists_workers(broker: RunningBroker) -> None:
    at = broker.endpoint
    with gearman_worker(at, "-f", "f", "-f", "g", "true"):
        line = re.compile(r"^\d+ 127\.0\.0\.1 - : (f g|g f)$", re.MULTILINE)
        until(lambda: line.search(gearadmin(at, "--workers")))


def test_gearadmin_lists_jobs_and_cancels_one(broker: RunningBroker) -> None:
    at = broker.endpoint
    handle = submit_in_background(at, "-u", "first")
    submit_in_background(at, "-u", "second")
    assert [handle, "0", "0", "1"] in rows(gearadmin(at, "--show-jobs"))
    assert rows(gearadmin(at, "--show-unique-jobs")) == [["first"], ["second"]]
    assert gearadmin(at, f"--cancel-job={handle}") == "OK\n"
    with gearman_worker(at, "-f", "f", "-c", "1", "cat") as worker:
        assert worker.wait(BOUND_S) == 0
    assert gearadmin(at, "--status") == "f\t0\t0\t0\n.\n" if broker.kind is not OURS else ".\n"


def test_gearadmin_tells_that_it_cannot_cancel(broker: RunningBroker) -> None:
    unknown = gearadmin(broker.endpoint, "--cancel-job=H:nobody:1")
    assert unknown.startswith("Error: UNKNOWN_JOB")


@ours
def test_gearadmin_does_not_cancel_a_job_that_runs(broker: RunningBroker) -> None:
    """gearmand says that it did."""
    at = broker.endpoint
    handle = submit_in_background(at)
    with gearman_worker(at, "-f", "f", "sleep", str(BOUND_S)):
        until(lambda: [handle, "0", "0", "0"] in rows(gearadmin(at, "--show-jobs")))
        assert gearadmin(at, f"--cancel-job={handle}").startswith("Error: JOB_IS_RUNNING")


def test_gearadmin_learns_pid_version_and_verbosity(broker: RunningBroker) -> None:
    at = broker.endpoint
    assert gearadmin(at, "--getpid") == f"{broker.pid}\n"
    assert re.fullmatch(r"(testenv-broker )?\d+\.\d+\S*\n", gearadmin(at, "--server-version"))
    assert gearadmin(at, "--server-verbose") in {"INFO\n", "ERROR\n"}


def test_gearadmin_creates_and_drops_a_function(broker: RunningBroker) -> None:
    at = broker.endpoint
    for _ in range(2):
        assert gearadmin(at, "--create-function=made") == "OK\n"
    assert "made\t0\t0\t0\n" in gearadmin(at, "--status")
    assert gearadmin(at, "--drop-function=made") == "OK\n"
    assert gearadmin(at, "--status") == ".\n"


def test_gearadmin_does_not_drop_a_function_in_use(broker: RunningBroker) -> None:
    at = broker.endpoint
    with gearman_worker(at, "-f", "f", "true"):
        until(lambda: "f" in gearadmin(at, "--status"))
        assert gearadmin(at, "--drop-function=f").startswith("Error: ")
        assert "f\t0\t0\t1\n" in gearadmin(at, "--status")


def submit_in_background(at: Endpoint, *arguments: str) -> str:
    """A job of `f` that nobody waits for: its handle."""
    before = handles(at)
    gearman(at, "-f", "f", "-b", "-s", *arguments)
    [handle] = handles(at) - before
    return handle


def handles(at: Endpoint) -> set[str]:
    """Of all jobs there are."""
    return {row[0] for row in rows(gearadmin(at, "--show-jobs"))}


# gearman


def test_gearman_client_gets_what_gearman_worker_makes_of_it(broker: RunningBroker) -> None:
    at = broker.endpoint
    with gearman_worker(at, "-f", "x", "tr", "a-z", "A-Z"):
        assert gearman(at, "-f", "x", "hello") == "HELLO"
        assert gearman(at, "-f", "x", stdin="from stdin") == "FROM STDIN"


def test_gearman_does_one_job_per_line(broker: RunningBroker) -> None:
    at = broker.endpoint
    with gearman_worker(at, "-f", "x", "cat"):
        assert gearman(at, "-f", "x", "-n", stdin="one\ntwo\n") == "one\ntwo\n"
        assert gearman(at, "-f", "x", "-N", "-P", stdin="1\n2\n") == "x: 1x: 2"


def test_gearman_gets_output_line_by_line(broker: RunningBroker) -> None:
    at = broker.endpoint
    with gearman_worker(at, "-n", "-f", "x", "printf", "one\\ntwo\\n"):
        # The worker sends the first line twice.
        assert gearman(at, "-f", "x", "-s") == "one\none\ntwo\n"


def test_large_data_go_both_ways(broker: RunningBroker) -> None:
    at = broker.endpoint
    # More than fits in a pipe blocks gearman's worker and its command.
    text = "0123456789abcdef" * 4_000
    with gearman_worker(at, "-f", "x", "cat"):
        assert gearman(at, "-f", "x", stdin=text) == text


def test_urgent_jobs_come_first(broker: RunningBroker, tmp_path: Path) -> None:
    at = broker.endpoint
    for name, priority in [("low", "-L"), ("normal", "-b"), ("high", "-I")]:
        gearman(at, "-f", "x", "-b", priority, f"{name}\n")
    done = tmp_path / "done"
    with gearman_worker(at, "-f", "x", "-c", "3", "--", "tee", "-a", str(done)) as worker:
        worker.wait(BOUND_S)
    assert done.read_text() == "high\nnormal\nlow\n"


def test_same_unique_id_is_the_same_job(broker: RunningBroker, tmp_path: Path) -> None:
    at = broker.endpoint
    for _ in range(3):
        gearman(at, "-f", "x", "-b", "-u", "same", "once\n")
    gearman(at, "-f", "x", "-b", "-u", "other", "twice\n")
    done = tmp_path / "done"
    with gearman_worker(at, "-f", "x", "-c", "2", "--", "tee", "-a", str(done)) as worker:
        worker.wait(BOUND_S)
    assert done.read_text() == "once\ntwice\n"
    assert handles(at) == set()


def test_gearman_client_gives_up_in_time(broker: RunningBroker) -> None:
    status, _, err = run("gearman", broker.endpoint, "-t", "100", "-f", "nobody", "x")
    assert (status, "timeout reached" in err) == (0, True)


def test_client_that_gave_up_leaves_no_job_behind(broker: RunningBroker) -> None:
    at = broker.endpoint
    run("gearman", at, "-t", "100", "-f", "x", "abandoned")
    gearman(at, "-f", "x", "-b", "wanted")
    with gearman_worker(at, "-f", "x", "-c", "1", "cat") as worker:
        assert worker.wait(BOUND_S) == 0
    until(lambda: handles(at) == set())


@ours
def test_dead_gearman_workers_client_is_told(broker: RunningBroker) -> None:
    """gearmand gives the job to another."""
    at = broker.endpoint
    with gear_client(at) as client, gearman_worker(at, "-f", "x", "sleep", str(BOUND_S)) as worker:
        job = _submitted(client, "x")
        until(lambda: "x\t1\t1\t1\n" in gearadmin(at, "--status"))
        worker.kill()
        until(lambda: job.complete)
    assert job.failure


def test_gearman_client_works_with_gears_worker(broker: RunningBroker) -> None:
    at = broker.endpoint
    with gear_worker(at, "x", lambda job: job.sendWorkComplete(job.arguments[::-1])):
        assert gearman(at, "-f", "x", "abc") == "cba"


def test_gears_client_works_with_gearman_worker(broker: RunningBroker) -> None:
    at = broker.endpoint
    with gear_client(at) as client, gearman_worker(at, "-f", "x", "cat"):
        job = _submitted(client, "x", b"hello")
        until(lambda: job.complete)
    assert job.data == [b"hello"]


def _submitted(client: gear.Client, function: str, arguments: bytes = b"") -> gear.Job:
    job = gear.Job(function.encode(), arguments)
    client.submitJob(job, timeout=BOUND_S)
    return job
