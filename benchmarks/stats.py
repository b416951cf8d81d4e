"""The arithmetic of a load test: percentiles, arrival times, service-level objectives. Pure functions, seconds throughout."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

MIN_FOR_P99 = 100  # below this many values the 99th percentile is one outlier's


@dataclass(frozen=True, slots=True)
class Summary:
    """A distribution of seconds. All None without values; `p99` is None with fewer than 100 of them."""

    n: int
    mean: float | None
    p50: float | None
    p90: float | None
    p99: float | None


def percentile(ordered: Sequence[float], q: float) -> float:
    """The q-th percentile (0 to 100) of sorted values, interpolated linearly between the two nearest ranks."""
    position = (len(ordered) - 1) * q / 100
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    if ordered[low] == ordered[high]:
        return ordered[low]
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def summarise(values: Iterable[float | None]) -> Summary:
    """The summary of the values that are there."""
    ordered = sorted(value for value in values if value is not None)
    if not ordered:
        return Summary(0, None, None, None, None)
    p99 = percentile(ordered, 99) if len(ordered) >= MIN_FOR_P99 else None
    return Summary(len(ordered), sum(ordered) / len(ordered), percentile(ordered, 50), percentile(ordered, 90), p99)


def poisson_arrivals(rate: float, seed: int, requests: int | None = None, duration_s: float | None = None) -> list[float]:
    """When each request of a Poisson process is due, in seconds from the start; ends after `requests` or at `duration_s`."""
    source = random.Random(f"arrivals/{seed}/{rate}")
    times: list[float] = []
    now = 0.0
    while requests is None or len(times) < requests:
        now += source.expovariate(rate)
        if duration_s is not None and now >= duration_s:
            break
        times.append(now)
    return times


@dataclass(frozen=True, slots=True)
class Slo:
    """What a request must keep to count as good, in seconds; None: no limit."""

    ttft: float | None = None
    tpot: float | None = None
    e2e: float | None = None

    def met(self, ttft: float | None, tpot: float | None, e2e: float | None) -> bool:
        """Whether a finished request kept it. A missing TTFT or end-to-end time fails its limit; a missing TPOT (an answer of
        one token) has nothing to fail."""
        return (
            (self.ttft is None or (ttft is not None and ttft <= self.ttft))
            and (self.tpot is None or tpot is None or tpot <= self.tpot)
            and (self.e2e is None or (e2e is not None and e2e <= self.e2e))
        )


def parse_slo(text: str) -> Slo:
    """`ttft=0.5,tpot=0.05,e2e=10`. Raises ValueError."""
    limits: dict[str, float] = {}
    for part in text.split(","):
        name, separator, value = (word.strip() for word in part.partition("="))
        if not separator or name not in {f.name for f in fields(Slo)}:
            raise ValueError(f"{part!r} is not ttft=SECONDS, tpot=SECONDS or e2e=SECONDS")
        limits[name] = positive(value)
    return Slo(**limits)


def positive(text: str) -> float:
    """A positive finite number. Raises ValueError."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise ValueError(f"{text!r} is not a positive number")
    return value
