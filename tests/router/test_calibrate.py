"""Thresholds: what is promised holds on a world whose truth is known, and what cannot be promised is said."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from baseload.router.calibrate import (
    Drift,
    alarm_at,
    grid_from,
    least_abstention,
    on_average,
    promise,
    regret,
    rows_needed,
    upper_bound,
)  # fmt: skip

RUNS = 300


def draw(chance: np.random.Generator, n: int):
    """Scores uniform on 0..1, and a loss with probability score^2 * 0.8: below t the mean loss is 0.8 t^2 / 3."""
    scores = chance.random(n)
    return scores, (chance.random(n) < 0.8 * scores**2).astype(float)


def true_risk(threshold: float | None) -> float:
    return 0.0 if threshold is None else 0.8 * min(threshold, 1) ** 2 / 3


def test_a_promise_holds_where_a_plug_in_threshold_breaks_it():
    chance, alpha, grid = np.random.default_rng(0), 0.08, np.arange(1, 11) / 10
    dense = np.arange(1, 51) / 50
    broken = naive_broken = kept = 0.0
    for _ in range(RUNS):
        scores, losses = draw(chance, 500)
        found = promise(scores, losses, alpha, 0.05, grid)
        broken += true_risk(found.threshold) > alpha
        kept += found.kept / RUNS
        observed = [(t, losses[scores <= t].mean()) for t in dense if (scores <= t).any()]
        naive_broken += true_risk(max((t for t, risk in observed if risk <= alpha), default=None)) > alpha
    assert broken <= 0.05 * RUNS and kept > 0.2
    assert naive_broken > 0.2 * RUNS


def test_conformal_risk_control_holds_on_average_and_wastes_little():
    chance, alpha = np.random.default_rng(1), 0.05
    risks = []
    for _ in range(RUNS):
        found = on_average(*draw(chance, 300), alpha)
        t = found.threshold or 0.0
        risks.append(0.8 * t**3 / 3)  # the loss of all requests: those given away lose nothing
    assert 0.04 < np.mean(risks) <= alpha + 2 * np.std(risks) / math.sqrt(RUNS)


def test_what_the_data_cannot_carry_is_uncertifiable():
    chance = np.random.default_rng(2)
    scores, losses = draw(chance, 40)
    few = promise(scores, losses * 0, 0.01, 0.05, grid_from(chance.random(500)))
    assert not few.certified and few.kept == 0 and str(rows_needed(0.01, 0.05)) in few.why
    hopeless = promise(chance.random(2000), np.ones(2000), 0.2, 0.05, np.arange(1, 11) / 10)
    assert not hopeless.certified and "uncertifiable" in hopeless.why and "100%" in hopeless.why
    assert "too few" in on_average(scores, losses, 0.01).why
    assert "already lose" in on_average(np.zeros(1000), np.ones(1000), 0.05).why


def test_rows_needed_is_exactly_enough():
    n = rows_needed(0.1, 0.05, grid=1)
    scores = np.zeros(n)
    assert promise(scores, np.zeros(n), 0.1, 0.05, np.array([1.0])).certified
    assert not promise(scores[1:], np.zeros(n - 1), 0.1, 0.05, np.array([1.0])).certified


@given(st.integers(0, 60), st.integers(1, 60), st.floats(0.001, 0.5))
def test_clopper_pearson_is_the_binomial_turned_around(failures: int, more: int, delta: float):
    rows = failures + more
    bound = float(upper_bound(np.array([float(failures)]), np.array([float(rows)]), delta)[0])
    assert binom.cdf(failures, rows, bound) == pytest.approx(delta, abs=1e-6)
    assert upper_bound(np.array([float(rows)]), np.array([float(rows)]), delta)[0] == 1


@given(st.floats(0, 1), st.floats(0.01, 0.99))
def test_least_abstention_is_what_a_perfect_router_gives_away(mu: float, alpha: float):
    away = least_abstention(mu, alpha)
    assert 0 <= away <= 1
    if mu > alpha:
        assert (mu - away) == pytest.approx(alpha * (1 - away), abs=1e-9), "it gives away wrong answers alone"


@settings(max_examples=80)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=80), st.floats(0.05, 0.9))
def test_thresholds_keep_equal_scores_together_and_within_alpha(rows: list[tuple[int, bool]], alpha: float):
    scores, losses = np.array([float(s) for s, _ in rows]), np.array([float(bad) for _, bad in rows])
    found = on_average(scores, losses, alpha)
    kept = np.zeros(len(rows), bool) if found.threshold is None else scores <= found.threshold
    assert (
        found.kept == pytest.approx(kept.mean()) and (losses * kept).sum() + 1 <= alpha * (len(rows) + 1) + 1e-9
    ) or not kept.any()
    exact = promise(scores, losses, alpha, 0.1, np.arange(6.0))
    if exact.threshold is not None:
        assert losses[scores <= exact.threshold].mean() <= exact.bound <= alpha


@pytest.mark.parametrize(
    ("scores", "losses", "alpha"), [([], [], 0.1), ([1.0], [2.0], 0.1), ([math.nan], [0.0], 0.1), ([1.0], [0.0], 0.0)]
)
def test_nonsense_is_refused(scores: list[float], losses: list[float], alpha: float):
    with pytest.raises(ValueError):
        on_average(np.array(scores), np.array(losses), alpha)


def test_regret_is_what_keeping_loses():
    assert regret(np.array([1, 1, 0, 0, 0.5]), np.array([1, 0, 1, 0, 1.0])).tolist() == [0, 0, 1, 0, 0.5]


def test_the_alarm_is_rarely_false_and_soon_true():
    chance = np.random.default_rng(3)
    false = sum(alarm_at((chance.random(1000) < 0.05).astype(float), 0.05, 0.05) is not None for _ in range(200))
    assert false <= 0.05 * 200
    late = [alarm_at((chance.random(1000) < 0.15).astype(float), 0.05, 0.05) for _ in range(50)]
    assert all(at is not None and at < 500 for at in late)
    assert alarm_at(np.zeros(1000), 0.05, 0.05) is None and alarm_at([1.0] * 10, 0.05, 0.05) is not None
    with pytest.raises(ValueError):
        Drift(0.05, 0.05).after(1.5)
