"""What a report claims: named figures, one value for each repetition, and the interval that repetitions leave.

An interval over the requests of one run says nothing about the next run, whose machine, cache and order differ; so intervals
here are over runs, and with fewer than three there is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean, stdev
from typing import Literal

MIN_REPEATS = 3


@dataclass(frozen=True, slots=True)
class Figure:
    """`values`: one for each repetition, in their order."""

    name: str
    unit: str
    better: Literal["more", "less"]
    values: tuple[float, ...]

    @property
    def interval(self) -> Interval | None:
        return interval(self.values)


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and its 95% interval."""

    mean: float
    low: float
    high: float
    n: int


def interval(values: Sequence[float]) -> Interval | None:
    """Student's t over repetitions; None for fewer than three."""
    if len(values) < MIN_REPEATS:
        return None
    half = _t(len(values) - 1) * stdev(values) / sqrt(len(values))
    mean = fmean(values)
    return Interval(mean, mean - half, mean + half, len(values))


def _t(freedom: float) -> float:
    from scipy.special import stdtrit  # half a second that a report without repetitions need not wait

    return float(stdtrit(freedom, 0.975))


@dataclass(frozen=True, slots=True)
class Difference:
    """B against A, as a share of A: `low` and `high` (95%, Welch) are None where either has fewer than three repetitions."""

    name: str
    unit: str
    a: float
    b: float
    change: float | None  # (b - a) / a; None where a is 0
    low: float | None
    high: float | None
    better: Literal["more", "less"]

    @property
    def verdict(self) -> str:
        """In a word: what may be said of it."""
        if self.low is None or self.high is None:
            return "not known: fewer than 3 repetitions"
        if self.low <= 0 <= self.high:
            return "no difference seen"
        return "better" if (self.low > 0) == (self.better == "more") else "worse"


def difference(a: Figure, b: Figure) -> Difference:
    """Means side by side, with Welch's interval of the difference (Welch 1947), as runs of two machines are not paired."""
    first, second = fmean(a.values), fmean(b.values)
    change = (second - first) / first if first else None
    low = high = None
    if min(len(a.values), len(b.values)) >= MIN_REPEATS and first:
        va, vb = stdev(a.values) ** 2 / len(a.values), stdev(b.values) ** 2 / len(b.values)
        spread = va + vb
        if spread > 0:
            freedom = spread**2 / (va**2 / (len(a.values) - 1) + vb**2 / (len(b.values) - 1))
            half = _t(freedom) * sqrt(spread)
        else:
            half = 0.0
        low, high = sorted(((second - first - half) / first, (second - first + half) / first))
    return Difference(a.name, a.unit, first, second, change, low, high, a.better)
