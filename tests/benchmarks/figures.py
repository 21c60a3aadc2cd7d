"""Figures, the bars they must clear, and how both are shown."""

import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple


@dataclass(frozen=True)
class Figure:
    """One row: what was measured of whom. Without a median it was never done; `note` says how far.

    `n` counts samples; 95 % of them are at least as good as `p95`. A figure that is one measurement
    has neither p95 nor worst.
    """

    what: str
    who: str
    unit: str
    n: int = 0
    median: float | None = None
    p95: float | None = None
    worst: float | None = None
    note: str = ""

    @classmethod
    def of(
        cls, what: str, who: str, unit: str, samples: Sequence[float], note: str = ""
    ) -> "Figure":
        """The figure of at least two samples, where less is better."""
        p95 = statistics.quantiles(samples, n=20, method="inclusive")[-1]
        median = statistics.median(samples)
        return cls(what, who, unit, len(samples), median, p95, max(samples), note)

    @classmethod
    def rate(cls, what: str, who: str, samples: Sequence[float]) -> "Figure":
        """The figure of at least two samples of something a second, where more is better."""
        p95 = statistics.quantiles(samples, n=20, method="inclusive")[0]
        median = statistics.median(samples)
        return cls(what, who, "1/s", len(samples), median, p95, min(samples))

    @classmethod
    def single(
        cls, what: str, who: str, unit: str, value: float, n: int = 1, note: str = ""
    ) -> "Figure":
        """A sum or an average over `n` things."""
        return cls(what, who, unit, n, value, note=note)


class Key(NamedTuple):
    """Names a figure."""

    what: str
    who: str


class Figures:
    """All figures of a run, in the order of their making."""

    def __init__(self, figures: Iterable[Figure] = ()) -> None:
        self._figures = {Key(figure.what, figure.who): figure for figure in figures}

    def __iter__(self) -> Iterator[Figure]:
        return iter(self._figures.values())

    def add(self, figure: Figure) -> None:
        """Add one; a second of the same name takes its place."""
        self._figures[Key(figure.what, figure.who)] = figure

    def value(self, key: Key, statistic: str = "median") -> float | None:
        """A figure's `median`, `p95` or `worst`; None if there is none."""
        value: float | None = getattr(self._figures.get(key), statistic, None)
        return value

    def ratio(self, figure: Figure, ours: str) -> float | None:
        """How many times ours its median is; None for ours itself, and where there is none."""
        own = self.value(Key(figure.what, ours))
        if figure.who == ours or not own or figure.median is None:
            return None
        return figure.median / own


@dataclass(frozen=True)
class Bar:
    """What a figure must not exceed: `at_most` in its unit, or times the figure `relative_to`."""

    key: Key
    at_most: float
    statistic: str = "median"
    relative_to: Key | None = None

    def measured(self, figures: Figures) -> float | None:
        """What is held against `at_most`; None if it, or what it is held against, is missing."""
        value = figures.value(self.key, self.statistic)
        if value is None or self.relative_to is None:
            return value
        base = figures.value(self.relative_to, self.statistic)
        return value / base if base else None

    def verdict(self, figures: Figures) -> str:
        """In a word."""
        measured = self.measured(figures)
        if measured is None:
            return "not measured"
        return "met" if measured <= self.at_most else "MISSED"

    def limit(self, figures: Figures) -> str:
        """The bar in words."""
        if self.relative_to is None:
            unit = next((f.unit for f in figures if Key(f.what, f.who) == self.key), "")
            return f"at most {self.at_most:g} {unit} ({self.statistic})"
        what, who = self.relative_to
        rival = f"{who}'s" if what == self.key.what else f"that of “{what}”"
        return f"at most {self.at_most:g} times {rival} ({self.statistic})"


Measure = Callable[[int], Iterator[Figure]]


@dataclass(frozen=True)
class Benchmark:
    """One group of figures. `measure` takes the number of runs; `about` says how it measures."""

    name: str
    about: str
    ours: str
    """Who the others are compared with."""
    measure: Measure
    bars: tuple[Bar, ...] = ()


Row = tuple[str, ...]

HEADINGS: Row = ("figure", "who", "median", "p95", "worst", "unit", "n", "times ours")


def rows(figures: Figures, ours: str) -> Iterator[Row]:
    """The table of a benchmark's figures, cell by cell."""
    for figure in figures:
        ratio = figures.ratio(figure, ours)
        yield (
            f"{figure.what} ({figure.note})" if figure.note else figure.what,
            figure.who,
            "never" if figure.median is None else brief(figure.median),
            "" if figure.p95 is None else brief(figure.p95),
            "" if figure.worst is None else brief(figure.worst),
            figure.unit,
            str(figure.n) if figure.n else "",
            "" if ratio is None else brief(ratio),
        )


BAR_HEADINGS: Row = ("figure", "who", "bar", "measured", "")


def bar_rows(bars: Iterable[Bar], figures: Figures) -> Iterator[Row]:
    """The table of bars, cell by cell."""
    for bar in bars:
        measured = bar.measured(figures)
        shown = "" if measured is None else brief(measured)
        what, who = bar.key
        yield what, who, bar.limit(figures), shown, bar.verdict(figures)


def brief(value: float) -> str:
    """Three digits that count."""
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}"


def document(
    machine: dict[str, str], results: Iterable[tuple[Benchmark, Figures]]
) -> dict[str, Any]:
    """All of it for a program."""
    return {
        "machine": machine,
        "benchmarks": {
            benchmark.name: {
                "figures": [asdict(figure) for figure in figures],
                "bars": [
                    {
                        **asdict(bar),
                        "measured": bar.measured(figures),
                        "verdict": bar.verdict(figures),
                    }
                    for bar in benchmark.bars
                ],
            }
            for benchmark, figures in results
        },
    }
