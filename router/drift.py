"""Whether what a predictor promised of the answers that it kept still holds: audits of them, against the promised risk.

Audits alone are listened to (source `audit`: answers chosen by chance and looked at again). What clients complain of is not
chosen by chance, and a check that has passed an answer says nothing new of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine

from ..ledger.outcomes import ANSWERS, TrainingRow, audited_rows
from .calibrate import Drift

DELTA = 0.05  # the probability of a false alarm, however long one looks


@dataclass(frozen=True, slots=True)
class Promise:
    """What a predictor's threshold was said to hold: of the answers kept by notes of the kind `by` (`predictor`: before an
    attempt, `confidence`: after it) at most `alpha` are lost, on average; since when (seconds since the epoch)."""

    by: str
    threshold: float
    alpha: float
    since: float


def watch(books: Engine, promise: Promise, delta: float = DELTA) -> Drift:
    """The audits so far, oldest first. Blocks on the disk."""
    state = Drift(promise.alpha, delta)
    for loss in losses(books, promise):
        state = state.after(loss)
    return state


def losses(books: Engine, promise: Promise) -> Iterator[float]:
    """What keeping each audited answer has lost, 0..1: it is wrong, where a supplier's would have been right. Where no shadow
    tells of that, the predictor's own word on the supplier stands in."""
    for row, passed in audited_rows(books, promise.since):
        kept = next((a for a in row.attempts if a["accepted"] and a["role"] in ANSWERS), None)
        numbers = _note(row, promise)
        if kept is None or kept["backend"] != "local" or numbers is None:
            continue
        if passed:
            yield 0.0
            continue
        shadow = next((a["id"] for a in row.attempts if a["role"] == "shadow" and not a["error"]), None)
        judged = row.accepted(shadow) if shadow else None
        yield min(max(numbers.get("strong", 1.0), 0.0), 1.0) if judged is None else float(judged)


def _note(row: TrainingRow, promise: Promise) -> dict[str, Any] | None:
    """The numbers by which this predictor has kept the answer; None: it has not."""
    for note in row.decision.get("notes", ()):
        numbers = note["numbers"]
        if note["by"] == promise.by and numbers["threshold"] == promise.threshold and numbers["gap"] <= promise.threshold:
            return numbers
    return None
