"""Run a Python program, and note when it first connects, and first starts a command.

    python stamped.py FILE PROGRAM ARGUMENT...

Appends `connect <nanoseconds of the epoch>` and `start <...>` to FILE. The hooks are Python's own
audit events, so that all programs are watched in the same way, at next to no cost; forked children
keep them.
"""

import os
import runpy
import sys
import time

CONNECT = "connect"
START = "start"
_EVENTS = {"socket.connect": CONNECT, "subprocess.Popen": START}
"""The audit events."""


def main() -> None:
    """See the module."""
    file, program = sys.argv[1:3]
    stamps = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    awaited = {CONNECT, START}

    def note(event: str, _: tuple[object, ...]) -> None:
        if (name := _EVENTS.get(event)) in awaited:
            awaited.discard(name)
            os.write(stamps, f"{name} {time.time_ns()}\n".encode())

    sys.addaudithook(note)
    sys.argv = sys.argv[2:]
    runpy.run_path(program, run_name="__main__")


if __name__ == "__main__":
    main()
