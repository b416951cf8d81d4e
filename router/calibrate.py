"""Thresholds with a guarantee, and an alarm for when it no longer holds. Pure functions over numpy arrays.

A request is kept local when its score (the predicted gap) is at most the threshold. Outcomes are losses of keeping it, 0..1:
the local answer is wrong, or (regret) it is wrong and the strong one's right. The calibration rows must be drawn like the
requests to come, and must not be those that the predictor learned from.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
GRID = 10  # thresholds that a promise chooses among; each costs a part of the confidence
EDGES = (0.02, 0.05, 0.1, 0.2, 0.4)  # what the drift monitor bets on: this much of the way from the promised risk to 1


@dataclass(frozen=True, slots=True)
class Calibrated:
    """A threshold, and what is known of it. `threshold` None: uncertifiable, keep nothing; `why` says so in words."""

    threshold: float | None
    alpha: float
    kept: float  # the part of the calibration rows that is kept
    bound: float  # on the risk, by the method's own meaning; the observed risk where it bounds an expectation
    rows: int
    why: str = ""

    @property
    def certified(self) -> bool:
        """Whether there is a threshold."""
        return self.threshold is not None


def regret(weak: Floats, strong: Floats) -> Floats:
    """What keeping each request loses, 0..1: the local answer fails where the strong one does not."""
    return np.maximum(strong - weak, 0)


def least_abstention(mu: float, alpha: float) -> float:
    """The part of the requests that any router must give away for an error of at most alpha among those kept, when the local
    model alone errs on mu: even a perfect one keeps all right answers, (1 - mu), as at least 1 - alpha of what it keeps."""
    return max(0.0, (mu - alpha) / (1 - alpha)) if alpha < 1 else 0.0


def rows_needed(alpha: float, delta: float, grid: int = GRID) -> int:
    """The fewest kept calibration rows that can carry a promise: none of them fails, and (1 - alpha)^n <= delta / grid."""
    return math.ceil(math.log(delta / grid) / math.log1p(-alpha))


def upper_bound(failures: Floats, rows: Floats, delta: float) -> Floats:
    """Clopper and Pearson's (1934): the largest risk under which so few failures among so many rows still have probability
    delta. 1 without rows. Fractional failures are rounded up, which is on the safe side."""
    from scipy.special import betaincinv

    k = np.minimum(np.ceil(failures - 1e-9), rows)
    return np.where(k < rows, betaincinv(k + 1, np.maximum(rows - k, 1e-9), 1 - delta), 1.0)


def grid_from(scores: Floats, grid: int = GRID) -> Floats:
    """Thresholds that keep about 1/grid, 2/grid, ... all of such requests. To be made of other rows than the calibration's."""
    return np.unique(np.quantile(scores, np.arange(1, grid + 1) / grid))


def on_average(scores: Floats, losses: Floats, alpha: float) -> Calibrated:
    """The largest threshold whose expected loss over calibrations and requests is at most alpha: conformal risk control
    (Angelopoulos et al. 2022, arXiv:2208.02814, theorem 1), the loss of a request given away being 0. All [N]."""
    scores, losses, n = _checked(scores, losses, alpha)
    order = np.argsort(scores, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))  # equal scores stay together
    inflated = (np.cumsum(losses[order])[ends] + 1) / (n + 1)
    held = np.flatnonzero(inflated <= alpha)
    if not len(held):
        why = f"uncertifiable: {n} rows are too few for a mean loss of {alpha:g}" if 1 / (n + 1) > alpha else (
            f"uncertifiable: the requests with the lowest score already lose more than {alpha:g}")  # fmt: skip
        return Calibrated(None, alpha, 0.0, 0.0, n, why)
    last = ends[held[-1]]
    return Calibrated(float(scores[order][last]), alpha, float(last + 1) / n, float(losses[order][: last + 1].sum() / n), n)


def promise(
    scores: Floats, losses: Floats, alpha: float, delta: float, thresholds: Floats, *, among_kept: bool = True
) -> Calibrated:
    """The threshold that keeps most and whose true risk is at most alpha with probability 1 - delta over the calibration rows:
    Clopper-Pearson bounds at all thresholds at once (Bonferroni). The thresholds must not be made of these rows.

    The risk is the mean loss among the kept (`among_kept`), or of all requests with those given away losing nothing."""
    scores, losses, n = _checked(scores, losses, alpha)
    if not 0 < delta < 1:
        raise ValueError("delta lies between 0 and 1")
    thresholds = np.sort(np.asarray(thresholds, np.float64))
    keeps = scores[None] <= thresholds[:, None]  # [T, N]
    kept, lost = keeps.sum(1).astype(np.float64), keeps @ losses
    bounds = upper_bound(lost, kept if among_kept else np.full(len(kept), float(n)), delta / max(len(thresholds), 1))
    held = np.flatnonzero((bounds <= alpha) & (kept > 0))
    if not len(held):
        return Calibrated(None, alpha, 0.0, float(bounds.min(initial=1.0)), n, _why(losses, alpha, delta, len(thresholds)))
    best = held[-1]
    return Calibrated(float(thresholds[best]), alpha, float(kept[best] / n), float(bounds[best]), n)


def _why(losses: Floats, alpha: float, delta: float, grid: int) -> str:
    needed, mu = rows_needed(alpha, delta, grid), float(losses.mean())
    if len(losses) < needed:
        return f"uncertifiable: {len(losses)} calibration rows; for {alpha:g} at {1 - delta:.0%} at least {needed} must be kept"
    return (
        f"uncertifiable: no threshold's bound is within {alpha:g} (without routing the risk is {mu:.3f}; "
        f"at least {least_abstention(mu, alpha):.0%} would have to be given away)"
    )


def _checked(scores: Floats, losses: Floats, alpha: float) -> tuple[Floats, Floats, int]:
    scores, losses = np.asarray(scores, np.float64), np.asarray(losses, np.float64)
    if scores.shape != losses.shape or scores.ndim != 1 or not len(scores):
        raise ValueError("scores and losses are two lists of the same length, not empty")
    if not (np.isfinite(scores).all() and ((losses >= 0) & (losses <= 1)).all() and 0 < alpha < 1):
        raise ValueError("scores are finite, losses from 0 to 1, and alpha lies between")
    return scores, losses, len(scores)


@dataclass(frozen=True, slots=True)
class Drift:
    """Audits of kept answers, chosen by chance, against the promised risk: an e-process. While the risk is at most alpha, the
    probability that `alarm` is ever true, however long one looks, is at most delta (Ville's inequality).

    Each edge is a bettor who multiplies by the likelihood ratio of a certain greater risk q, q/alpha for a loss of 1 and
    (1-q)/(1-alpha) for none, straight between: at most 1 on average under the promise. The wealth is their mean."""

    alpha: float
    delta: float
    audits: int = 0
    log_wealth: tuple[float, ...] = (0.0,) * len(EDGES)

    @property
    def evidence(self) -> float:
        """Mean wealth; 1 at the start."""
        top = max(self.log_wealth)
        return math.exp(min(top, 700)) * sum(math.exp(x - top) for x in self.log_wealth) / len(self.log_wealth)

    @property
    def alarm(self) -> bool:
        """Whether the threshold has to be calibrated again."""
        return self.evidence >= 1 / self.delta

    def after(self, loss: float) -> Drift:
        """With one more audited answer, whose loss is 0..1."""
        if not 0 <= loss <= 1:
            raise ValueError("a loss is from 0 to 1")
        grown = []
        for edge, wealth in zip(EDGES, self.log_wealth, strict=True):
            q = self.alpha + edge * (1 - self.alpha)
            grown.append(wealth + math.log(1 + (loss - self.alpha) * (q - self.alpha) / (self.alpha * (1 - self.alpha))))
        return replace(self, audits=self.audits + 1, log_wealth=tuple(grown))


def alarm_at(losses: Iterable[float], alpha: float, delta: float) -> int | None:
    """After how many audits the alarm goes off; None: not with these."""
    state = Drift(alpha, delta)
    for loss in losses:
        state = state.after(loss)
        if state.alarm:
            return state.audits
    return None
