"""The command under test: it holds its environment, and leaves signs of life.

    python lease_command.py FOLDER SECONDS STATUS [SETSID]

It runs until FOLDER/release is there, or for SECONDS, and exits with STATUS. It and a child, which
leaves its session with SETSID, write a sign to FOLDER/signs every few milliseconds. Both hold a
lock on the environment, a file beside FOLDER: whoever finds it taken writes the sign `overlap`.
"""

import fcntl
import json
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType

_TICK_S = 0.02


def main(folder: Path, seconds: float, status: int, *, setsid: bool) -> int:
    """See above."""
    lease = json.loads(Path(os.environ["TE_DATAFILE"]).read_bytes())["testenv"]["lease"]
    signs = os.open(folder / "signs", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def sign(what: str) -> None:
        line = [what, lease["id"], lease["generation"], os.getpid(), time.time()]
        os.write(signs, json.dumps(line).encode() + b"\n")

    def told_to_end(number: int, _: FrameType | None) -> None:
        sign("end")
        os._exit(128 + number)

    environment = folder.parent / f"{lease['environment'].replace('/', '_')}.lock"
    lock = os.open(environment, os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sign("overlap")
        return 99
    signal.signal(signal.SIGTERM, told_to_end)
    sign("begin")
    if os.fork() == 0:
        if setsid:
            os.setsid()
        sign("child")
    deadline = time.monotonic() + seconds
    while not (folder / "release").exists() and time.monotonic() < deadline:
        sign("alive")
        time.sleep(_TICK_S)
    sign("end")
    return status


if __name__ == "__main__":
    os._exit(
        main(Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), setsid=len(sys.argv) > 4)
    )
