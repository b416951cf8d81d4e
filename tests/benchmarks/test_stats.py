"""The load test's arithmetic."""

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baseload.benchmarks.stats import MIN_FOR_P99, Slo, parse_slo, percentile, poisson_arrivals, summarise

seconds = st.floats(min_value=0, max_value=1e6, allow_nan=False)


@given(st.lists(seconds, min_size=2, max_size=200))
def test_percentiles_are_those_of_the_standard_library(values: list[float]):
    ordered = sorted(values)
    expected = statistics.quantiles(values, n=100, method="inclusive")
    for q in (1, 25, 50, 90, 99):
        assert percentile(ordered, q) == pytest.approx(expected[q - 1], rel=1e-9, abs=1e-9)


@given(st.lists(seconds, min_size=1, max_size=50), seconds, st.floats(0, 100), st.floats(0, 100))
def test_percentiles_are_ordered_and_within_the_values(values: list[float], shift: float, a: float, b: float):
    ordered = sorted(values)
    low, high = sorted((percentile(ordered, a), percentile(ordered, b)))
    assert ordered[0] <= low <= high <= ordered[-1]
    assert percentile(ordered, min(a, b)) <= percentile(ordered, max(a, b))


@given(st.lists(seconds | st.none(), max_size=150))
def test_a_summary_leaves_out_what_is_not_there_and_a_p99_of_too_few(values: list[float | None]):
    there = [value for value in values if value is not None]
    summary = summarise(values)
    assert summary.n == len(there)
    assert (summary.p50 is None) == (not there)
    assert (summary.p99 is None) == (len(there) < MIN_FOR_P99)
    if there:
        assert summary.p50 == pytest.approx(statistics.median(there))
        assert summary.mean == pytest.approx(statistics.fmean(there))


@given(st.floats(0.1, 100), st.integers(0, 2**32), st.integers(1, 300))
def test_arrivals_are_seeded_and_ascend(rate: float, seed: int, n: int):
    times = poisson_arrivals(rate, seed, n)
    assert times == poisson_arrivals(rate, seed, n)
    assert len(times) == n and times[0] > 0 and times == sorted(times)
    assert times != poisson_arrivals(rate, seed + 1, n)
    assert times[: n // 2] == poisson_arrivals(rate, seed, n // 2)


def test_arrivals_keep_their_rate():
    times = poisson_arrivals(5, 0, 20_000)
    gaps = [b - a for a, b in zip([0.0, *times], times, strict=False)]
    assert statistics.fmean(gaps) == pytest.approx(1 / 5, rel=0.03)
    assert statistics.pstdev(gaps) == pytest.approx(1 / 5, rel=0.05)  # exponential: deviation equals mean


@given(st.floats(0.5, 50), st.floats(0.5, 20))
def test_arrivals_stop_in_time(rate: float, duration: float):
    times = poisson_arrivals(rate, 3, duration_s=duration)
    assert all(time < duration for time in times)
    assert times == poisson_arrivals(rate, 3, len(times))


@given(seconds, seconds, seconds, st.floats(0.001, 1e6))
def test_each_limit_binds_what_it_names(ttft: float, tpot: float, e2e: float, limit: float):
    assert Slo().met(ttft, tpot, e2e)
    assert Slo(ttft=limit).met(ttft, tpot, e2e) == (ttft <= limit)
    assert Slo(tpot=limit).met(ttft, tpot, e2e) == (tpot <= limit)
    assert Slo(e2e=limit).met(ttft, tpot, e2e) == (e2e <= limit)
    assert Slo(limit, limit, limit).met(ttft, tpot, e2e) == (max(ttft, tpot, e2e) <= limit)


def test_an_answer_of_one_token_has_no_tpot_to_fail_but_one_of_none_fails_its_ttft():
    assert Slo(tpot=0.1).met(0.2, None, 0.3)
    assert not Slo(ttft=0.1).met(None, None, 0.3)


def test_slo_is_read_and_bad_words_are_refused():
    assert parse_slo("ttft=0.5, tpot=0.05,e2e=10") == Slo(0.5, 0.05, 10)
    assert parse_slo("e2e=2") == Slo(e2e=2)
    for bad in ("", "ttft", "ttft=", "ttft=x", "speed=3", "ttft=-1", "ttft=nan", "ttft=inf", "ttft=1,,"):
        with pytest.raises(ValueError):
            parse_slo(bad)
