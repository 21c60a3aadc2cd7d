"""A machine made of namespaces: mount, network, UTS and PID, all unnamed.

PID 1 in there is a ``cat`` that reads a pipe whose only writer is the lab's owner. When the owner
closes it, or dies in whatever way, ``cat`` ends and the kernel kills all that runs inside.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.lab.errors import LabError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MARKER = "testenv-lab-init"
START_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 20.0

# Orphans end as children of PID 1, and `cat` waits for none: ignoring SIGCHLD (which survives
# exec) makes the kernel reap them. Else libvirt would see a killed QEMU live on as a zombie.
# A fresh sysfs shows this network namespace's NICs, and hides the machine's cgroups from libvirt.
INIT = """
mount -t tmpfs -o mode=755 tmpfs /run
mount -t sysfs sysfs /sys
mkdir /run/lock
hostname "$1"
ip link set lo up
echo up
exec env --ignore-signal=CHLD cat >/dev/null
"""


class LabProcess(subprocess.Popen[str]):
    """A process inside a namespace. Signals reach the command itself, not its nsenter.

    The exit status is the command's (nsenter dies of the same signal).
    """

    def send_signal(self, sig: int) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        while self.poll() is None:
            if pids := children.read_text().split():
                with suppress(ProcessLookupError):
                    os.kill(int(pids[0]), sig)
                return
            if time.monotonic() > deadline:
                raise LabError(f"nsenter has not started its command: {self.args!r}")
            time.sleep(0.005)


class Namespace:
    """One such machine. `pid_file` is where other processes find it (see `enter`)."""

    def __init__(self, name: str, pid_file: Path) -> None:
        self.name = name
        self._pid_file = pid_file
        self._holder: subprocess.Popen[bytes] | None = None
        self._processes: list[LabProcess] = []

    @property
    def pid(self) -> int:
        """The process that holds the namespaces. Raises LabError when there is none."""
        if self._holder is None:
            raise LabError(f"{self.name} is not running")
        return self._holder.pid

    @property
    def running(self) -> bool:
        return self._holder is not None

    def path(self, inside: str | Path) -> Path:
        """Where this process finds the file that is at the absolute path `inside`."""
        return Path(f"/proc/{self.pid}/root") / Path(inside).relative_to("/")

    def start(self) -> None:
        """Make the namespaces. Raises LabError within START_TIMEOUT_S."""
        if self.running:
            raise LabError(f"{self.name} is already running")
        holder = subprocess.Popen(
            [
                *("unshare", "--mount", "--net", "--uts", "--pid", "--fork", "--kill-child"),
                *("--mount-proc", "sh", "-e", "-c", INIT, MARKER, self.name, str(self._pid_file)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._holder = holder
        assert holder.stdout
        ready, _, _ = select.select([holder.stdout], [], [], START_TIMEOUT_S)
        said = holder.stdout.readline() if ready else b"no answer"
        if said != b"up\n":
            self.stop()
            raise LabError(f"{self.name}: can't make namespaces (root?): {said.decode().strip()}")
        self._pid_file.write_text(f"{holder.pid}\n")

    def stop(self) -> None:
        """Kill everything inside at once, and return when it is dead. Harmless when stopped."""
        if self._holder is None:
            return
        holder, self._holder = self._holder, None
        self._pid_file.unlink(missing_ok=True)
        try:
            # Closes the pipe, then waits: unshare ends after its child, which the kernel holds
            # until the last process of its PID namespace is gone.
            holder.communicate(timeout=STOP_TIMEOUT_S)
            for process in self._processes:
                process.wait(timeout=STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired as exc:
            holder.kill()
            raise LabError(f"{self.name}: processes survived the power cut") from exc
        self._processes.clear()

    def command(self, argv: Sequence[str | Path], cwd: Path | None = None) -> list[str]:
        """The argument list that runs `argv` inside, for any way of spawning a process."""
        return enter(self.pid, argv, cwd)

    def popen(
        self, argv: Sequence[str | Path], *, cwd: Path | None = None, **options: Any
    ) -> LabProcess:
        """Start a command inside; `options` are Popen's, and text mode is on."""
        process = LabProcess(self.command(argv, cwd), text=True, **options)
        self._processes = [p for p in self._processes if p.returncode is None] + [process]
        return process

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        check: bool = True,
        timeout: float = 60,
        stdin: str = "",
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside to its end. `env`, if given, is the whole environment.

        Raises LabError when it fails (unless `check` is off) or takes longer than `timeout` s.
        """
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        shown = " ".join(map(str, argv))
        with self.popen(argv, cwd=cwd, env=env, **pipes) as process:
            try:
                out, err = process.communicate(stdin, timeout=timeout)
            except subprocess.TimeoutExpired as exc:
                process.kill()
                raise LabError(f"{self.name}: `{shown}` took longer than {timeout:g} s") from exc
        if check and process.returncode:
            raise LabError(f"{self.name}: `{shown}` exited with {process.returncode}\n{out}{err}")
        return subprocess.CompletedProcess(shown, process.returncode, out, err)


def enter(pid: int, argv: Sequence[str | Path], cwd: Path | None = None) -> list[str]:
    """The argument list that runs `argv` in the namespaces that process `pid` holds."""
    namespaces = {"net": "net", "mount": "mnt", "uts": "uts", "pid": "pid_for_children"}
    return [
        "nsenter",
        *(f"--{option}=/proc/{pid}/ns/{file}" for option, file in namespaces.items()),
        f"--wdns={cwd or Path.cwd()}",
        "--",
        *map(str, argv),
    ]


def find_holder(pid_file: Path) -> int | None:
    """The live process that `pid_file` names, or None."""
    try:
        pid = int(pid_file.read_text())
        argv = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    except (FileNotFoundError, ProcessLookupError, ValueError):
        return None
    return pid if MARKER in argv and str(pid_file) in argv else None


def kill_leftover(pid_file: Path) -> None:
    """Kill the namespaces that an earlier lab left alive behind `pid_file`, if any."""
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while pid := find_holder(pid_file):
        os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise LabError(f"process {pid} of an earlier lab does not die")
        time.sleep(0.02)
    pid_file.unlink(missing_ok=True)
