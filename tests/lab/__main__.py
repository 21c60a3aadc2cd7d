"""`python -m tests.lab`: the lab for people, scripts and test suites. Needs root."""

from __future__ import annotations

import signal
import sys
import tempfile
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tests.lab import Lab, LabError, LabProcess, ensure_image
from tests.lab.namespace import enter, find_holder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

FORWARDED = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
WORKDIR = click.Path(file_okay=False, path_type=Path)


@click.group()
def main() -> None:
    """Real test-environment hosts on this machine, in namespaces."""


@main.command()
@click.option("--hosts", default="te1,te2", show_default=True, help="Names, comma-separated.")
@click.option("--workdir", type=WORKDIR, help="An empty directory [default: a temporary one].")
def up(hosts: str, workdir: Path | None) -> None:
    """Hold a lab until Ctrl-C or SIGTERM.

    Prints one line "NAME ADDRESS" for each host, then "workdir DIRECTORY", then "ready".
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with _temporary_unless(workdir) as directory, Lab(directory) as lab:
        for name in hosts.split(","):
            click.echo(f"{name} {lab.add_host(name).address}")
        click.echo(f"workdir {directory}\nready")
        sys.stdout.flush()
        with suppress(KeyboardInterrupt):
            signal.pause()


@main.command(context_settings={"ignore_unknown_options": True})
@click.option("--host", required=True, help="The host's name.")
@click.argument("command", nargs=-1, required=True)
def run(host: str, command: tuple[str, ...]) -> None:
    """Run COMMAND in a lab of one host; exit with its status.

    It finds the host's name at $TESTENV_LAB_HOST.
    """
    with _temporary_unless(None) as directory, Lab(directory) as lab:
        inside = ("env", f"TESTENV_LAB_HOST={host}", *command)
        status = _relay(lab.add_host(host).pid, inside)
    sys.exit(status)


@main.command("exec", context_settings={"ignore_unknown_options": True})
@click.option("--lab", "workdir", type=WORKDIR, required=True, help="A running lab's directory.")
@click.argument("name")
@click.argument("command", nargs=-1, required=True)
def execute(workdir: Path, name: str, command: tuple[str, ...]) -> None:
    """Run COMMAND in host NAME, or in "ci", of a running lab; exit with its status."""
    pid = find_holder(workdir.resolve() / f"{name}.pid")
    if pid is None:
        raise LabError(f"no {name} is running in a lab at {workdir}")
    sys.exit(_relay(pid, command))


@main.command()
def image() -> None:
    """Build the guest image unless it is cached, and print its files."""
    built = ensure_image()
    for path in (built.kernel, built.seed_initrd, built.node_initrd):
        click.echo(path)


@contextmanager
def _temporary_unless(workdir: Path | None) -> Iterator[Path]:
    with ExitStack() as stack:
        temporary = tempfile.TemporaryDirectory
        yield workdir or Path(stack.enter_context(temporary(prefix="testenv-lab-")))


def _relay(pid: int, command: tuple[str, ...]) -> int:
    """Run the command in the namespaces that `pid` holds; return its status as a shell gives it.

    Ctrl-C reaches the command through the terminal, so this process and nsenter ignore it.
    Other signals are passed on.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    process = LabProcess(enter(pid, ["env", "--default-signal=INT", *command]))

    def forward(number: int, _frame: FrameType | None) -> None:
        process.send_signal(number)

    for number in FORWARDED:
        signal.signal(number, forward)
    status = process.wait()
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    try:
        main()
    except LabError as exc:
        sys.exit(f"lab: {exc}")
