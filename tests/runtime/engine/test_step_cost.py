"""The seconds of the engine's steps, divided among requests: nothing is lost, and the fit finds what things cost."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baseload.runtime.engine.step_cost import Load, StepCost

loads = st.lists(st.builds(Load, st.sampled_from("abcdef"), st.integers(1, 500), st.integers(0, 1)), min_size=1, max_size=6)


@given(st.lists(st.tuples(loads, st.floats(0, 10)), max_size=120))
def test_the_shares_add_up_to_the_time_whatever_it_was(steps: list[tuple[list[Load], float]]):
    cost = StepCost()
    for step, seconds in steps:
        cost.add(step, seconds)
    ends = [cost.end(name) for name in "abcdef"]
    assert all(0 <= prompt <= spent * (1 + 1e-9) for spent, prompt in ends)
    shares = [spent for spent, _ in ends]
    assert sum(shares) == pytest.approx(sum(seconds for _, seconds in steps))
    assert cost.total_s == pytest.approx(sum(shares))
    assert [cost.end(name) for name in "abcdef"] == [(0.0, 0.0)] * 6


@pytest.mark.parametrize("true", [(1e-3, 8e-3, 5e-3), (1e-3, 0.0, 0.0), (2e-4, 1e-2, 0.0), (0.0, 0.0, 3e-3)])
def test_the_fit_finds_what_a_prompts_token_and_a_decode_cost(true: tuple[float, float, float]):
    cost, rng = StepCost(), random.Random(1)
    for _ in range(1000):
        prefill, decodes = rng.choice([0, 0, rng.randint(1, 512)]), rng.randint(1, 16)
        seconds = true[0] * prefill + true[1] * decodes + true[2]
        step = [Load(f"d{i}", 0, 1) for i in range(decodes)] + ([Load("p", prefill, 0)] if prefill else [])
        cost.add(step, seconds * rng.uniform(0.97, 1.03))
    assert cost.coefficients == pytest.approx(true, rel=0.1, abs=3e-4)


def test_a_decode_that_costs_ten_prompt_tokens_is_charged_so():
    cost, rng = StepCost(), random.Random(2)
    for _ in range(500):
        prefill, decodes = rng.randint(1, 300), rng.randint(1, 16)
        cost.add([Load("p", prefill, 0), *(Load("d", 0, 1) for _ in range(decodes))], 1e-3 * prefill + 1e-2 * decodes)
    for name in "pd":
        cost.end(name)
    cost.add([Load("p", 10, 0), Load("d", 0, 1)], 0.02)
    assert (cost.end("p")[0], cost.end("d")[0]) == pytest.approx((0.01, 0.01), rel=0.02)


def test_the_model_follows_a_machine_that_changes():
    cost, rng = StepCost(), random.Random(3)
    for speed in (1.0, 4.0):
        for _ in range(6000):
            prefill = rng.randint(1, 300)
            cost.add([Load("p", prefill, 1)], speed * (1e-3 * prefill + 5e-3))
    assert cost.coefficients[0] == pytest.approx(4e-3, rel=0.05)


def test_the_prompts_part_is_told_apart_and_guesses_are_the_answers():
    cost, rng = StepCost(), random.Random(4)
    for _ in range(500):
        prefill, decodes = rng.randint(1, 300), rng.randint(1, 16)
        cost.add([Load("p", prefill, 0), *(Load("d", 0, 1) for _ in range(decodes))], 1e-3 * prefill + 1e-2 * decodes)
    (spent, prompt), (_, none) = cost.end("p"), cost.end("d")
    assert (prompt, none) == (spent, 0.0)
    cost.add([Load("r", 100, 0)], 0.1)
    for _ in range(10):
        cost.add([Load("r", 2, 1, 2)], 0.012)
    assert cost.end("r") == pytest.approx((0.1 + 0.12, 0.1))
