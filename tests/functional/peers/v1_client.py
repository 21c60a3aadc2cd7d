"""A client as toci's was in 2014, on gear's own Client and Worker: a real v1 peer for our agent.

    python v1_client.py [-b HOST:PORT] [-n ID] [-t SECONDS] [-d] -- COMMAND...

Two connections: a worker for `callback_<ID>`, a client for `lockenv`. The callback's arguments go
into a temporary file, $TE_DATAFILE, whatever they are. When lockenv ends before the command, the
client kills its own process group.
"""

import argparse
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import uuid
from pathlib import Path

import gear


class LockClient(gear.Client):  # type: ignore[misc]  # gear has no type hints
    """Tells when the one job that it submits has ended."""

    def __init__(self) -> None:
        super().__init__()
        self.over = threading.Event()

    def handleWorkComplete(self, packet: gear.Packet) -> None:  # noqa: N802 - gear's name
        super().handleWorkComplete(packet)
        self.over.set()

    def handleWorkFail(self, packet: gear.Packet) -> None:  # noqa: N802 - gear's name
        super().handleWorkFail(packet)
        self.over.set()

    def handleWorkException(self, packet: gear.Packet) -> None:  # noqa: N802 - gear's name
        super().handleWorkException(packet)
        self.over.set()


class CallbackThread(threading.Thread):
    """Waits for the environment, and runs the command in it."""

    def __init__(self, brokers: list[tuple[str, int]], jobnum: str, command: list[str]) -> None:
        super().__init__(daemon=True)
        self.status: int | None = None
        self._command = command
        self._worker = gear.Worker(f"testenv-client-{jobnum}")
        for host, port in brokers:
            self._worker.addServer(host, port)
        self._worker.waitForServer()
        self._worker.registerFunction(f"callback_{jobnum}")

    def run(self) -> None:
        job = self._worker.getJob()
        file, name = tempfile.mkstemp(prefix="te_datafile_")
        try:
            os.write(file, job.arguments)
            os.close(file)
            environment = {**os.environ, "TE_DATAFILE": name}
            self.status = subprocess.call(self._command, env=environment)
        finally:
            Path(name).unlink()
        job.sendWorkComplete(b"")


def parse_brokers(text: str) -> list[tuple[str, int]]:
    """`host[:port],...`"""
    parts = (part.partition(":") for part in text.split(","))
    return [(host, int(port or 4730)) for host, _, port in parts]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-b", "--geard", default="127.0.0.1:4730")
    parser.add_argument("-n", "--jobnum", default=uuid.uuid4().hex)
    parser.add_argument("-t", "--timeout", default="10800")
    parser.add_argument("-d", "--debug", action="store_true")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    if options.debug:
        logging.basicConfig(level=logging.DEBUG)
    brokers = parse_brokers(options.geard)

    callback = CallbackThread(brokers, options.jobnum, options.command)
    callback.start()
    client = LockClient()
    for host, port in brokers:
        client.addServer(host, port)
    client.waitForServer()
    arguments = {
        "callback_name": f"callback_{options.jobnum}",
        "timeout": options.timeout,
        "job_identifier": options.jobnum,
        "compute-num": "1",
    }
    client.submitJob(gear.Job("lockenv", json.dumps(arguments).encode()))
    client.over.wait()
    callback.join(timeout=0.2)
    if callback.status is None:
        os.killpg(os.getpgrp(), signal.SIGTERM)
        return 1
    return callback.status


if __name__ == "__main__":
    sys.exit(main())
