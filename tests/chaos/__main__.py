"""`make chaos`: random deaths, and leases that outlive them.

    python -m tests.chaos [--minutes N] [--seed TEXT] [--clients N] [--broker NAME]

Exit status 1 if an invariant is broken; then the seed and the logs' lines are printed, and the
logs are kept.
"""

import asyncio
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median

import click
from rich.console import Console
from rich.table import Table

from schemas.exits import ExitStatus
from tests.chaos.clients import Request
from tests.chaos.faults import schedule
from tests.chaos.fleet import Fleet
from tests.chaos.verdict import Broken, Evidence, broken, ends, waits
from tests.functional.brokers import GEARMAND, OURS

KINDS = {kind.name: kind for kind in (OURS, GEARMAND)}
_LINES = 60
_SHOWN = 10


@click.command()
@click.option("--minutes", type=click.FloatRange(min=0.1), default=10.0, show_default=True)
@click.option("--seed", metavar="TEXT", help="Decides what is done to whom [default: random].")
@click.option("--clients", type=click.IntRange(min=1, max=100), default=30, show_default=True)
@click.option("--broker", type=click.Choice(list(KINDS)), default=OURS.name, show_default=True)
@click.option("--plan", "plan_only", is_flag=True, help="Print what would be done.")
@click.option("--keep", is_flag=True, help="Keep the logs.")
def main(
    minutes: float, seed: str | None, clients: int, broker: str, plan_only: bool, keep: bool
) -> None:
    """Kill, stop and cut off clients, agents and brokers, and see that no lease suffers.

    \b
    Example:
      python -m tests.chaos --minutes 1 --seed 7
    """
    seed = seed or os.urandom(4).hex()
    faults = schedule(seed, minutes * 60, clients)
    if plan_only:
        for planned in faults:
            click.echo(planned)
        return
    click.echo(f"seed {seed}: {minutes:g} minutes, {clients} clients, {broker}", err=True)
    folder = Path(tempfile.mkdtemp(prefix="testenv-chaos-"))

    async def chaos() -> tuple[Fleet, Evidence]:
        async with Fleet(KINDS[broker], seed, clients, folder) as fleet:
            await fleet.suffer(faults, minutes * 60)
            await fleet.settle()
            return fleet, Evidence.gathered(folder / "ledger", fleet.requests(), fleet.journals())

    fleet, evidence = asyncio.run(chaos())
    found = [*(Broken("fleet", what) for what in fleet.complaints), *broken(evidence)]
    console = Console(width=None if sys.stdout.isatty() else 100, highlight=False)
    console.print(_table(f"chaos, seed {seed}", _figures(fleet, evidence, found)))
    _explain(found, folder, console)
    if found or keep:
        console.print(f"seed {seed}; the logs are in {folder}", soft_wrap=True)
    else:
        shutil.rmtree(folder)
    sys.exit(bool(found))


def _figures(
    fleet: Fleet, evidence: Evidence, found: Sequence[Broken]
) -> Iterable[tuple[str, object]]:
    kinds = Counter(one.kind for one in found)
    times = waits(evidence)
    yield "leases granted", len(evidence.leases)
    for reason, number in ends(evidence).most_common():
        yield f"  ended: {reason}", number
    yield "commands begun", sum(mark.what == "begin" for mark in evidence.marks)
    yield "requests", len(evidence.requests)
    for status, number in Counter(map(_fate, evidence.requests)).most_common():
        yield f"  {status}", number
    yield "faults", sum(fleet.struck.values())
    for fault, number in fleet.struck.most_common():
        yield f"  {fault}", number
    yield "to READY from a lease's end", _spread(times.from_end)
    yield "to READY from a holder's SIGKILL", _spread(times.from_death)
    yield "to READY from its and its guard's", _spread(times.from_deaths)
    yield "requests lost", kinds.pop("request lost", 0)
    yield "double holds", kinds.pop("double hold", 0)
    for kind, number in kinds.items():
        yield f"broken: {kind}", number


def _spread(seconds: Sequence[float]) -> str:
    """The median and the longest of so many."""
    if not seconds:
        return "none"
    return f"{median(seconds):.2f} s, at most {max(seconds):.2f} s ({len(seconds)})"


def _fate(request: Request) -> str:
    """What became of it, in a few words."""
    if request.killed is not None:
        return "client killed"
    match request.exited:
        case ExitStatus.LEASE_LOST:
            return "lease lost (70)"
        case ExitStatus.LEASE_TIMEOUT:
            return "out of time (124)"
        case request.status:
            return "as its command"
    return f"exited with {request.exited}"


def _table(title: str, rows: Iterable[tuple[str, object]]) -> Table:
    table = Table("what", "number", title=title)
    for what, number in rows:
        table.add_row(what, str(number))
    return table


def _explain(found: Sequence[Broken], folder: Path, console: Console) -> None:
    for one in found[:_SHOWN]:
        console.print(f"\n{one.kind}: {one.what}", markup=False, style="bold")
        lines = [*_telling(folder, one.words)]
        for line in lines[:_LINES]:
            console.print(f"  {line}", markup=False, soft_wrap=True)


def _telling(folder: Path, words: Sequence[str]) -> Iterable[str]:
    """The lines in any log that contain one of `words`."""
    logs = [folder / "ledger", *sorted(folder.glob("*.log"))]
    logs += [folder / f"{word}.err" for word in words]
    for log in filter(Path.is_file, logs):
        for line in log.read_text(errors="replace").splitlines():
            told = log.suffix == ".err" or any(word in line for word in words)
            if told and '"alive"' not in line:
                yield f"{log.name}: {line}"


if __name__ == "__main__":
    main()
