"""Audits of kept answers against what a predictor promised: the alarm opens its threshold, and a new predictor closes it."""

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from baseload.ledger.ledger import Ledger
from baseload.ledger.rows import AttemptRow, OutcomeRow, RequestRow
from baseload.router import RequestContext
from baseload.router.drift import Promise, losses, watch
from baseload.router.features import Task
from baseload.router.forecaster import BEFORE, Forecaster
from baseload.router.predictor import Embeds, Examples, fit
from baseload.router.predictor_file import save

from .routed import ask, router_of

NOW = time.time()
PROMISE = Promise("predictor", 0.25, 0.05, NOW - 60)


def kept(
    ledger: Ledger, n: int, passed: bool | None, *, strong: bool | None = None, source: str = "audit", **note: Any
) -> None:
    """A request whose local answer was kept, what was said of it, and perhaps a judged shadow."""
    name, numbers = f"r{n}", {"gap": 0.1, "threshold": 0.25, "strong": 0.9} | note
    notes = [{"by": "predictor", "why": "the local model will do", "numbers": numbers}]
    ledger.add(
        RequestRow(name, NOW + n, "openai_chat", "auto", "small", {"mode": "auto", "notes": notes}, "done", finished_ts=NOW + n)
    )
    ledger.add(AttemptRow(f"{name}a", name, 0, "local", "small", NOW + n, accepted=True))
    if passed is not None:
        ledger.add(OutcomeRow(name, f"{name}a", "", passed, ts=NOW + n, source=source))
    if strong is not None:
        ledger.add(AttemptRow(f"{name}s", name, 1, "acme", "acme/big", NOW + n, role="shadow"))
        ledger.add(OutcomeRow(name, f"{name}s", "schema", strong, ts=NOW + n))
    ledger.flush()


def test_a_loss_is_a_wrong_answer_where_the_supplier_is_right(ledger: Ledger):
    kept(ledger, 0, True)
    kept(ledger, 1, False, strong=True)
    kept(ledger, 2, False, strong=False)
    kept(ledger, 3, False)  # nobody asked a supplier: the predictor's own word on it
    kept(ledger, 4, False, source="feedback")  # who complains is not chosen by chance
    kept(ledger, 5, False, threshold=0.5)  # kept by another predictor
    kept(ledger, 6, None, strong=True)  # nobody looked at it
    assert list(losses(ledger.engine, PROMISE)) == [0.0, 1.0, 0.0, pytest.approx(0.9)]
    ledger.add(OutcomeRow("r1", "r1a", "", True, ts=NOW + 9, source="audit"))  # looked at once more
    ledger.flush()
    assert list(losses(ledger.engine, PROMISE)) == [0.0, 0.0, 0.0, pytest.approx(0.9)]


def test_the_promise_holds_as_long_as_audits_keep_to_it(ledger: Ledger):
    for n in range(60):
        kept(ledger, n, n % 30 != 7, strong=True)
    calm = watch(ledger.engine, PROMISE)
    assert (calm.audits, calm.alarm) == (60, False)
    for n in range(60, 80):
        kept(ledger, n, n % 2 == 0, strong=True)
    assert watch(ledger.engine, PROMISE).alarm


class NoVectors:
    def embed(self, texts: object) -> np.ndarray:
        raise AssertionError("this predictor reads no vectors")


def no_encoder() -> Embeds:
    return NoVectors()


def adopted(folder: Path, threshold: float) -> None:
    """A predictor that was learned a minute ago, and keeps nearly all."""
    folder.mkdir(exist_ok=True)
    tasks = [Task(f"say {word} {i}") for i in range(20) for word in ("hello", "goodbye")]
    found = fit(Examples(tasks, np.full(40, 0.9), np.full(40, 0.95)), {"alpha": 0.05})
    found.provenance.update(threshold=threshold, created=datetime.fromtimestamp(NOW - 60, UTC).isoformat())
    save(found, folder / BEFORE)


def test_failed_audits_open_the_threshold_until_another_predictor_is_adopted(
    ledger: Ledger, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("baseload.router.forecaster.LOOK_S", 0.0)
    folder = tmp_path / "router"
    adopted(folder, 0.25)
    live = Forecaster(folder, no_encoder, ledger.engine)
    first = live.forecast(ask("say hello 3"))
    assert first and first.gap <= first.threshold == 0.25 and not live.drifts[BEFORE].alarm
    for n in range(12):
        kept(ledger, n, n % 3 == 0, strong=True)
    live.look_at_audits()
    live.look_at_audits()
    assert live.drifts[BEFORE].alarm and caplog.text.count("audits of kept answers speak against") == 1
    opened = live.forecast(ask("say hello 3"))
    assert opened and opened.gap > opened.threshold and "audits have failed" in opened.why
    again = Forecaster(folder, no_encoder, ledger.engine)  # after a restart, too
    assert (again.forecast(ask("say hello 3")) or first).gap > (again.forecast(ask("say hello 3")) or first).threshold
    adopted(folder, 0.2)
    renewed = live.forecast(ask("say hello 3"))
    assert renewed and renewed.threshold == 0.2 and not live.drifts[BEFORE].alarm


async def test_with_an_open_threshold_a_supplier_is_asked_and_the_books_say_why(ledger: Ledger, tmp_path: Path):
    folder = tmp_path / "router"
    adopted(folder, 0.25)
    for n in range(12):
        kept(ledger, n, False, strong=True)
    forecast = Forecaster(folder, no_encoder, ledger.engine).forecast(ask("say hello 3"))
    router, home, away = router_of(ledger, forecast=forecast)
    handling = await router.handle(ask("say hello 3"), RequestContext("req_1"))
    [event async for event in handling.events]
    assert (len(home.asked), len(away.asked)) == (0, 1)
    assert handling.decision.notes[0].why.startswith("audits have failed")
