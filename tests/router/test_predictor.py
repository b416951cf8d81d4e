"""The predictor finds the gap and not difficulty; it knows when it does not know; its file is data and keeps its meaning."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baseload.router import predictor_file
from baseload.router.features import Task, prompt_shape, task_class, terms
from baseload.router.predictor import Examples, Predictor, fit, leave_one_out
from baseload.router.signals import agreement, answer_shape, confidence, equations, value
from baseload.router.similarity import Attempt
from baseload.wire.errors import ModelFileError

TOPICS = ("algebra proofs", "chess openings", "capital cities")  # both fail, only the strong one is right, both are right
OUTCOMES = np.array([[0.1, 0.1], [0.1, 0.9], [0.9, 0.95]])
COLOURS = ("red", "green", "blue", "white", "black", "pink")


def world(n: int, seed: int = 0) -> Examples:
    chance = np.random.default_rng(seed)
    topic = chance.integers(0, 3, n)
    tasks = [Task(f"A {chance.choice(COLOURS)} question about {TOPICS[t]}, please.") for t in topic]
    local, strong = (chance.random((n, 2)) < OUTCOMES[topic]).astype(float).T
    return Examples(tasks, local, strong)


@pytest.fixture(scope="module")
def fitted() -> Predictor:
    return fit(world(400), {"data": "abc"})


def test_it_learns_the_gap_and_not_difficulty(fitted: Predictor):
    hopeless, worth_it, easy = (fitted.predict(Task(f"A red question about {topic}, please.")) for topic in TOPICS)
    assert worth_it.gap > 0.6 and abs(hopeless.gap) < 0.25 and abs(easy.gap) < 0.25
    assert hopeless.local < 0.3 and easy.local > 0.7, "hopeless ones are difficult, and yet not worth the money"
    assert fitted.provenance["gap_explained"] > 0.3 and fitted.provenance["data"] == "abc" and fitted.provenance["rows"] == 400


def test_what_it_never_saw_gets_the_prior(fitted: Predictor):
    found = fitted.predict(Task("Übersetze das Gedicht ins Finnische!"))
    assert found.fell_back and [found.local, found.strong] == pytest.approx(fitted.prior(Task("Übersetze das!")).tolist())
    assert not fitted.predict(Task("A white question about chess openings, please.")).fell_back


def test_with_vectors_the_nearest_neighbour_says_what_is_familiar():
    chance = np.random.default_rng(1)
    rows = world(200)
    vectors = np.zeros((200, 8), np.float32)
    vectors[:, :2] = chance.normal(1, 0.1, (200, 2))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    found = fit(Examples(rows.tasks, rows.local, rows.strong, None, vectors))
    far = np.eye(8, dtype=np.float32)[7]
    assert found.predict(rows.tasks[0], None, vectors[0]).familiar == pytest.approx(1, abs=1e-5)
    assert found.predict(rows.tasks[0], None, far).fell_back
    with pytest.raises(ValueError, match="vectors"):
        found.predict(rows.tasks[0])


def test_a_known_group_counts():
    rows = world(300)
    local = np.array([float(i % 2) for i in range(300)])
    tasks = [Task("The same words every time.", group="easy" if i % 2 else "hard") for i in range(300)]
    found = fit(Examples(tasks, local, np.ones(300)))
    assert found.predict(Task("The same words every time.", "hard")).gap > 0.8
    assert found.predict(Task("The same words every time.", "easy")).gap < 0.2
    assert 0.3 < found.predict(Task("The same words every time.", "new")).gap < 0.7
    assert len(rows.tasks) == 300


def test_after_an_attempt_the_answer_and_its_signals_count():
    chance = np.random.default_rng(2)
    wrong = chance.random(300) < 0.5
    pairs = chance.integers(2, 50, (300, 2))
    tasks = [Task(f"What is {a} + {b}?") for a, b in pairs]
    attempts = [Attempt(f"{a} + {b} = {a + b + 9 * bad}") for (a, b), bad in zip(pairs, wrong, strict=True)]
    found = fit(Examples(tasks, np.where(wrong, 0.0, 1.0), np.ones(300), attempts))
    question = Task("What is 23 + 14?")
    assert (
        found.predict(question, Attempt("23 + 14 = 36")).gap > 0.6 > 0.4 > found.predict(question, Attempt("23 + 14 = 37")).gap
    )
    with pytest.raises(ValueError, match="attempt"):
        found.predict(tasks[0])
    margins = [Attempt("yes", {"margin": chance.normal(0.5 if bad else 3, 0.2)}) for bad in wrong]
    found = fit(Examples(tasks, np.where(wrong, 0.0, 1.0), np.ones(300), margins))
    sure, unsure, unknown = (found.predict(tasks[0], Attempt("yes", {"margin": m})).gap for m in (3.0, 0.5, math.nan))
    assert unsure > 0.7 and sure < 0.3 and sure < unknown < unsure


@pytest.mark.parametrize("attempts", [False, True])
def test_a_file_keeps_its_meaning(tmp_path: Path, attempts: bool):
    rows = world(120)
    vectors = np.random.default_rng(0).normal(size=(120, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    answers = [Attempt(f"{i} + 1 = {i + 1}", {"margin": float(i)}) for i in range(120)] if attempts else None
    first = fit(Examples(rows.tasks, rows.local, rows.strong, answers, vectors))
    predictor_file.save(first, tmp_path / "p.npz")
    again = predictor_file.load(tmp_path / "p.npz")
    a, b = (each.predict_many(rows.tasks, answers, vectors)[0] for each in (first, again))
    np.testing.assert_allclose(a, b, atol=5e-3)
    assert again.provenance == first.provenance and again.reads_answers is attempts
    assert not list(tmp_path.glob("*.tmp"))


def test_a_damaged_file_or_one_of_another_version_is_refused(fitted: Predictor, tmp_path: Path):
    path = tmp_path / "p.npz"
    predictor_file.save(fitted, path)
    whole = path.read_bytes()
    for broken in (b"", b"not a zip", whole[: len(whole) // 2]):
        path.write_bytes(broken)
        with pytest.raises(ModelFileError):
            predictor_file.load(path)
    np.savez(path, head=np.array([{"a": 1}], object))  # a pickle
    with pytest.raises(ModelFileError):
        predictor_file.load(path)
    fitted.provenance["features_version"] += 1
    predictor_file.save(fitted, path)
    fitted.provenance["features_version"] -= 1
    with pytest.raises(ModelFileError, match="another version"):
        predictor_file.load(path)


def test_the_router_imports_no_scipy():
    code = "import sys, baseload.router, baseload.router.predictor; assert not {'scipy', 'sklearn', 'torch'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("n", [0, 19])
def test_too_few_rows_are_refused(n: int):
    with pytest.raises(ValueError, match="at least"):
        fit(world(n))


def test_outcomes_without_variance_are_learned_too():
    rows = world(60)
    found = fit(Examples(rows.tasks, np.zeros(60), np.zeros(60)))
    assert found.predict(rows.tasks[0]).gap == 0 and found.provenance["gap_explained"] == 0


def test_leave_one_out_is_what_leaving_out_gives():
    chance = np.random.default_rng(0)
    x, y = chance.normal(size=(12, 3)), chance.normal(size=12)
    kernel = x @ x.T
    for noise, errors in zip((0.5, 4.0), leave_one_out(kernel, y, (0.5, 4.0)), strict=True):
        for i in range(12):
            rest = np.delete(np.arange(12), i)
            forecast = kernel[i, rest] @ np.linalg.solve(kernel[np.ix_(rest, rest)] + noise * np.eye(11), y[rest])
            assert errors[i] == pytest.approx((y[i] - forecast) ** 2)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("2 + 3 * 4", 14), ("(2+3)*4", 20), ("$1,200 / 2", 600), ("3 x 4", 12), ("20% * 50", 10), ("-2 + 5", 3), ("1/0", None),
     ("2x + 1", None), ("", None), ("(1 + 2", None), ("__import__('os')", None), ("9" * 400 + "*" + "9" * 400, None)],
)  # fmt: skip
def test_arithmetic_is_read_and_never_run(text: str, expected: float | None):
    assert value(text) == (expected if expected is None else pytest.approx(expected))


def test_equations_of_an_answer():
    assert equations("She eats 16 - 3 = <<16-3=13>>13 eggs.") == [("16-3", 13), ("16 - 3", 13)]
    assert equations("5 apples * 2 = 10 apples") == [("5 * 2", 10)]
    assert equations("A date of 12 = 12 says nothing.") == []
    assert [value(left) for left, _ in equations("Her 2x + 3 = 7 is algebra.")] == [None]


def test_the_shape_of_an_answer_tells_what_is_wrong_with_it():
    question = "A pen costs 3 dollars and a book 12. How much are 4 pens and a book?"
    good = answer_shape(question, "4 * 3 = 12, and 12 + 12 = 24.\n#### 24")
    assert good["wrong"] == 0 and good["unused"] == 0 and good["final_is_result"] == 1 and good["cut"] == 0
    bad = answer_shape(question, "4 * 3 = 15. However, perhaps 15 - 3.5 = 11.5 and then 3 + <<15+")
    assert bad["wrong"] == 1 and bad["cut"] == 1 and bad["doubts"] > 0 and bad["unused"] == 1


@settings(deadline=None, max_examples=60)
@given(st.text(max_size=300), st.text(max_size=300), st.integers(1, 30))
def test_any_text_has_finite_numbers(prompt: str, answer: str, times: int):
    for shape in (prompt_shape(Task(prompt * times)), answer_shape(prompt, answer * times)):
        assert all(math.isfinite(x) for x in shape.values())
    assert set(answer_shape(prompt, answer)) == set(answer_shape("", "")), "the same columns for all"
    assert all(n > 0 for n in terms(prompt).values())


@pytest.mark.parametrize(
    ("task", "expected"),
    [(Task("hi", tools=1), "tools"), (Task("hi", schema_chars=9), "extraction"), (Task("Pick.\nA. x\nB. y\n"), "choice"),
     (Task("```python\ndef f(x):\n```"), "code"), (Task("Calculate 3 + 4 = and how many"), "maths"), (Task("Who?"), "question"),
     (Task("Hello."), "other")],
)  # fmt: skip
def test_task_classes(task: Task, expected: str):
    assert task_class(task) == expected


def test_samples_and_log_probabilities_become_signals():
    assert agreement(["It is 12.", "so 12", "13"]) == pytest.approx(2 / 3) and math.isnan(agreement(["one"]))
    assert agreement(["Paris", "paris ", "Rome"]) == pytest.approx(2 / 3)
    assert confidence([-0.1, -0.5], [-2.1, -1.0]) == pytest.approx(
        {"logprob_mean": -0.3, "logprob_least": -0.5, "margin_mean": 1.25, "margin_least": 0.5}
    )
    assert confidence([]) == {}
