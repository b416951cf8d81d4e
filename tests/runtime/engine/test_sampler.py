"""The sampler beside a slow and plain reference: what may be drawn, how often, and what is said of it."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from baseload.kernels.spec import StepOutput
from baseload.runtime.engine import sampler
from baseload.runtime.engine.detokenize import Detokenizer
from baseload.runtime.engine.request import GenerationRequest, Sequence
from baseload.runtime.engine.sampler import BrokenLogits, Sampled
from baseload.wire.chat import SamplingParams

from .fake_model import FakeTokenizer

END = (3, 5)
Numbers = NDArray[np.floating[Any]]


def row(said: tuple[int, ...] = (), prompt: tuple[int, ...] = (1,), seed: int = 0, choice: int = 0, **params: Any) -> Sequence:
    request = GenerationRequest("r", prompt, SamplingParams(**{"temperature": 0.0, **params}), choice)
    return Sequence(request, seed, 10**6, Detokenizer(FakeTokenizer()), [*prompt, *said], len(prompt))


def sample(logits: Numbers, rows: list[Sequence], end_ids: tuple[int, ...]) -> list[Sampled | Exception]:
    """One token, or what went wrong, for each row; those that are taken without a look at their logits see none."""
    result = StepOutput.of(np.array(logits, np.float32))
    result.logits[[not row.wants_logits for row in rows]] = 1e9
    return [attempt(result, i, row, end_ids) for i, row in enumerate(rows)]


def attempt(result: StepOutput, i: int, row: Sequence, end_ids: tuple[int, ...]) -> Sampled | Exception:
    try:
        return sampler.sample(result, i, row, end_ids)
    except BrokenLogits as error:
        return error


def one(logits: Numbers, sequence: Sequence, end_ids: tuple[int, ...] = ()) -> Sampled:
    (chosen,) = sample(np.asarray(logits, np.float32)[None], [sequence], end_ids)
    assert isinstance(chosen, Sampled), chosen
    return chosen


def draws(logits: Numbers, n: int, **params: Any) -> NDArray[np.float64]:
    """How often each token comes, of n draws with different seeds."""
    rows = [row(seed=seed, **params) for seed in range(n)]
    chosen = sample(np.tile(np.asarray(logits, np.float32), (n, 1)), rows, ())
    tokens = [c.token for c in chosen if isinstance(c, Sampled)]
    assert len(tokens) == n
    return np.bincount(tokens, minlength=len(logits)) / n


def expected(
    logits: Numbers, temperature: float, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> NDArray[np.float64]:
    """The distribution by sorting everything."""
    p = np.exp(np.asarray(logits, np.float64) / temperature - np.max(logits) / temperature)
    p /= p.sum()
    p[p < min_p * p.max()] = 0
    order = np.argsort(-p, kind="stable")
    if top_k:
        p[order[top_k:]] = 0
    p /= p.sum()
    if top_p < 1:
        before = np.concatenate([[0.0], np.cumsum(p[order])[:-1]])
        p[order[before >= top_p]] = 0
    return p / p.sum()


def shaped(logits: Numbers, sequence: Sequence, banned: tuple[int, ...] = ()) -> NDArray[np.float64]:
    """Penalties and biases, token by token."""
    p, out = sequence.request.sampling, np.asarray(logits, np.float64).copy()
    said = sequence.tokens[sequence.n_prompt :]
    for token in range(len(out)):
        if token in sequence.tokens:
            out[token] = out[token] / p.repetition_penalty if out[token] > 0 else out[token] * p.repetition_penalty
        out[token] -= p.frequency_penalty * said.count(token) + p.presence_penalty * (token in said)
        out[token] += sum(bias for biased, bias in p.logit_bias if biased == token)
    out[list(banned)] = -np.inf
    return out


def random_logits(seed: int, vocab: int = 40, spread: float = 2.0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, spread, vocab).astype(np.float32)


@given(st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=50))
def test_temperature_0_takes_the_largest(logits: list[float]):
    assert one(np.array(logits), row()).token == int(np.argmax(np.array(logits, np.float32)))


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 1.0},
        {"temperature": 0.3},
        {"temperature": 2.0},
        {"temperature": 1.0, "top_k": 1},
        {"temperature": 1.5, "top_k": 7},
        {"temperature": 1.0, "top_k": 1000},
        {"temperature": 1.0, "top_p": 0.5},
        {"temperature": 1.5, "top_p": 0.95},
        {"temperature": 1.0, "top_p": 1e-6},
        {"temperature": 1.0, "min_p": 0.1},
        {"temperature": 1.0, "min_p": 1.0},
        {"temperature": 1.5, "top_k": 12, "top_p": 0.8},
        {"temperature": 1.8, "top_k": 20, "top_p": 0.9, "min_p": 0.05},
    ],
    ids=str,
)
@pytest.mark.parametrize("vocab", [40, 900])
def test_tokens_come_as_often_as_they_should(params: dict[str, Any], vocab: int):
    n, logits = 3000, random_logits(7, vocab)
    want, got = expected(logits, **params), draws(logits, n, **params)
    assert not got[want == 0].any(), "a token came that was cut off"
    assert (np.abs(got - want) <= 5 * np.sqrt(want * (1 - want) / n) + 2 / n).all()


def test_a_flat_distribution_over_many_tokens_keeps_its_tail():
    """Where top_p needs more tokens than one first looks at."""
    want = draws(np.zeros(5000), 4000, temperature=1.0, top_p=0.9)
    assert want.max() < 0.01 and 0.4 < (want > 0).mean() < 0.75
    assert np.flatnonzero(want).max() < 4500 + 1


@given(st.integers(0, 2**32), st.integers(1, 12), st.floats(0.05, 1), st.floats(0, 0.5), st.floats(0.05, 2), st.integers(0, 99))
def test_nothing_is_drawn_that_was_cut_off(seed: int, top_k: int, top_p: float, min_p: float, temperature: float, draw: int):
    logits = random_logits(seed, 30)
    token = one(logits, row(seed=draw, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)).token
    # A hair's breadth more than is asked, for what stands on the edge.
    assert expected(logits, temperature, top_k, min(1.0, top_p + 1e-5), max(0.0, min_p - 1e-5))[token] > 0


def test_a_temperature_close_to_0_is_greedy():
    logits = random_logits(3)
    assert draws(logits * 100, 50, temperature=1e-4)[logits.argmax()] == 1


TOKENS = st.lists(st.integers(0, 11), max_size=12).map(tuple)
BIASES = st.lists(st.tuples(st.integers(0, 11), st.floats(-100, 100)), max_size=4).map(tuple)


@given(
    st.integers(0, 10**6), TOKENS, TOKENS, st.floats(0.1, 10), st.floats(-2, 2), st.floats(-2, 2), BIASES, st.integers(0, 14)
)
@settings(max_examples=300)
def test_penalties_biases_and_bans_beside_the_reference(
    seed: int,
    prompt: tuple[int, ...],
    said: tuple[int, ...],
    repetition: float,
    presence: float,
    frequency: float,
    bias: tuple[tuple[int, float], ...],
    min_tokens: int,
):
    logits = random_logits(seed, 12)
    params: dict[str, Any] = {"repetition_penalty": repetition, "presence_penalty": presence, "frequency_penalty": frequency}
    sequence = row(said, (*prompt, 0), logit_bias=bias, min_tokens=min_tokens, stop_token_ids=(7,), **params)
    want = shaped(logits, sequence, (*END, 7) if len(said) < min_tokens else ())
    token = one(logits, sequence, END).token
    assert want[token] >= want.max() - 1e-3, "not the largest, beyond rounding"


def test_presence_and_frequency_look_at_the_answer_only_and_repetition_at_the_prompt_too():
    logits = np.array([2.0, 1.9, 0.0])
    assert one(logits, row((), (0,), presence_penalty=2.0, frequency_penalty=2.0)).token == 0
    assert one(logits, row((0,), (2,), presence_penalty=2.0)).token == 1
    assert one(logits, row((), (0,), repetition_penalty=1.5)).token == 1


def test_a_bias_can_force_and_forbid():
    logits = random_logits(1)
    assert one(logits, row(logit_bias=((17, 100.0),))).token == 17
    best = int(logits.argmax())
    assert one(logits, row(logit_bias=((best, -100.0),))).token == int(np.argsort(-logits)[1])
    assert draws(logits, 20, temperature=2.0, logit_bias=((17, 100.0),))[17] == 1


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_no_answer_ends_before_its_min_tokens(temperature: float):
    logits = np.full(10, -5.0)
    logits[list(END)], logits[7] = 20, 19
    params: dict[str, Any] = {"temperature": temperature, "min_tokens": 2, "stop_token_ids": (7,)}
    for seed in range(20):
        assert one(logits, row((1,), seed=seed, **params), END).token not in (*END, 7)
        assert one(logits, row((1, 1), seed=seed, **params), END).token in (*END, 7)


def test_a_seed_draws_the_same_in_any_company():
    logits = np.stack([random_logits(i) for i in range(9)])
    rows = [row((1, 2), seed=i, temperature=1.2, top_p=0.9 if i % 2 else 1.0) for i in range(9)]
    together = sample(logits, rows, END)
    assert together == [sample(logits[i : i + 1], [rows[i]], END)[0] for i in range(9)]
    order = [4, 1, 8, 0]
    assert sample(logits[order], [rows[i] for i in order], END) == [together[i] for i in order]


def test_seed_choice_and_position_each_change_the_draw():
    logits = np.zeros(10_000)
    first = row(seed=1, temperature=1.0)
    assert one(logits, first) == one(logits, row(seed=1, temperature=1.0))
    others = [row(seed=2, temperature=1.0), row(seed=1, choice=1, temperature=1.0), row((4,), seed=1, temperature=1.0)]
    assert one(logits, first).token not in {one(logits, other).token for other in others}


@pytest.mark.parametrize("seed", [0, -1, 2**63, 2**64 - 1, -(2**63)])
def test_any_whole_number_is_a_seed(seed: int):
    assert one(np.zeros(10), row(seed=seed, temperature=1.0)) == one(np.zeros(10), row(seed=seed, temperature=1.0))


@given(st.integers(0, 10**6), st.integers(0, 20), st.sampled_from([0.0, 1.0]))
def test_logprobs_are_the_models_own(seed: int, k: int, temperature: float):
    logits = random_logits(seed, 30, 5.0)
    chosen = one(logits, row(seed=seed, temperature=temperature, top_k=2, logprobs=k, logit_bias=((4, 5.0),)))
    wide = logits.astype(np.float64)
    want = wide - wide.max() - np.log(np.exp(wide - wide.max()).sum())
    assert chosen.logprob == pytest.approx(want[chosen.token], abs=1e-5)
    assert [token for token, _ in chosen.top] == np.argsort(-wide, kind="stable")[:k].tolist()
    assert [logprob for _, logprob in chosen.top] == pytest.approx(np.sort(want)[::-1][:k], abs=1e-5)


def test_more_logprobs_than_tokens_are_all_of_them():
    assert len(one(np.zeros(4), row(logprobs=4)).top) == 4


def test_no_logprobs_unless_asked():
    assert one(np.zeros(4), row()) == Sampled(0)


def test_logprobs_are_numbers_even_for_impossible_tokens():
    chosen = one(np.array([1.0, -np.inf, -np.inf]), row(logprobs=3))
    assert all(np.isfinite(logprob) for _, logprob in chosen.top)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf], ids=str)
def test_a_broken_row_costs_itself_only(temperature: float, broken: float):
    logits = np.stack([random_logits(i) for i in range(3)])
    rows = [row(seed=i, temperature=temperature) for i in range(3)]
    well = sample(logits, rows, END)
    sick = logits.copy()
    sick[1] = broken
    got = sample(sick, rows, END)
    assert isinstance(got[1], BrokenLogits) and (got[0], got[2]) == (well[0], well[2])


@pytest.mark.parametrize("broken", [np.nan, np.inf], ids=str)
def test_one_broken_number_breaks_the_row(broken: float):
    logits = random_logits(0)
    logits[11] = broken
    assert isinstance(sample(logits[None], [row()], END)[0], BrokenLogits)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_impossible_tokens_are_no_fault_and_never_come(temperature: float):
    logits = np.full(20, -np.inf)
    logits[[4, 9]] = 1.0, 1.1
    for seed in range(30):
        assert one(logits, row(seed=seed, temperature=temperature)).token in (4, 9)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_ban_on_all_that_is_left_is_a_failure_of_the_row(temperature: float):
    logits = np.full((1, 10), -np.inf, np.float32)
    logits[0, END[0]] = 1
    (chosen,) = sample(logits, [row(min_tokens=1, temperature=temperature)], END)
    assert isinstance(chosen, BrokenLogits)


def test_the_models_logits_are_left_as_they_are():
    logits = random_logits(2)[None].astype(np.float32)
    before = logits.copy()
    sequence = row((1, 2), temperature=0.7, top_p=0.9, repetition_penalty=2.0, logit_bias=((1, 3.0),), min_tokens=9, logprobs=2)
    sampler.sample(StepOutput.of(logits), 0, sequence, END)
    params = replace(sequence.request.sampling, top_p=1.0)
    assert (logits == before).all() and params.top_p == 1.0


def test_a_token_that_the_device_drew_is_taken_and_where_it_drew_none_the_host_chooses():
    logits = np.stack([random_logits(2), random_logits(3)]).astype(np.float32)
    result = replace(StepOutput.of(logits), drawn=np.array([17, -1], np.int32))
    assert sampler.sample(result, 0, row((1, 2), temperature=1.0), END) == Sampled(17)
    assert sampler.sample(result, 1, row((1, 2), temperature=1.0, top_k=1), END) == Sampled(int(logits[1].argmax()))
    broken = replace(result, finite=np.array([False, True]))
    with pytest.raises(BrokenLogits):
        sampler.sample(broken, 0, row((1, 2), temperature=1.0), END)
