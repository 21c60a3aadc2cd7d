"""An environment's worker as toci's was in 2014, on gear's own Client and Worker.

    python v1_worker.py [-b HOST:PORT] [-n ID] DATAFILE

It takes one lockenv job, submits the callback that the job names with the data file's text as its
argument, holds the lock until that has ended, and starts over on new connections 2 s later. What
it does not know of: labels, typed refusals, and that a client has died.

Of no wire's concern, for tests: --pause shortens the 2 s, --start-wait the 40 s that a callback
has to be running, --answer sends a text in the data file's place, as toci did on errors, --end
says how lockenv ends, --hold-for ends it that long after the callback was submitted whatever
became of that, and --once ends the process after one lock.
"""

import argparse
import json
import sys
import threading
import time
from pathlib import Path

import gear

MARGIN_S = 40


class CallbackClient(gear.Client):  # type: ignore[misc]  # gear has no type hints
    """Tells when a callback has ended, and whether one is known to run."""

    def __init__(self) -> None:
        super().__init__()
        self.over = threading.Event()
        self.answered = threading.Event()

    def handleWorkComplete(self, packet: gear.Packet) -> None:  # noqa: N802 - gear's name
        super().handleWorkComplete(packet)
        self.over.set()

    def handleWorkFail(self, packet: gear.Packet) -> None:  # noqa: N802 - gear's name
        super().handleWorkFail(packet)
        self.over.set()

    def handleWorkException(self, packet: gear.Packet) -> None:  # noqa: N802 - gear's name
        super().handleWorkException(packet)
        self.over.set()

    def handleStatusRes(self, packet: gear.Packet) -> None:  # noqa: N802 - gear's name
        super().handleStatusRes(packet)
        self.answered.set()


def hold(options: argparse.Namespace, job: gear.WorkerJob, client: CallbackClient) -> str:
    """Submit the callback and wait for its end; how that went, for the log."""
    arguments = json.loads(job.arguments)
    text = options.answer.encode() if options.answer else Path(options.datafile).read_bytes()
    callback = gear.Job(arguments["callback_name"], text)
    client.submitJob(callback)
    if options.hold_for is not None:
        client.over.wait(options.hold_for)
        return "not waited for"
    early = options.start_wait * 3 / 4
    if not client.over.wait(early):
        callback.connection.sendPacket(
            gear.Packet(gear.constants.REQ, gear.constants.GET_STATUS, callback.handle)
        )
        client.over.wait(options.start_wait - early)
        if not (client.over.is_set() or callback.running):
            return "nobody answered"
        client.over.wait(max(0, int(arguments.get("timeout", 10800)) - MARGIN_S))
    if not client.over.is_set():
        return "timed out"
    return "declined" if callback.failure else "completed"


def serve_once(options: argparse.Namespace) -> None:
    """One lock, from registration to its end."""
    worker = gear.Worker(f"testenv-worker-{options.number}")
    client = CallbackClient()
    for broker in options.geard.split(","):
        host, _, port = broker.partition(":")
        worker.addServer(host, int(port or 4730))
        client.addServer(host, int(port or 4730))
    worker.waitForServer()
    client.waitForServer()
    worker.registerFunction("lockenv")
    print("ready", flush=True)  # noqa: T201 - the script's output
    job = worker.getJob()
    print("locked", flush=True)  # noqa: T201 - the script's output
    outcome = hold(options, job, client)
    if options.end == "fail":
        job.sendWorkFail()
    else:
        job.sendWorkComplete(b"")
    print(f"released: {outcome}", flush=True)  # noqa: T201 - the script's output
    client.shutdown()
    worker.shutdown()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-b", "--geard", default="127.0.0.1:4730")
    parser.add_argument("-n", "--number", default="1")
    parser.add_argument("--pause", type=float, default=2.0)
    parser.add_argument("--start-wait", type=float, default=40.0)
    parser.add_argument("--answer")
    parser.add_argument("--end", choices=["complete", "fail"], default="complete")
    parser.add_argument("--hold-for", type=float)
    parser.add_argument("--once", action="store_true")
    parser.add_argument("datafile")
    options = parser.parse_args()
    while True:
        serve_once(options)
        if options.once:
            return 0
        time.sleep(options.pause)


if __name__ == "__main__":
    sys.exit(main())
