"""Learning a router from outcomes, and adopting it only where prompts that it has not seen are routed no worse than now."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..router.calibrate import on_average, regret
from ..router.forecaster import AFTER, BEFORE
from ..router.predictor import Predictor, fit
from ..router.predictor_file import load as load_predictor
from ..router.predictor_file import save
from ..router.similarity import Matrix
from ..wire.errors import BadRequest, ModelFileError
from .routing_data import Outcomes, load
from .routing_embeddings import TextEncoder, embed_cached
from .routing_methods import Rows, examples, splits
from .routing_metrics import apgr, curve

HELD_OUT_FOLDS = 5  # a fifth is learned nothing from: it judges, and sets the threshold
NOISE = 0.002  # APGR that two fits on the same rows may differ by


@dataclass(frozen=True, slots=True)
class Trained:
    """A predictor on held-out rows. `before`: the present one's APGR on the same rows; `kept`, `quality`: at the threshold."""

    name: str
    apgr: float | None
    before: float | None
    threshold: float | None
    kept: float | None
    quality: float | None
    adopted: bool
    why: str

    def as_json(self) -> dict[str, Any]:
        """For reports."""
        return asdict(self)


def load_outcomes(data: Path, embed: str, group_column: str, drop_column: str) -> tuple[Outcomes, Matrix | None]:
    """A file's rows, and the vectors of its prompts. Raises BadRequest."""
    outcomes = load(data, group_column=group_column, drop_column=drop_column)
    return outcomes, None if embed == "none" else embed_cached(TextEncoder(embed), outcomes.prompts)


def train(outcomes: Outcomes, vectors: Matrix | None, folder: Path, alpha: float, *, force: bool = False) -> list[Trained]:
    """Fit a predictor for before a local attempt and, where the file has local answers, one for after; write those that are
    adopted into `folder`. Raises BadRequest for too few rows."""
    known, held = next(splits(outcomes, None, HELD_OUT_FOLDS))
    folder.mkdir(parents=True, exist_ok=True)
    names = [BEFORE] if outcomes.responses is None else [BEFORE, AFTER]
    return [_train(outcomes, vectors, known, held, folder / name, alpha, force) for name in names]


def evaluate(outcomes: Outcomes, vectors: Matrix | None, folder: Path) -> list[Trained]:
    """The adopted predictors on all rows of the file. Raises BadRequest where there is none."""
    everything = np.arange(len(outcomes))
    found: list[Trained] = []
    for name in (BEFORE, AFTER):
        predictor = _present(folder / name)
        if predictor is None or (predictor.reads_answers and outcomes.responses is None):
            continue
        gaps = _gaps(predictor, outcomes, vectors, everything)
        kept, quality = _at(gaps, outcomes, everything, predictor.provenance.get("threshold"))
        score = apgr(curve(gaps, outcomes.weak, outcomes.strong))
        found.append(Trained(name, score, None, predictor.provenance.get("threshold"), kept, quality, True, ""))
    if not found:
        raise BadRequest("No predictor has been adopted yet: baseload route train --data FILE.")
    return found


def _train(
    outcomes: Outcomes, vectors: Matrix | None, known: Rows, held: Rows, path: Path, alpha: float, force: bool
) -> Trained:
    given = examples(outcomes.take(known), None if vectors is None else vectors[known])
    given = given if path.name == AFTER else type(given)(given.tasks, given.local, given.strong, None, given.vectors)
    try:
        predictor = fit(given, {"data": outcomes.name, "sha256": outcomes.digest, "alpha": alpha})
    except ValueError as error:
        raise BadRequest(f"{outcomes.name}: {error}.") from error
    part, gaps = outcomes.take(held), _gaps(predictor, outcomes, vectors, held)
    score = apgr(curve(gaps, part.weak, part.strong))
    present = _present(path)
    before = apgr(curve(_gaps(present, outcomes, vectors, held), part.weak, part.strong)) if present else None
    limit = on_average(gaps, regret(part.weak, part.strong), alpha)
    kept, quality = _at(gaps, outcomes, held, limit.threshold)
    why = _refusal(score, before, limit.why)
    if why and not (force and limit.certified):
        return Trained(path.name, score, before, limit.threshold, kept, quality, False, f"not adopted: {why}")
    predictor.provenance.update(threshold=limit.threshold, held_out_apgr=score, held_out_rows=len(held), kept=kept)
    save(predictor, path)
    return Trained(
        path.name, score, before, limit.threshold, kept, quality, True, f"adopted{f' although {why}' if why else ''}"
    )


def _refusal(score: float | None, before: float | None, uncertifiable: str) -> str:
    if uncertifiable:
        return uncertifiable
    if score is None:
        return "the strong model is not better on the held-out rows: there is nothing to route by"
    if before is not None and score < before - NOISE:
        return f"the held-out score falls from {before:.4f} to {score:.4f}"
    return ""


def _present(path: Path) -> Predictor | None:
    if not path.exists():
        return None
    try:
        return load_predictor(path)
    except ModelFileError:
        return None  # an unsound one is no reason to keep it


def _gaps(predictor: Predictor, outcomes: Outcomes, vectors: Matrix | None, rows: Rows) -> np.ndarray:
    given = examples(outcomes.take(rows), None if vectors is None else vectors[rows])
    if predictor.reads_vectors and given.vectors is None:
        raise BadRequest("The present predictor reads vectors of prompts: do not say --embed none.")
    attempts = given.attempts if predictor.reads_answers else None
    out, _ = predictor.predict_many(given.tasks, attempts, given.vectors if predictor.reads_vectors else None)
    return out[:, 1] - out[:, 0]


def _at(gaps: np.ndarray, outcomes: Outcomes, rows: Rows, threshold: float | None) -> tuple[float | None, float | None]:
    """The share that is kept at a threshold, and the quality reached."""
    if threshold is None:
        return None, None
    part = outcomes.take(rows)
    kept = gaps <= threshold
    return float(kept.mean()), float(np.where(kept, part.weak, part.strong).mean())
