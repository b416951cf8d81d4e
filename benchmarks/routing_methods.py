"""The routers that the benchmark compares: ours, simple ones beside it, and the bounds. Each is a score per test prompt."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..router.features import Task
from ..router.predictor import MAX_ROWS, NOISES, TRIAL_ROWS, Examples, Predictor, fit_points, leave_one_out
from ..router.similarity import Attempt, Matrix, Points, encode, learn_encoding, term_gram
from .routing_data import Outcomes
from .routing_metrics import Floats

Rows = NDArray[np.intp]
NEIGHBOURS = 100
OURS, SIMPLE, BOUND = "ours", "simple", "bound"


@dataclass(frozen=True, slots=True)
class Scored:
    """A method on one split. `probes`: whether the weak model is asked first, always."""

    name: str
    kind: str
    scores: Floats  # [test]
    probes: bool = False


@dataclass(frozen=True, slots=True)
class Fitted:
    """Our predictor that reads most, for what is measured on it alone: scores of its training rows and of the test rows."""

    name: str
    predictor: Predictor
    train_scores: Floats
    test_scores: Floats


def splits(outcomes: Outcomes, labels: int | None, seeds: int) -> Iterator[tuple[Rows, Rows]]:
    """Train and test rows; equal prompts stay together. With `labels`: so many to learn from, the rest to test on, `seeds`
    times. Without: `seeds`-fold cross-validation. Train rows come in random order."""
    _, question = np.unique(np.array(outcomes.prompts, object).astype(str), return_inverse=True)
    rows = np.arange(len(outcomes))
    if labels is None:
        chance = np.random.default_rng(0)
        fold = chance.permutation(question.max() + 1)[question] % seeds
        for k in range(seeds):
            yield chance.permutation(rows[fold != k]), rows[fold == k]  # files are often sorted; learners take the first rows
        return
    for seed in range(seeds):
        yield _cut(np.random.default_rng(seed).permutation(question.max() + 1)[question], labels)


def unseen_groups(outcomes: Outcomes, labels: int | None, seeds: int) -> Iterator[tuple[Rows, Rows]]:
    """The same, tested on a third of the groups, of which nothing is learned. None with fewer than three groups."""
    if outcomes.groups is None or len(set(outcomes.groups)) < 3:
        return
    names, number = np.unique(outcomes.groups, return_inverse=True)
    for seed in range(seeds):
        chance = np.random.default_rng(seed)
        held = chance.permutation(len(names))[: len(names) // 3]
        out = np.isin(number, held)
        repeated = np.isin(np.array(outcomes.prompts, object), [outcomes.prompts[i] for i in np.flatnonzero(out)])
        yield chance.permutation(np.flatnonzero(~out & ~repeated))[:labels], np.flatnonzero(out)


def _cut(question: Rows, labels: int) -> tuple[Rows, Rows]:
    order = np.argsort(question, kind="stable")
    end = labels
    while end < len(order) and question[order[end]] == question[order[end - 1]]:
        end += 1
    return order[:end], order[end:]


def score(outcomes: Outcomes, vectors: Matrix | None, train: Rows, test: Rows) -> tuple[list[Scored], Fitted]:
    """Every method that the file can carry."""
    known, asked = outcomes.take(train[:MAX_ROWS]), outcomes.take(test)
    tasks = [Task(prompt) for prompt in known.prompts]
    attempts = _attempts(known)
    encoding = learn_encoding(tasks, attempts)
    vec = (None, None) if vectors is None else (vectors[train[:MAX_ROWS]], vectors[test])
    seen = encode(encoding, tasks, attempts, vec[0])
    new = encode(encoding, [Task(prompt) for prompt in asked.prompts], _attempts(asked), vec[1])
    bare = replace(encoding, answer=None)
    pair = np.stack([known.weak, known.strong], 1)
    by_terms = term_gram(seen, len(encoding.vocabulary)) if encoding.vocabulary else None  # once: it takes longest
    found = simple(known, asked, seen, new, by_terms)
    fitted: Fitted | None = None
    for name, uses_group, uses_answer in (
        ("ours", False, False), ("ours + group", True, False), ("ours + answer", False, True),
        ("ours + answer + group", True, True),
    ):  # fmt: skip
        if (uses_group and known.groups is None) or (uses_answer and attempts is None):
            continue
        a, b = (_view(points, some, uses_group, uses_answer) for points, some in ((seen, known), (new, asked)))
        known_tasks, asked_tasks = _tasks(known, uses_group), _tasks(asked, uses_group)
        predictor = fit_points(encoding if uses_answer else bare, a, known_tasks, pair, by_terms=by_terms)
        out = predictor.forecast(b, asked_tasks)[0]
        found.append(Scored(name, OURS, out[:, 1] - out[:, 0], uses_answer))
        if name == "ours":
            found.append(Scored("ours, difficulty only", SIMPLE, 1 - out[:, 0]))
        inside = predictor.forecast(a, known_tasks)[0]
        fitted = Fitted(name, predictor, inside[:, 1] - inside[:, 0], out[:, 1] - out[:, 0])
    assert fitted is not None
    return found, fitted


def simple(known: Outcomes, asked: Outcomes, seen: Points, new: Points, by_terms: Matrix | None) -> list[Scored]:
    """What needs no method, and the bounds."""
    gap, mean = known.gap - known.gap.mean(), known.gap.mean()
    found = [
        Scored("random", BOUND, np.zeros(len(asked))),
        Scored("oracle", BOUND, asked.gap),
        Scored("prompt length", SIMPLE, np.array([float(len(prompt)) for prompt in asked.prompts])),
    ]
    if known.groups is not None and asked.groups is not None:
        sums: dict[str, list[float]] = {}
        for group, one in zip(known.groups, gap, strict=True):
            sums.setdefault(group, []).append(one)
        say = {group: sum(some) / (len(some) + 20) for group, some in sums.items()}
        found.append(Scored("group mean, smoothed", SIMPLE, np.array([mean + say.get(group, 0.0) for group in asked.groups])))
    if seen.vector is not None and new.vector is not None:
        k = min(NEIGHBOURS, max(1, len(known) // 5))
        nearest = np.argpartition(-(new.vector @ seen.vector.T), k - 1, axis=1)[:, :k]
        found.append(Scored(f"kNN-{k} on vectors", SIMPLE, gap[nearest].mean(1)))
    if by_terms is not None:
        found.append(Scored("TF-IDF ridge", SIMPLE, _term_ridge(seen, new, gap, by_terms)))
    if seen.answer is not None and new.answer is not None:
        shapes = np.hstack([seen.prompt, seen.answer]), np.hstack([new.prompt, new.answer])
        found.append(
            Scored("answer length", SIMPLE, np.array([float(len(one)) for one in asked.responses or [""] * len(asked)]), True)
        )
        found.append(Scored("ridge on the answer's shape", SIMPLE, _linear_ridge(*shapes, gap), True))
    return found


def _linear_ridge(seen: Matrix, new: Matrix, gap: Floats) -> Floats:
    kernel = (seen @ seen.T).astype(np.float64)
    some = slice(0, TRIAL_ROWS)
    noises = [one / 100 for one in NOISES] + list(NOISES)  # shapes are small numbers
    errors = [error.mean() for error in leave_one_out(kernel[some, some], gap[some], noises)]
    kernel[np.diag_indices_from(kernel)] += noises[int(np.argmin(errors))]
    return (new @ (seen.T @ np.linalg.solve(kernel, gap))).astype(np.float64)


def _term_ridge(seen: Points, new: Points, gap: Floats, by_terms: Matrix) -> Floats:
    kernel = by_terms.astype(np.float64)
    some = slice(0, TRIAL_ROWS)  # training rows are in random order
    errors = [error.mean() for error in leave_one_out(kernel[some, some], gap[some], NOISES)]
    kernel[np.diag_indices_from(kernel)] += NOISES[int(np.argmin(errors))]
    weights = np.zeros(1 + max(int(ids.max(initial=0)) for ids, _ in (*seen.terms, *new.terms)))
    for (ids, values), say in zip(seen.terms, np.linalg.solve(kernel, gap), strict=True):
        weights[ids] += values * say
    return np.array([float(values @ weights[ids]) for ids, values in new.terms])


def _view(points: Points, outcomes: Outcomes, uses_group: bool, uses_answer: bool) -> Points:
    groups = outcomes.groups if uses_group and outcomes.groups is not None else [""] * len(outcomes)
    return replace(points, groups=groups, answer=points.answer if uses_answer else None)


def _tasks(outcomes: Outcomes, uses_group: bool) -> list[Task]:
    groups = outcomes.groups if uses_group and outcomes.groups is not None else [""] * len(outcomes)
    return [Task(prompt, group) for prompt, group in zip(outcomes.prompts, groups, strict=True)]


def _attempts(outcomes: Outcomes) -> list[Attempt] | None:
    if outcomes.responses is None and not outcomes.signals:
        return None
    responses = outcomes.responses or [""] * len(outcomes)
    columns = {name.removeprefix("weak_"): column for name, column in (outcomes.signals or {}).items()}  # as they come live
    return [
        Attempt(response, {name: float(column[i]) for name, column in columns.items() if np.isfinite(column[i])})
        for i, response in enumerate(responses)
    ]


def examples(outcomes: Outcomes, vectors: Matrix | None) -> Examples:
    """The file as what `router.predictor.fit` learns from."""
    return Examples(_tasks(outcomes, True), outcomes.weak, outcomes.strong, _attempts(outcomes), vectors)
