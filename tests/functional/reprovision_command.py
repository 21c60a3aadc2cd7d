"""An operator's command under test: it kills a host's agent, and starts it as on a new disk.

    python reprovision_command.py FOLDER HOST

What it does it writes to FOLDER/deeds, a line each. FOLDER/HOST.pid is the agent's. If there is a
file FOLDER/HOST.<word>, it behaves so: `waits` until there is HOST.go, `fails` with status 3,
`wipe` removes the folder that this file names, which is where the agent keeps its state.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

_TICK_S = 0.02


def main(folder: Path, host: str) -> int:
    """See above."""

    def path(word: str) -> Path:
        return folder / f"{host}.{word}"

    def did(what: str) -> None:
        with (folder / "deeds").open("a") as deeds:
            deeds.write(f"{what} {host}\n")

    def terminated(*_: object) -> None:
        did("terminated")
        sys.exit(1)

    signal.signal(signal.SIGTERM, terminated)
    sys.stdout.write(f"making {host} anew\n")
    sys.stdout.flush()
    did("begin")
    while path("waits").exists() and not path("go").exists():
        time.sleep(_TICK_S)
    if path("fails").exists():
        sys.stderr.write("no such image\n")
        return 3
    agent = int(path("pid").read_text())
    command = Path(f"/proc/{agent}/cmdline").read_text().split("\0")[:-1]
    os.kill(agent, signal.SIGKILL)
    if path("wipe").exists():
        shutil.rmtree(path("wipe").read_text())
    with path("log").open("a") as log:
        fresh = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    path("pid").write_text(str(fresh.pid))
    did("end")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
