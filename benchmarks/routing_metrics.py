"""What a router is worth: cost-quality curve, APGR and CPT (RouteLLM, Ong et al. 2024, arXiv:2406.18665), pure functions.

A router is a score per prompt, the higher the sooner the strong model is asked. The curve is the quality reached when the
fraction c of prompts with the highest scores goes to the strong model. Equal scores are asked in random order: the curve is
straight across them, which is the expectation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Curve:
    """Quality against the fraction of calls to the strong model, both [P], from 0 to 1; straight between the points."""

    calls: Floats
    quality: Floats

    @property
    def weak(self) -> float:
        """Without the strong model."""
        return float(self.quality[0])

    @property
    def strong(self) -> float:
        """With it alone."""
        return float(self.quality[-1])


def curve(scores: Floats, weak: Floats, strong: Floats) -> Curve:
    """The exact one. Scores, and both models' outcomes, all [N]."""
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True)) + 1  # after each block of equal scores
    won = np.concatenate([[0.0], np.cumsum((strong - weak)[order])[ends - 1]])
    return Curve(np.concatenate([[0], ends]) / len(scores), weak.mean() + won / len(scores))


def ten_points(whole: Curve) -> Curve:
    """RouteLLM's own: quality at each tenth of calls, straight between."""
    calls = np.linspace(0, 1, 11)
    return Curve(calls, np.interp(calls, whole.calls, whole.quality))


def apgr(found: Curve) -> float | None:
    """Average performance gap recovered: the area between the curve and the weak model's quality over that of the strong one's;
    random order gives 0.5. None when the strong model is not better: there is no gap."""
    gap = found.strong - found.weak
    if gap <= 1e-12:
        return None
    area = float(np.sum(np.diff(found.calls) * (found.quality[1:] + found.quality[:-1])) / 2)
    return (area - found.weak) / gap


def cpt(found: Curve, part: float) -> float | None:
    """The fraction of calls at which the curve first reaches that part of the gap; None without a gap."""
    gap = found.strong - found.weak
    if gap <= 1e-12:
        return None
    target = found.weak + part * gap
    at = int(np.argmax(found.quality >= target - 1e-12))
    if at == 0:
        return 0.0
    (c0, c1), (q0, q1) = found.calls[at - 1 : at + 1], found.quality[at - 1 : at + 1]
    return float(c0 + (c1 - c0) * (target - q0) / (q1 - q0))


def quality_at(found: Curve, calls: float) -> float:
    """Quality when that fraction of calls goes to the strong model."""
    return float(np.interp(calls, found.calls, found.quality))


@dataclass(frozen=True, slots=True)
class Spread:
    """A number over several splits."""

    mean: float
    low: float
    high: float
    n: int


def spread(values: list[float | None]) -> Spread | None:
    """None where no split gave one."""
    found = [value for value in values if value is not None and np.isfinite(value)]
    return Spread(float(np.mean(found)), min(found), max(found), len(found)) if found else None
