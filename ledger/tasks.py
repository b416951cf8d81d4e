"""Cost per accepted task: all that was tried, failures and judges too, over what was accepted in the end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from .machine_cost import request_usd
from .outcomes import ANSWERS, TrainingRow

FEWEST = 10  # accepted tasks; an interval from fewer says more than is known
RESAMPLES = 2000

GROUPS: dict[str, Callable[[TrainingRow], str | None]] = {
    "job": lambda row: row.job,
    "task_class": lambda row: row.task_class,
    "key_id": lambda row: row.key_id,
    "model": lambda row: row.model_asked,
}


@dataclass(frozen=True)
class Task:
    """One request: what all its attempts cost, None where one of them has no price, and whether its answer was accepted."""

    request_id: str
    group: str
    usd: float | None
    joules: float | None
    accepted: bool


@dataclass(frozen=True)
class PerAccepted:
    """US dollars for each accepted task of a group, with a 95% interval.

    `usd` is None where nothing was accepted or anything is unpriced, of which `unpriced` counts the tasks; `low` and `high` are
    None, and `note` says so, where the samples are too few.
    """

    group: str
    tasks: int
    accepted: int
    unpriced: int
    usd: float | None
    low: float | None = None
    high: float | None = None
    joules: float | None = None
    note: str = ""


def task(row: TrainingRow, usd_per_hour: float | None, group: str) -> Task:
    """A request with its cost. A local attempt costs its device time, a supplier's its price; what has neither is unpriced.

    It was accepted if people, or else the checks, said so of the accepted attempt; where nobody judged, the client took it.
    """
    costs = [_usd(attempt, usd_per_hour) for attempt in row.attempts]
    energy = [attempt["energy_joules"] for attempt in row.attempts]
    taken = next((a["id"] for a in row.attempts if a["accepted"] and a["role"] in ANSWERS), None)
    said = row.accepted(taken) if taken else False
    return Task(
        row.request_id,
        group,
        None if None in costs else float(sum(cost for cost in costs if cost is not None)),
        None if None in energy or not energy else float(sum(energy)),
        bool(taken) and said is not False,
    )


def is_task(row: TrainingRow) -> bool:
    """Whether words were asked for: vectors are no tasks, and nobody accepts them."""
    return not row.attempts or any(a["role"] != "vector" for a in row.attempts)


def _usd(attempt: dict[str, object], usd_per_hour: float | None) -> float | None:
    """A supplier's price; else device time at the C_h given, or, where none is, at the one of its day."""
    retail, seconds, internal = attempt["retail_usd"], attempt["device_seconds"], attempt["internal_usd"]
    if isinstance(retail, float):
        return retail
    if isinstance(seconds, float) and usd_per_hour is not None:
        return request_usd(seconds, usd_per_hour)
    return internal if isinstance(internal, float) else None


def per_accepted(tasks: Iterable[Task], seed: int = 0) -> list[PerAccepted]:
    """Each group's cost per accepted task, by name: the mean of a cost-of-pass (Erol et al., arXiv 2504.13359), measured as
    the sum of what all tasks cost over the number accepted, with a percentile bootstrap over tasks (Efron 1979)."""
    groups: dict[str, list[Task]] = {}
    for item in tasks:
        groups.setdefault(item.group, []).append(item)
    return [_group(name, found, seed) for name, found in sorted(groups.items())]


def _group(name: str, tasks: Sequence[Task], seed: int) -> PerAccepted:
    accepted = sum(item.accepted for item in tasks)
    unpriced = sum(item.usd is None for item in tasks)
    joules = _ratio(tasks, accepted, lambda item: item.joules)
    usd = _ratio(tasks, accepted, lambda item: item.usd)
    if usd is None:
        return PerAccepted(name, len(tasks), accepted, unpriced, None, joules=joules, note="unpriced" if unpriced else "")
    if accepted < FEWEST:
        return PerAccepted(name, len(tasks), accepted, 0, usd, joules=joules, note="too few samples")
    low, high = _interval(np.array([item.usd for item in tasks], float), np.array([item.accepted for item in tasks]), seed)
    return PerAccepted(name, len(tasks), accepted, 0, usd, low, high, joules)


def _ratio(tasks: Sequence[Task], accepted: int, of: Callable[[Task], float | None]) -> float | None:
    values = [of(item) for item in tasks]
    return sum(v for v in values if v is not None) / accepted if accepted and None not in values else None


def _interval(usd: np.ndarray, accepted: np.ndarray, seed: int) -> tuple[float, float]:
    rng, ratios = np.random.default_rng(seed), []
    for _ in range(RESAMPLES):
        drawn = rng.integers(0, len(usd), len(usd))
        if n := int(accepted[drawn].sum()):
            ratios.append(float(usd[drawn].sum()) / n)
    low, high = np.percentile(ratios, (2.5, 97.5))
    return float(low), float(high)
