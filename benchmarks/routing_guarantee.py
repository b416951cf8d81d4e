"""Do promised risks hold? Thresholds are calibrated on many draws, and the true risk of each is looked up.

The test rows stand for the world: calibration rows are drawn from them with replacement, so that a threshold's true risk is its
mean over all of them, exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..router.calibrate import grid_from, least_abstention, on_average, promise
from .routing_metrics import Floats

DELTA = 0.05
NAIVE_STEPS = 50


@dataclass(frozen=True, slots=True)
class Kept:
    """One method's promise over all draws."""

    method: str
    risk: str
    alpha: float
    calibration_rows: int
    broken: float  # the part of the draws whose true risk is above alpha
    mean_risk: float  # over draws
    kept_local: float  # mean part of the requests
    quality: float  # mean, of the whole system
    uncertifiable: float  # the part of the draws without any threshold


def verify(
    scores: Floats,
    weak: Floats,
    strong: Floats,
    grid_scores: Floats,
    rows: int,
    draws: int,
    alphas: tuple[float, float] | None = None,
) -> list[Kept]:
    """Error among the kept by plug-in and by promise, and regret on average. `grid_scores`: of rows that are in no draw."""
    wrong, lost = 1 - weak, np.maximum(strong - weak, 0)
    error_alpha, regret_alpha = alphas or (round(0.75 * float(wrong.mean()), 3), round(0.3 * float(lost.mean()), 3))
    if not (0 < error_alpha < 1 and 0 < regret_alpha < 1):
        return []  # the weak model is never wrong: nothing to promise
    grid = grid_from(grid_scores)
    dense = np.quantile(scores, np.arange(1, NAIVE_STEPS + 1) / NAIVE_STEPS)
    order = np.argsort(scores, kind="stable")
    chance = np.random.default_rng(0)
    found: dict[tuple[str, str, float], list[float | None]] = {}
    for _ in range(draws):
        some = chance.integers(0, len(scores), rows)
        s = scores[some]
        naive = _plug_in(s, wrong[some], error_alpha, dense)
        found.setdefault(("plug-in", "error among the kept", error_alpha), []).append(naive)
        exact = promise(s, wrong[some], error_alpha, DELTA, grid)
        found.setdefault(("Clopper-Pearson", "error among the kept", error_alpha), []).append(exact.threshold)
        exact = promise(s, lost[some], regret_alpha, DELTA, grid, among_kept=False)
        found.setdefault(("Clopper-Pearson", "regret", regret_alpha), []).append(exact.threshold)
        mean = on_average(s, lost[some], regret_alpha)
        found.setdefault(("conformal, on average", "regret", regret_alpha), []).append(mean.threshold)
    rows_of = {"error among the kept": wrong, "regret": lost}
    return [
        _kept(key, thresholds, scores[order], rows_of[key[1]][order], (strong - weak)[order], float(weak.mean()), rows)
        for key, thresholds in found.items()
    ]


def needed(weak: Floats, alpha: float) -> float:
    """The part that any router must give away for this error among the kept."""
    return least_abstention(float(1 - weak.mean()), alpha)


def _plug_in(scores: Floats, losses: Floats, alpha: float, grid: Floats) -> float | None:
    """What one would do without a guarantee: the largest threshold whose observed risk is within alpha."""
    keeps = scores[None] <= grid[:, None]
    observed = (keeps @ losses) / np.maximum(keeps.sum(1), 1)
    held = np.flatnonzero((observed <= alpha) & (keeps.sum(1) > 0))
    return float(grid[held[-1]]) if len(held) else None


def _kept(
    key: tuple[str, str, float],
    thresholds: list[float | None],
    scores: Floats,
    losses: Floats,
    gap: Floats,
    weak: float,
    rows: int,
) -> Kept:
    """`scores` ascending, the rest in their order."""
    method, risk, alpha = key
    n = len(scores)
    sums, won = np.concatenate([[0], np.cumsum(losses)]), np.concatenate([[0], np.cumsum(gap)])
    ends = np.array([0 if t is None else int(np.searchsorted(scores, t, "right")) for t in thresholds])
    true = sums[ends] / (np.maximum(ends, 1) if risk == "error among the kept" else n)
    quality = weak + (won[-1] - won[ends]) / n
    without = float(np.mean([t is None for t in thresholds]))
    return Kept(
        method, risk, alpha, rows, float(np.mean(true > alpha + 1e-12)), float(true.mean()), float(ends.mean() / n),
        float(quality.mean()), without,
    )  # fmt: skip
