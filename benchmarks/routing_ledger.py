"""The ledger's own traffic as outcomes to learn from: requests whose texts were kept, and of which both sides' worth is known.

A supplier is asked wherever the local answer fails, but of the answers that were kept only a share, drawn by lot, was asked for
there too. So that wrong local answers are as frequent here as in the traffic, escalated requests count only where their lot
falls into that share as well.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from sqlalchemy import Engine

from ..ledger.outcomes import ANSWERS, TrainingRow, training_rows
from ..ledger.texts import Kept, kept
from ..router.forecaster import task_of
from ..router.prompt_encoder import TextEncoder
from ..router.shadow import drawn
from ..router.similarity import Matrix
from ..wire import neutral
from ..wire.errors import BadRequest
from .routing_data import Outcomes

FEWEST = 50  # of them a fifth is held out
AT_ONCE = 500


def load_ledger(books: Engine, since: float, embed: str) -> tuple[Outcomes, Matrix | None]:
    """The outcomes since then (seconds since the epoch), and vectors of the prompts, which are not kept on disk. Raises
    BadRequest, with what was left out and why, where there are too few."""
    outcomes = of_ledger(books, since)
    return outcomes, None if embed == "none" else TextEncoder(embed).embed(outcomes.prompts)


def of_ledger(books: Engine, since: float) -> Outcomes:
    """The outcomes alone."""
    left_out: Counter[str] = Counter()
    found: list[tuple[str, dict[str, object]]] = []
    share = 0.0
    for row, texts in _with_texts(books, since):
        why, read = _read(row, texts)
        if read is None:
            left_out[why] += 1
            continue
        share = max(share, drawn(row.request_id)) if read["shadow"] else share
        found.append((row.request_id, read))
    rows = [read for name, read in found if read["shadow"] or drawn(name) <= share]
    left_out["escalated, and not of the share that is drawn"] += len(found) - len(rows)
    if len(rows) < FEWEST:
        why = "; ".join(f"{n} {reason}" for reason, n in left_out.most_common() if n) or "none was asked"
        raise BadRequest(
            f"The ledger has {len(rows)} requests whose text and both outcomes are known, and {FEWEST} are needed ({why}). "
            "[ledger] keep_text keeps texts, and [router] shadow has a supplier asked too."
        )
    digest = hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()
    column = lambda name: np.array([row[name] for row in rows], np.float64)  # noqa: E731
    words = lambda name: [str(row[name]) for row in rows]  # noqa: E731
    groups = words("group")
    return Outcomes(
        "the ledger",
        digest,
        words("prompt"),
        column("weak"),
        column("strong"),
        groups if any(groups) else None,
        words("response"),
        left_out={reason: n for reason, n in left_out.items() if n},
    )


def _with_texts(books: Engine, since: float) -> Iterator[tuple[TrainingRow, dict[str, Kept]]]:
    some: list[TrainingRow] = []
    for row in training_rows(books, since):
        some.append(row)
        if len(some) == AT_ONCE:
            yield from _texts_of(books, some)
            some = []
    yield from _texts_of(books, some)


def _texts_of(books: Engine, rows: list[TrainingRow]) -> Iterator[tuple[TrainingRow, dict[str, Kept]]]:
    texts = kept(books, [row.request_id for row in rows] + [a["id"] for row in rows for a in row.attempts])
    return ((row, texts) for row in rows)


def _read(row: TrainingRow, texts: dict[str, Kept]) -> tuple[str, dict[str, object] | None]:
    """Why a request teaches nothing, or what it teaches."""
    tried = [a for a in row.attempts if a["role"] in ANSWERS]
    if row.decision.get("mode") != "auto" or not tried:
        return "not for `auto`, or not tried", None
    if tried[0]["backend"] != "local" or tried[0]["error"]:
        return "whose local answer was not asked for, or failed", None
    said, asked = texts.get(tried[0]["id"]), texts.get(row.request_id)
    if said is None or asked is None or not asked.asked or not said.answers:
        return "whose text was not kept", None
    # The predictor's own opinion of an answer is no outcome.
    row = replace(row, verdicts=tuple(v for v in row.verdicts if v.check != "confidence"))
    weak = row.accepted(tried[0]["id"])
    if weak is None:
        return "whose local answer nobody judged", None
    theirs = [a for a in row.attempts if a["backend"] != "local" and a["role"] in (*ANSWERS, "shadow") and not a["error"]]
    strong = row.accepted(theirs[0]["id"]) if theirs else None
    if strong is None:
        return "for which no supplier was asked, or nobody judged what it said", None
    judged = any(v.check == "judge" and v.attempt_id == tried[0]["id"] for v in row.verdicts)
    if judged and theirs[0]["role"] == "shadow":
        return "whose judge was not asked about the supplier's answer", None
    task = task_of(neutral.decode(asked.asked))
    return "", {
        "prompt": task.prompt,
        "group": task.group or "",
        "weak": float(weak),
        "strong": float(strong),
        "response": said.answers[0]["text"],
        "shadow": theirs[0]["role"] == "shadow",
    }
