"""Cost per accepted task: everything that was tried is in it, and what is not known is said."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baseload.ledger.outcomes import TrainingRow, Verdict
from baseload.ledger.tasks import Task, is_task, per_accepted, task


def attempt(id: str, *, accepted: bool = False, role: str = "answer", **costs: float) -> dict[str, object]:
    empty = dict.fromkeys(("retail_usd", "internal_usd", "device_seconds", "energy_joules"))
    return {"id": id, "accepted": accepted, "role": role, **empty, **costs}


def test_a_judge_that_did_its_work_is_no_accepted_answer():
    tries = (attempt("a", retail_usd=0.1), attempt("j", accepted=True, role="judge", retail_usd=0.2))
    found = task(TrainingRow("r", 1.0, None, None, None, "auto", {}, tries), None, "")
    assert (found.usd, found.accepted) == (pytest.approx(0.3), False)


def test_a_failed_local_try_is_part_of_what_the_escalated_answer_cost():
    tries = (attempt("a", device_seconds=36.0), attempt("b", accepted=True, retail_usd=0.05))
    found = task(TrainingRow("r", 1.0, "mail", None, None, "auto", {}, tries), usd_per_hour=1.0, group="mail")
    assert (found.usd, found.accepted) == (pytest.approx(0.06), True)
    assert task(TrainingRow("r", 1.0, "mail", None, None, "auto", {}, tries), usd_per_hour=None, group="mail").usd is None


def test_vectors_are_no_tasks():
    assert not is_task(TrainingRow("r", 1.0, None, None, None, "m", {}, (attempt("v", accepted=True, role="vector"),)))
    assert is_task(TrainingRow("r", 1.0, None, None, None, "m", {}, ()))  # one that was refused is one


def test_what_the_predictor_thinks_is_no_verdict():
    verdicts = (Verdict("a", "check", "confidence", False, None, False, 1.0),)
    row = TrainingRow("r", 1.0, None, None, None, "auto", {}, (attempt("a", accepted=True, retail_usd=0.5),), verdicts)
    assert task(row, None, "").accepted


def test_a_rejected_answer_cost_something_and_counts_for_nothing():
    verdicts = (Verdict("a", "check", "schema", True, None, False, 1.0), Verdict("a", "feedback", "", False, None, False, 2.0))
    row = TrainingRow("r", 1.0, None, None, None, "auto", {}, (attempt("a", accepted=True, retail_usd=0.5),), verdicts)
    assert (task(row, None, "").usd, task(row, None, "").accepted) == (0.5, False)


def test_a_profile_that_is_given_prices_anew_what_had_the_price_of_its_day():
    row = TrainingRow("r", 1.0, None, None, None, "auto", {}, (attempt("a", device_seconds=36.0, internal_usd=0.5),))
    assert (task(row, 1.0, "").usd, task(row, None, "").usd) == (pytest.approx(0.01), 0.5)


def test_one_unpriced_task_leaves_its_group_unpriced():
    (found,) = per_accepted([Task("r", "g", 1.0, None, True), Task("s", "g", None, None, True)])
    assert (found.usd, found.note, found.unpriced) == (None, "unpriced", 1)


def test_few_samples_have_no_interval():
    (found,) = per_accepted([Task(f"r{i}", "g", 1.0, 2.0, i < 9) for i in range(12)])
    assert (found.usd, found.joules, found.low, found.note) == (
        pytest.approx(12 / 9),
        pytest.approx(24 / 9),
        None,
        "too few samples",
    )


def test_nothing_accepted_has_no_price():
    (found,) = per_accepted([Task("r", "g", 1.0, None, False)])
    assert (found.usd, found.accepted) == (None, 0)


@given(st.lists(st.tuples(st.floats(0, 100), st.booleans()), min_size=30, max_size=60))
def test_the_interval_holds_the_estimate(rows: list[tuple[float, bool]]):
    (found,) = per_accepted([Task(str(i), "g", usd, None, ok) for i, (usd, ok) in enumerate(rows)])
    accepted = sum(ok for _, ok in rows)
    if found.low is not None and found.high is not None and found.usd is not None:
        assert found.usd == pytest.approx(sum(usd for usd, _ in rows) / accepted)
        assert found.low <= found.high
    else:
        assert accepted < 10
