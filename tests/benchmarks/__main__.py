"""`make bench`: what broker, client and turnover cost, beside their rivals in the same run.

    python -m tests.benchmarks [--only NAME]... [--runs N] [--json FILE] [--markdown FILE]

Prints tables on stdout, and says on stderr what it does. Exit status 1 if a bar is missed.
"""

import compileall
import json
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from tests.benchmarks.client_start import CLIENT_START
from tests.benchmarks.dispatch import DISPATCH
from tests.benchmarks.figures import (
    BAR_HEADINGS,
    HEADINGS,
    Benchmark,
    Figures,
    Row,
    bar_rows,
    document,
    rows,
)
from tests.benchmarks.fleet import FLEET
from tests.benchmarks.hand_over import HAND_OVER
from tests.benchmarks.idle import IDLE
from tests.benchmarks.machine import machine
from tests.benchmarks.markdown import page
from tests.benchmarks.round_trips import ROUND_TRIPS
from tests.benchmarks.storm import STORM
from tests.benchmarks.turnover import TURNOVER

BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        *(DISPATCH, ROUND_TRIPS, STORM, IDLE, CLIENT_START, HAND_OVER, FLEET, TURNOVER),
    )
}

ROOT = Path(__file__).parents[2]
PACKAGES = ("broker", "hosts", "schemas", "testenv")

Results = Sequence[tuple[Benchmark, Figures]]


def compile_packages() -> None:
    """As pip does on installation: a tree that was just edited would compile at every start."""
    for package in PACKAGES:
        compileall.compile_dir(ROOT / package, quiet=1)


def measure(benchmarks: Iterable[Benchmark], runs: int) -> Results:
    """Run them one after the other: the machine is to be theirs alone."""
    results = []
    for benchmark in benchmarks:
        start = time.monotonic()
        figures = Figures()
        for figure in benchmark.measure(runs):
            click.echo(f"{benchmark.name}: {figure.what}: {figure.who}", err=True)
            figures.add(figure)
        click.echo(f"{benchmark.name} took {time.monotonic() - start:.0f} s", err=True)
        results.append((benchmark, figures))
    return results


def show(results: Results, console: Console) -> None:
    """Tables for a terminal."""
    for benchmark, figures in results:
        console.print(_table(benchmark.name, HEADINGS, rows(figures, benchmark.ours)))
    bars = [row for benchmark, figures in results for row in bar_rows(benchmark.bars, figures)]
    if bars:
        console.print(_table("bars", BAR_HEADINGS, bars))


def _table(title: str, headings: Row, cells: Iterable[Row]) -> Table:
    table = Table(*headings, title=title)
    for row in cells:
        table.add_row(*row)
    return table


@click.command()
@click.option(
    "--only",
    type=click.Choice(list(BENCHMARKS)),
    multiple=True,
    help="Measure this alone; repeatable.",
)
@click.option("--runs", type=click.IntRange(min=5), default=20, show_default=True)
@click.option(
    "--json", "as_json", type=click.Path(path_type=Path), metavar="FILE", help="Write the figures."
)
@click.option(
    "--markdown", type=click.Path(path_type=Path), metavar="FILE", help="Write the tables."
)
def main(only: Sequence[str], runs: int, as_json: Path | None, markdown: Path | None) -> None:
    """Measure, and print tables. Nothing else should run on the machine meanwhile.

    \b
    Example:
      python -m tests.benchmarks --only dispatch --runs 50 --json bench.json
    """
    compile_packages()
    results = measure([BENCHMARKS[name] for name in only or BENCHMARKS], runs)
    show(results, Console(width=None if sys.stdout.isatty() else 150))
    if as_json:
        as_json.write_text(json.dumps(document(machine(), results), indent=2) + "\n")
    if markdown:
        markdown.write_text(page(machine(), results))
    verdicts = {bar.verdict(figures) for benchmark, figures in results for bar in benchmark.bars}
    sys.exit(bool(verdicts - {"met"}))


if __name__ == "__main__":
    main()
