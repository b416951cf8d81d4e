"""How alike two requests are: the numbers that stand for a request, and the kernels between them.

A kernel is a sum of up to five parts, each 1 for a request and itself: shared terms (TF-IDF, cosine), vectors of an embedding
model, the prompt's shape, the answer's shape, and being of the same group. Everything here but `grams` is numpy.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .features import Task, prompt_shape, terms
from .signals import answer_shape

Matrix = NDArray[np.float32]
KINDS = ("terms", "vector", "prompt", "answer", "group")
MAX_TERMS = 60_000
SIGNAL = "signal:"  # before the names of an attempt's signals, among the columns of an answer's shape
SHARPNESS = 3.0  # of the vectors' kernel exp(3 (cos - 1)): unrelated prompts count a twentieth of equal ones


@dataclass(frozen=True, slots=True)
class Attempt:
    """A local answer, and what the runtime knows about it: token margin, agreement of samples, any number by name."""

    response: str
    signals: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Scale:
    """Columns as learned: their names, means and spreads. Unknown, missing or infinite values are the mean."""

    names: tuple[str, ...]
    mean: Matrix  # [C]
    spread: Matrix  # [C]; infinite where a column never varied, so that it says nothing

    def apply(self, rows: Sequence[Mapping[str, float]]) -> Matrix:
        """[N, C], within 3 spreads, divided by the root of twice their number, so that exp(-distance^2) is the kernel."""
        raw = np.array([[row.get(name, math.nan) for name in self.names] for row in rows], np.float64)
        raw = raw.reshape(len(rows), len(self.names))
        z = np.where(np.isfinite(raw), (raw - self.mean) / self.spread, 0)
        return (np.clip(z, -3, 3) / math.sqrt(2 * max(int(np.isfinite(self.spread).sum()), 1))).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Encoding:
    """What turns requests into Points."""

    vocabulary: dict[str, int]
    idf: Matrix  # [V]
    prompt: Scale
    answer: Scale | None  # None: decides before any attempt


@dataclass(frozen=True, slots=True)
class Points:
    """N requests as numbers."""

    terms: list[tuple[NDArray[np.intp], Matrix]]  # of each: which terms, and their weights, of length 1 together
    known: NDArray[np.float64]  # [N], the part of a prompt's terms that the training prompts know
    prompt: Matrix  # [N, P]
    answer: Matrix | None  # [N, A]
    vector: Matrix | None  # [N, dim] of length 1
    groups: list[str]

    def take(self, rows: NDArray[np.intp]) -> Points:
        """Some of them."""
        return Points(
            [self.terms[i] for i in rows],
            self.known[rows],
            self.prompt[rows],
            None if self.answer is None else self.answer[rows],
            None if self.vector is None else self.vector[rows],
            [self.groups[i] for i in rows],
        )


def learn_encoding(tasks: Sequence[Task], attempts: Sequence[Attempt] | None) -> Encoding:
    """From the training requests."""
    seen: Counter[str] = Counter()
    for task in tasks:
        seen.update(terms(task.prompt).keys())
    least = 2 if len(tasks) < 1000 else 3
    kept = [(term, n) for term, n in seen.most_common(MAX_TERMS) if n >= least]
    idf = np.array([math.log((1 + len(tasks)) / (1 + n)) + 1 for _, n in kept], np.float32)
    vocabulary = {term: i for i, (term, _) in enumerate(kept)}
    answers = None if attempts is None else _scale(_answers(tasks, attempts))
    return Encoding(vocabulary, idf, _scale([prompt_shape(task) for task in tasks]), answers)


def encode(encoding: Encoding, tasks: Sequence[Task], attempts: Sequence[Attempt] | None, vector: Matrix | None) -> Points:
    """Requests as numbers. Without attempts an answer's shape is the mean one."""
    weighted, known = zip(*(_terms(encoding, task.prompt) for task in tasks), strict=True)
    answer = None
    if encoding.answer is not None:
        answer = encoding.answer.apply([{}] * len(tasks) if attempts is None else _answers(tasks, attempts))
    shape = encoding.prompt.apply([prompt_shape(task) for task in tasks])
    groups = [task.group for task in tasks]
    return Points(list(weighted), np.array(known), shape, answer, None if vector is None else vector.astype(np.float32), groups)


def near(a: Matrix, b: Matrix) -> Matrix:
    """exp(-distance^2) between the rows of a [N, C] and b [M, C]: [N, M]."""
    squares = (a * a).sum(1)[:, None] + (b * b).sum(1)[None] - 2 * (a @ b.T)
    return np.exp(-np.maximum(squares, 0))


def from_cosines(cosines: Matrix) -> Matrix:
    """The kernel of vectors of length 1."""
    return np.exp(SHARPNESS * (np.clip(cosines, -1, 1) - 1))


def term_gram(points: Points, vocabulary_size: int) -> Matrix:
    """The terms' kernel matrix [N, N]: of all parts the one that takes longest. Needs scipy."""
    from scipy.sparse import csr_array

    ends = np.cumsum([0, *(len(ids) for ids, _ in points.terms)])
    ids = np.concatenate([ids for ids, _ in points.terms])
    weights = np.concatenate([weights for _, weights in points.terms])
    table: Any = csr_array((weights, ids, ends), shape=(len(points.terms), vocabulary_size))
    return (table @ table.T).toarray().astype(np.float32)


def grams(points: Points, vocabulary_size: int, by_terms: Matrix | None = None) -> dict[str, Matrix]:
    """Each part's kernel matrix [N, N] of the training requests; parts that tell nothing apart are left out. `by_terms`: the
    terms' part, where it is there already."""
    found: dict[str, Matrix] = {"prompt": near(points.prompt, points.prompt)}
    if any(len(ids) for ids, _ in points.terms):
        found["terms"] = term_gram(points, vocabulary_size) if by_terms is None else by_terms
    if points.vector is not None:
        found["vector"] = from_cosines(points.vector @ points.vector.T)
    if points.answer is not None:
        found["answer"] = near(points.answer, points.answer)
    if len(set(points.groups)) > 1:
        _, number = np.unique(points.groups, return_inverse=True)
        found["group"] = (number[:, None] == number[None]).astype(np.float32)
    return found


def _terms(encoding: Encoding, prompt: str) -> tuple[tuple[NDArray[np.intp], Matrix], float]:
    counted = terms(prompt)
    found = [(at, 1 + math.log(n)) for term, n in counted.items() if (at := encoding.vocabulary.get(term)) is not None]
    ids = np.array([at for at, _ in found], np.intp)
    weights = np.array([weight for _, weight in found], np.float32) * encoding.idf[ids]
    return (ids, weights / max(float(np.linalg.norm(weights)), 1e-9)), len(found) / max(len(counted), 1)


def _answers(tasks: Sequence[Task], attempts: Sequence[Attempt]) -> list[dict[str, float]]:
    rows = []
    for task, attempt in zip(tasks, attempts, strict=True):
        given = {f"{SIGNAL}{name}": math.copysign(math.log1p(abs(x)), x) for name, x in attempt.signals.items()}
        rows.append(answer_shape(task.prompt, attempt.response) | given)
    return rows


def _scale(rows: Sequence[Mapping[str, float]]) -> Scale:
    names = tuple(dict.fromkeys(name for row in rows for name in row))
    raw = np.array([[row.get(name, math.nan) for name in names] for row in rows], np.float64)
    there = np.isfinite(raw)
    n = np.maximum(there.sum(0), 1)
    mean = np.where(there, raw, 0).sum(0) / n
    spread = np.sqrt((np.where(there, raw - mean, 0) ** 2).sum(0) / n)
    return Scale(names, mean.astype(np.float32), np.where(spread > 1e-6, spread, np.inf).astype(np.float32))
