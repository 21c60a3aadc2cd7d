"""docs/performance.md, from a run's figures."""

from collections.abc import Iterable, Mapping, Sequence

from tests.benchmarks.figures import (
    BAR_HEADINGS,
    HEADINGS,
    Benchmark,
    Figures,
    Row,
    bar_rows,
    rows,
)

_INTRODUCTION = """\
# Performance

Made by `make bench`, which measures every figure and its rivals in one run: our broker, gear's own
geard, and C gearmand as Debian ships it (`gearmand`) and with good flags (`gearmand-tuned`:
`--job-retries=1 --backlog=1024 --worker-wakeup=2 --job-handle-prefix`). Do not edit; run it again.
"""


def page(machine: Mapping[str, str], results: Sequence[tuple[Benchmark, Figures]]) -> str:
    """The whole page."""
    facts = "; ".join(f"{key}: {value}" for key, value in machine.items())
    bars = [row for benchmark, figures in results for row in bar_rows(benchmark.bars, figures)]
    parts = [_INTRODUCTION, f"{facts}.\n", "## What must be reached\n", _table(BAR_HEADINGS, bars)]
    for benchmark, figures in results:
        table = _table(HEADINGS, rows(figures, benchmark.ours))
        parts += [f"## {benchmark.name}\n", f"{benchmark.about}\n", table]
    return "\n".join(parts)


def _table(headings: Row, cells: Iterable[Row]) -> str:
    lines = [headings, tuple("---" for _ in headings), *cells]
    return "".join("| " + " | ".join(_escaped(cell) for cell in line) + " |\n" for line in lines)


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|")
