"""Predicts how well the local and the strong model will do on a request, and so the gap that asking the strong one would win.

Kernel ridge regression (equally a Gaussian process's mean; Rasmussen and Williams 2006, chapter 2) on both models' outcomes: a
request's forecast is the prior plus what the training requests that resemble it say. Weights of the kernel's parts and the
noise are chosen by the closed-form leave-one-out error on the training rows alone. Deciding is numpy; fitting needs scipy,
which is imported only then. A request that resembles nothing known gets its class's prior.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .features import FEATURES_VERSION, Task, task_class
from .similarity import KINDS, SIGNAL, Attempt, Encoding, Matrix, Points, encode, from_cosines, grams, learn_encoding, near

Floats = NDArray[np.float64]
MIN_ROWS = 20
MAX_ROWS = 8000  # training rows that are kept: memory and a decision's time grow with them
TRIAL_ROWS = 1000  # rows on which weights and noise are chosen
WEIGHTS = (0.2, 3.0)
NOISES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
UNFAMILIAR = 0.005  # the part of the training prompts themselves that would count as unfamiliar
PRIOR_ROWS = 20  # how many rows of its own a class needs to weigh as much as the mean of all
BLOCK = 512


class Embeds(Protocol):
    """What makes vectors of prompts."""

    def embed(self, texts: Sequence[str]) -> Matrix:
        """[N, dim], of length 1."""
        ...


@dataclass(frozen=True, slots=True)
class Examples:
    """Requests whose outcomes are known."""

    tasks: Sequence[Task]
    local: Floats  # [N], 0..1
    strong: Floats  # [N], 0..1
    attempts: Sequence[Attempt] | None = None  # the local answers; None: learn to decide before there is one
    vectors: Matrix | None = None  # [N, dim] of the prompts


@dataclass(frozen=True, slots=True)
class Prediction:
    """What to expect. `familiar`: the likeness to the nearest training prompt (or, without vectors, the part of its terms that
    is known); `fell_back`: too small, the class's prior stands in."""

    local: float
    strong: float
    familiar: float
    fell_back: bool

    @property
    def gap(self) -> float:
        """What the strong model is expected to win, -1..1."""
        return self.strong - self.local


@dataclass(frozen=True, slots=True)
class Predictor:
    """A fitted one: data alone (see predictor_file.py). Outcomes are pairs (local, strong)."""

    encoding: Encoding
    weights: dict[str, float]  # of the kernel's parts
    mean: Floats  # [2]
    alpha: Matrix  # [N, 2], each training row's say
    term_weights: Matrix  # [V, 2]: the terms' part, summed over the rows
    points: Points  # the training rows; their terms are left out
    groups: dict[str, Floats]  # the group's part, [2] each
    priors: dict[str, Floats]  # [2] by group and by task class
    least_familiar: float
    provenance: dict[str, Any]

    @property
    def reads_answers(self) -> bool:
        """Whether it decides after a local attempt."""
        return self.encoding.answer is not None

    @property
    def signals(self) -> frozenset[str]:
        """The signals of an answer that it learned from, beside its text."""
        scale = self.encoding.answer
        if scale is None:
            return frozenset()
        told = zip(scale.names, np.isfinite(scale.spread), strict=True)
        return frozenset(name.removeprefix(SIGNAL) for name, varies in told if varies and name.startswith(SIGNAL))

    @property
    def reads_vectors(self) -> bool:
        """Whether it wants the prompt's vector."""
        return self.points.vector is not None

    def predict(self, task: Task, attempt: Attempt | None = None, vector: Matrix | None = None) -> Prediction:
        """For one request; `vector` is [dim]. Raises ValueError without what it reads."""
        attempts, vectors = None if attempt is None else [attempt], None if vector is None else vector[None]
        found, familiar = self.predict_many([task], attempts, vectors)
        return Prediction(float(found[0, 0]), float(found[0, 1]), float(familiar[0]), bool(familiar[0] < self.least_familiar))

    def predict_many(
        self, tasks: Sequence[Task], attempts: Sequence[Attempt] | None = None, vectors: Matrix | None = None
    ) -> tuple[Floats, Floats]:
        """Outcomes [N, 2], local and strong, and familiarity [N]. Raises ValueError."""
        if self.reads_answers and attempts is None:
            raise ValueError("this predictor decides after an attempt, and was given none")
        if self.reads_vectors and vectors is None:
            raise ValueError("this predictor reads vectors, and was given none")
        out, familiar = np.empty((len(tasks), 2)), np.empty(len(tasks))
        for start in range(0, len(tasks), BLOCK):
            cut = slice(start, start + BLOCK)
            some = None if attempts is None else attempts[cut]
            rows = encode(self.encoding, tasks[cut], some, vectors[cut] if vectors is not None and self.reads_vectors else None)
            out[cut], familiar[cut] = self.forecast(rows, tasks[cut])
        return out, familiar

    def forecast(self, rows: Points, tasks: Sequence[Task]) -> tuple[Floats, Floats]:
        """The same of requests that are numbers already."""
        out, familiar = self._resembling(rows)
        for row in np.flatnonzero(familiar < self.least_familiar).tolist():
            out[row] = self.prior(tasks[row])
        return np.clip(out, 0, 1), familiar

    def prior(self, task: Task) -> Floats:
        """[2]: what its group, or else its class, is known to do."""
        return self.priors.get(f"group:{task.group}", self.priors.get(f"class:{task_class(task)}", self.mean))

    def _resembling(self, rows: Points) -> tuple[Floats, Floats]:
        out = np.tile(self.mean, (len(rows.terms), 1))
        w, nothing = self.weights, np.zeros(2)
        for row, (ids, values) in enumerate(rows.terms):
            out[row] += values @ self.term_weights[ids] + self.groups.get(rows.groups[row], nothing)
        if "prompt" in w:
            out += w["prompt"] * (near(rows.prompt, self.points.prompt) @ self.alpha)
        if "answer" in w and rows.answer is not None and self.points.answer is not None:
            out += w["answer"] * (near(rows.answer, self.points.answer) @ self.alpha)
        if rows.vector is None or self.points.vector is None:
            return out, rows.known
        cosines = rows.vector @ self.points.vector.T
        if "vector" in w:
            out += w["vector"] * (from_cosines(cosines) @ self.alpha)
        return out, cosines.max(1).astype(np.float64)


def fit(examples: Examples, provenance: Mapping[str, Any] | None = None, seed: int = 0) -> Predictor:
    """Learn from outcomes. Rows past MAX_ROWS are left out by chance. Raises ValueError with fewer than MIN_ROWS rows, or
    outcomes outside of 0..1."""
    outcomes = np.stack([examples.local, examples.strong], 1).astype(np.float64)
    if len(outcomes) < MIN_ROWS or len(outcomes) != len(examples.tasks):
        raise ValueError(f"a predictor needs the outcomes of at least {MIN_ROWS} requests, not {len(outcomes)}")
    if not ((outcomes >= 0) & (outcomes <= 1)).all():
        raise ValueError("an outcome is outside of 0..1")
    rows = np.sort(np.random.default_rng(seed).permutation(len(outcomes))[:MAX_ROWS])
    tasks = [examples.tasks[i] for i in rows]
    attempts = None if examples.attempts is None else [examples.attempts[i] for i in rows]
    encoding = learn_encoding(tasks, attempts)
    points = encode(encoding, tasks, attempts, None if examples.vectors is None else examples.vectors[rows])
    return fit_points(encoding, points, tasks, outcomes[rows], provenance, seed)


def fit_points(
    encoding: Encoding,
    points: Points,
    tasks: Sequence[Task],
    outcomes: Floats,
    provenance: Mapping[str, Any] | None = None,
    seed: int = 0,
    by_terms: Matrix | None = None,
) -> Predictor:
    """The same from requests that are numbers already; outcomes [N, 2]. `by_terms`: see similarity.grams."""
    chance, size = np.random.default_rng(seed), len(encoding.vocabulary)
    mean = outcomes.mean(0)
    trial = np.sort(chance.permutation(len(tasks))[:TRIAL_ROWS])
    weights, noise, error = _choose(grams(points.take(trial), size), np.diff(outcomes[trial], axis=1)[:, 0])
    alpha = _solve(grams(points, size, by_terms), weights, noise, outcomes - mean)
    kept = Points([], points.known, points.prompt, points.answer, points.vector, [])
    variance = float(np.var(np.diff(outcomes[trial], axis=1)))
    return Predictor(
        encoding, weights, mean, alpha.astype(np.float32), _term_weights(points, alpha * weights.get("terms", 0.0), size), kept,
        _by_group(points.groups, alpha * weights["group"]) if "group" in weights else {},
        _priors(tasks, outcomes, mean), _least_familiar(points),
        {
            **(provenance or {}), "rows": len(tasks), "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "features_version": FEATURES_VERSION, "noise": noise, "weights": weights, "local_ok": float(mean[0]),
            "strong_ok": float(mean[1]), "gap_explained": 1 - error / variance if variance > 0 else 0.0,
        },
    )  # fmt: skip


def leave_one_out(kernel: Floats, values: Floats, noise: Sequence[float]) -> list[Floats]:
    """Each row's squared error when forecast from all others, [N] for each noise: e_i = a_i / (K + noise I)^-1_ii
    (Rasmussen and Williams, equation 5.12), by one eigendecomposition of kernel [N, N]."""
    eigen, basis = np.linalg.eigh(kernel)
    turned, squares = basis.T @ values, basis * basis
    errors = []
    for one in noise:
        inverse = 1 / (np.maximum(eigen, 0) + one)
        errors.append((basis @ (inverse * turned) / (squares @ inverse)) ** 2)
    return errors


def _choose(parts: Mapping[str, Matrix], gap: Floats) -> tuple[dict[str, float], float, float]:
    """Weights, noise and error. Parts weigh the same, unless another weight of one is better by more than the standard error
    of the difference: on so few rows most differences are chance."""
    weights = {kind: 1.0 for kind in KINDS if kind in parts}
    values = gap - gap.mean()

    def trial(tried: Mapping[str, float]) -> tuple[Floats, float]:
        found = leave_one_out(_mix(parts, tried), values, NOISES)
        best = int(np.argmin([errors.mean() for errors in found]))
        return found[best], NOISES[best]

    errors, noise = trial(weights)
    for kind in weights:
        for weight in WEIGHTS:
            found, its_noise = trial(weights | {kind: weight})
            better = errors - found
            if better.mean() > better.std() / np.sqrt(len(better)):
                errors, noise, weights = found, its_noise, weights | {kind: weight}
    return weights, noise, float(errors.mean())


def _mix(parts: Mapping[str, Matrix], weights: Mapping[str, float]) -> Floats:
    first, *rest = weights
    kernel = parts[first].astype(np.float64) * weights[first]
    for kind in rest:
        kernel += parts[kind] * weights[kind]
    return kernel


def _solve(parts: Mapping[str, Matrix], weights: Mapping[str, float], noise: float, values: Floats) -> Floats:
    """(K + noise I)^-1 values, [N, 2]."""
    from scipy.linalg import cho_factor, cho_solve

    kernel = _mix(parts, weights)
    kernel[np.diag_indices_from(kernel)] += noise
    return np.asarray(cho_solve(cho_factor(kernel, overwrite_a=True, check_finite=False), values, check_finite=False))


def _term_weights(points: Points, alpha: Floats, size: int) -> Matrix:
    found = np.zeros((size, 2))
    for (ids, values), say in zip(points.terms, alpha, strict=True):
        found[ids] += values[:, None] * say
    return found.astype(np.float32)


def _by_group(groups: Sequence[str], alpha: Floats) -> dict[str, Floats]:
    found: dict[str, Floats] = {}
    for group, say in zip(groups, alpha, strict=True):
        found[group] = found.get(group, np.zeros(2)) + say
    return found


def _priors(tasks: Sequence[Task], outcomes: Floats, mean: Floats) -> dict[str, Floats]:
    members: dict[str, list[int]] = {}
    for row, task in enumerate(tasks):
        members.setdefault(f"class:{task_class(task)}", []).append(row)
        if task.group:
            members.setdefault(f"group:{task.group}", []).append(row)
    return {key: (outcomes[rows].sum(0) + PRIOR_ROWS * mean) / (len(rows) + PRIOR_ROWS) for key, rows in members.items()}


def _least_familiar(points: Points) -> float:
    if points.vector is None:
        return float(np.quantile(points.known, UNFAMILIAR))
    nearest = []
    for start in range(0, len(points.vector), BLOCK):
        cosines = points.vector[start : start + BLOCK] @ points.vector.T
        cosines[np.arange(len(cosines)), start + np.arange(len(cosines))] = -1
        nearest.append(cosines.max(1))
    return float(np.quantile(np.concatenate(nearest), UNFAMILIAR))
