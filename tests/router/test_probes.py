"""What a predictor asks of a local answer beside its text: it arrives, it is written down and charged, and only when wanted."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from baseload.router.features import Task
from baseload.router.plan import Forecast
from baseload.router.predictor import Examples, fit
from baseload.router.similarity import Attempt
from baseload.runtime.engine.sampler import margin
from baseload.wire.chat import Failure, Finish, SamplingParams, TextDelta, Usage

from .routed import ask, router_of, run, text

SURE = [TextDelta("It is 4."), Usage(5, 3, signals={"margin_mean": 2.5, "margin_least": 0.1}), Finish("stop")]
BOTH = frozenset({"margin_mean", "margin_least", "agreement"})


def keep(answer: str) -> Forecast:
    return Forecast(0.0, 0.5)


async def test_what_is_wanted_arrives_and_is_noted_and_samples_are_attempts(ledger: Any):
    heard: list[dict[str, float]] = []
    router, home, away = router_of(ledger, reviewed=keep, signals=BOTH, heard=heard)
    samples = ("4", "It must be 4", "5 perhaps")
    home.answers = [SURE, *([TextDelta(said), Usage(5, 2, device_seconds=0.5), Finish("stop")] for said in samples)]
    handling, events = await run(router, ask(sampling=SamplingParams(temperature=0.0)))
    assert text(events) == "It is 4." and away.asked == []
    assert heard == [{"margin_mean": 2.5, "margin_least": 0.1, "agreement": 0.75}]
    assert handling.decision.notes[-1].numbers["agreement"] == 0.75
    assert [sent.sampling.margins for sent in home.asked[:1]] == [True]
    assert all(sent.sampling.temperature > 0 and sent.sampling.n == 1 for sent in home.asked[1:])
    ledger.flush()
    rows = ledger.request("req_1")["attempts"]
    assert [(r["n"], r["role"], r["accepted"]) for r in rows] == [
        (0, "answer", True), (1, "probe", False), (2, "probe", False), (3, "probe", False),
    ]  # fmt: skip
    assert all((r["completion_tokens"], r["device_seconds"], r["finish_reason"]) == (2, 0.5, "stop") for r in rows[1:])


async def test_nothing_is_asked_that_no_predictor_wants(ledger: Any):
    heard: list[dict[str, float]] = []
    router, home, _ = router_of(ledger, reviewed=keep, heard=heard)
    home.answers = [SURE]
    await run(router, ask())
    assert heard == [{}] and len(home.asked) == 1 and not home.asked[0].sampling.margins


async def test_margins_alone_need_no_samples(ledger: Any):
    heard: list[dict[str, float]] = []
    router, home, _ = router_of(ledger, reviewed=keep, signals=frozenset({"margin_mean"}), heard=heard)
    home.answers = [SURE]
    await run(router, ask())
    assert heard == [{"margin_mean": 2.5}] and len(home.asked) == 1


async def test_samples_that_fail_are_no_reason_to_fail(ledger: Any):
    heard: list[dict[str, float]] = []
    router, home, _ = router_of(ledger, reviewed=keep, signals=BOTH, heard=heard)
    home.answers = [SURE, Failure("broken"), Failure("broken"), Failure("broken")]
    _, events = await run(router, ask())
    assert text(events) == "It is 4." and heard == [{"margin_mean": 2.5, "margin_least": 0.1}]


async def test_samples_are_no_tries(ledger: Any):
    router, home, away = router_of(
        ledger, reviewed=lambda answer: Forecast(1.0, 0.5), signals=BOTH, heard=[], max_attempts=2, shadow=1.0
    )
    home.answers = [SURE, "1", "2", "3"]
    handling, events = await run(router, ask())
    assert text(events) == "from afar" and len(away.asked) == 1 and handling.tries == 5


def test_a_predictor_wants_what_it_learned_from():
    chance = np.random.default_rng(0)
    right = chance.random(80) < 0.5
    tasks = [Task(f"Question {i} about rivers") for i in range(80)]
    attempts = [
        Attempt("It is so.", {"margin_mean": 3.0 + chance.normal() if ok else chance.normal(), "agreement": 0.5})
        for ok in right
    ]
    found = fit(Examples(tasks, right.astype(float), np.ones(80), attempts))
    assert found.signals == {"margin_mean"}  # what never varied says nothing
    sure, unsure = (found.predict(tasks[0], Attempt("It is so.", {"margin_mean": x})) for x in (4.0, -1.0))
    assert sure.gap < unsure.gap - 0.2
    assert fit(Examples(tasks, right.astype(float), np.ones(80))).signals == frozenset()


@given(st.lists(st.floats(-50, 50, width=32), min_size=2, max_size=40), st.data())
def test_a_margin_is_the_difference_of_log_probabilities(row: list[float], data: st.DataObject):
    logits = np.array(row, np.float32)
    token = data.draw(st.integers(0, len(row) - 1))
    kept = logits.copy()
    found = margin(logits, token)
    log_p = kept.astype(np.float64) - math.log(np.exp(kept.astype(np.float64)).sum())
    assert found == pytest.approx(log_p[token] - np.delete(log_p, token).max(), abs=1e-4)
    assert np.array_equal(logits, kept)
