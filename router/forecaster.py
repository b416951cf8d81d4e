"""Predictors at work: files that `baseload route train` has adopted, read again when they change, asked about live requests."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from threading import Lock
from typing import Any

from sqlalchemy import Engine

from ..wire.chat import ChatRequest
from ..wire.errors import BaseloadError
from .calibrate import Drift
from .drift import Promise, watch
from .features import Task
from .plan import Forecast
from .predictor import Embeds, Predictor
from .predictor_file import load
from .similarity import Attempt

log = logging.getLogger("baseload.router")

BEFORE, AFTER = "before.npz", "after.npz"  # decides before a local attempt; with its answer
NOTHING = -2.0  # a threshold below every gap
LOOK_S = 2.0  # a changed file is found so late


class Forecaster:
    """Those in `folder`. Where there is no file, or an unsound one, it has nothing to say. Safe to use from several threads."""

    def __init__(self, folder: Path, encoder: Callable[[], Embeds], books: Engine | None = None) -> None:
        """`encoder` is made when the first predictor wants vectors; `books`: the ledger in which audits are looked for."""
        self._folder, self._make_encoder, self._books = folder, encoder, books
        self.drifts: Mapping[str, Drift] = {}  # of the present predictors, by name
        self._encoder: Embeds | None = None
        self._lock, self._encoder_lock, self._looked = Lock(), Lock(), -LOOK_S
        self._known: dict[str, tuple[int, Predictor | None]] = {}  # name -> (when it was written, it)
        self._current(AFTER)

    @property
    def reads_answers(self) -> bool:
        """Whether there is a predictor of answers, as was last seen: this is asked in the event loop, and reads no file."""
        return self._known.get(AFTER, (0, None))[1] is not None

    def forecast(self, request: ChatRequest) -> Forecast | None:
        """See plan.Predictor."""
        return self._ask(BEFORE, request, None)

    @property
    def wants(self) -> frozenset[str]:
        """See plan.Predictor."""
        found = self._known.get(AFTER, (0, None))[1]
        return found.signals if found is not None else frozenset()

    def review(self, request: ChatRequest, answer: str, signals: Mapping[str, float]) -> Forecast | None:
        """See plan.Predictor."""
        return self._ask(AFTER, request, Attempt(answer, signals))

    def look_at_audits(self) -> None:
        """See whether the promises still hold. One that does not has its threshold opened: nothing more is kept by it until
        another predictor is adopted. Blocks on the disk."""
        if self._books is None:
            return
        found: dict[str, Drift] = {}
        for name, by in ((BEFORE, "predictor"), (AFTER, "confidence")):
            predictor = self._known.get(name, (0, None))[1]
            promise = _promise(predictor, by) if predictor else None
            if promise is None:
                continue
            state = found[name] = watch(self._books, promise)
            if state.alarm and not (name in self.drifts and self.drifts[name].alarm):
                log.warning(
                    "%s: %d audits of kept answers speak against the promised risk of %g (evidence %.3g); nothing is kept "
                    "by it until a predictor is adopted anew: baseload route train",
                    *(name, state.audits, promise.alpha, state.evidence),
                )
        self.drifts = found

    def _ask(self, name: str, request: ChatRequest, attempt: Attempt | None) -> Forecast | None:
        found = self._current(name)
        threshold = found.provenance.get("threshold") if found else None
        if found is None or threshold is None:
            return None
        try:
            task = task_of(request)
            vector = self._vectors().embed([task.prompt])[0] if found.reads_vectors else None
            said = found.predict(task, attempt, vector)
        except Exception:  # a request must not fail for what is only advice
            log.exception("the predictor %s could not be asked", name)
            return None
        numbers = {"local": said.local, "strong": said.strong, "familiar": said.familiar}
        if name in self.drifts and self.drifts[name].alarm:
            return Forecast(said.gap, NOTHING, not said.fell_back, numbers, "audits have failed, so that nothing is kept")
        return Forecast(said.gap, float(threshold), not said.fell_back, numbers)

    def _vectors(self) -> Embeds:
        with self._encoder_lock:  # of its own: making one takes a second
            self._encoder = self._encoder or self._make_encoder()
        return self._encoder

    def _current(self, name: str) -> Predictor | None:
        now = time.monotonic()
        with self._lock:
            if now - self._looked >= LOOK_S:
                self._looked = now
                for one in (BEFORE, AFTER):
                    self._look(one)
            return self._known.get(name, (0, None))[1]

    def _look(self, name: str) -> None:
        path = self._folder / name
        try:
            written = path.stat().st_mtime_ns
        except OSError:
            self._known.pop(name, None)
            self.drifts = {other: state for other, state in self.drifts.items() if other != name}
            return
        if self._known.get(name, (None,))[0] == written:
            return
        found: Predictor | None = None
        try:
            found = load(path)
            log.info("routing by %s, learned from %s rows", path.name, found.provenance.get("rows"))
        except BaseloadError as error:
            log.warning("%s", error.message)
        self._known[name] = (written, found)
        try:
            self.look_at_audits()
        except Exception:  # the books can't be read now; the next audit is another occasion
            log.exception("the audits could not be looked at")


def _promise(predictor: Predictor, by: str) -> Promise | None:
    """What its provenance says that its threshold holds; None: nothing."""
    told = predictor.provenance
    try:
        since = datetime.fromisoformat(str(told["created"])).timestamp()
        return Promise(by, float(told["threshold"]), float(told["alpha"]), since)
    except (KeyError, TypeError, ValueError):
        return None


def task_of(request: ChatRequest) -> Task:
    """A request as the predictors see it: what the user said last, and what it carries."""
    prompt = request.prompt if isinstance(request.prompt, str) else ""
    said = next((m.text for m in reversed(request.messages) if m.role == "user"), "")
    schema: Any = request.response_format.schema
    return Task(
        prompt or said,
        request.extras.task,
        len(request.tools),
        sum(len(found) for tool in request.tools if isinstance(found := tool.parameters.get("properties"), dict)),
        len(json.dumps(schema, default=str)) if schema else 0,
    )
