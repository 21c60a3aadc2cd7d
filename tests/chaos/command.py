"""What clients run: hold the environment's file, and tell the ledger when.

    command.py FOLDER REQUEST SECONDS STATUS MANNER

The ledger has one JSON object a line. The lock is an flock(2): it is gone when the last process
that has inherited it is dead, and no moment sooner. Nothing is imported that takes long.
"""

import fcntl
import json
import os
import signal
import sys
import time

ORPHAN_S = "60"
TICK_S = 0.2
DOUBLE = 99
"""The exit status of a command that found its environment in use."""


def main() -> None:
    """See the module."""
    folder, request, seconds, status, manner = sys.argv[1:]
    with open(os.environ["TE_DATAFILE"]) as file:  # noqa: PTH123 - pathlib takes 10 ms
        lease = json.load(file)["testenv"]["lease"]
    place = lease["environment"].replace("/", "-")
    lock = os.open(f"{folder}/{place}.lock", os.O_RDWR | os.O_CREAT)
    ledger = os.open(f"{folder}/ledger", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def tell(what: str) -> None:
        record = {
            "what": what,
            "boottime": time.clock_gettime(time.CLOCK_BOOTTIME),
            "at": time.time(),
            "environment": lease["environment"],
            "generation": lease["generation"],
            "lease": lease["id"],
            "request": request,
            "pid": os.getpid(),
        }
        os.write(ledger, json.dumps(record).encode() + b"\n")

    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        tell("double")
        os._exit(DOUBLE)
    if manner == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    tell("begin")
    if manner == "family" and os.fork() == 0:
        seconds, status = ORPHAN_S, "0"  # outlives us unless it is ended; with our lock
        ending = "alive"
    else:
        ending = "end"
    over = time.monotonic() + float(seconds)
    while (left := over - time.monotonic()) > 0:
        time.sleep(min(left, TICK_S))
        tell("alive")
    tell(ending)
    os._exit(int(status))


if __name__ == "__main__":
    main()
