"""Guessing ahead changes how many steps an answer takes, and nothing else."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baseload.runtime.engine.config import EngineConfig
from baseload.runtime.engine.speculative import Guesses, observe, propose

MOST = EngineConfig().max_guess


def proposed(text: str, most: int = 8, n_rows: int = 1, kept_share: float = 0.9) -> str:
    guesses = Guesses(kept_share=kept_share)
    return "".join(map(chr, propose(guesses, [ord(c) for c in text], most, n_rows)))


def test_what_followed_the_last_time_is_proposed_again():
    assert proposed("the cat sat on the mat, the cat ", most=6) == "sat on"


def test_the_longest_and_then_the_latest_occurrence_counts():
    assert proposed("abcd1 xxcd2 abcd", most=1) == "1"
    assert proposed("cd1 cd2 cd3 cd", most=1) == "3"


def test_a_text_that_goes_round_goes_on_going_round():
    assert proposed("one two one two one two ", most=8) == "one two "
    assert proposed("aaaa", most=5) == "aaaaa"


@pytest.mark.parametrize("text", ["", "a", "ab", "abc", "the quick brown fox"])
def test_where_nothing_occurred_before_nothing_is_proposed(text: str):
    assert proposed(text) == ""


@given(st.lists(st.integers(0, 3), max_size=40), st.integers(0, 12))
def test_a_proposal_continues_an_earlier_occurrence_of_the_end(tokens: list[int], most: int):
    found = propose(Guesses(kept_share=0.98), tokens, most, 1)
    assert len(found) <= most
    if found:
        n = next(n for n in (4, 3, 2) if any(tokens[i : i + n] == tokens[-n:] for i in range(len(tokens) - n)))
        places = [i + n for i in range(len(tokens) - n) if tokens[i : i + n] == tokens[-n:]]
        assert found[0] == tokens[places[-1]]


@given(st.lists(st.integers(0, 2**31 - 1), max_size=30), st.integers(0, 5))
def test_any_token_id_fits(tokens: list[int], repeats: int):
    propose(Guesses(), tokens * repeats, 5, 1)


def test_who_guesses_wrong_stops_and_tries_again_much_later():
    guesses, tokens = Guesses(), [1, 2, 3, 4] * 5
    tries = []
    for _ in range(200):
        found = propose(guesses, tokens, 8, 1)
        tries.append(bool(found))
        if found:
            observe(guesses, len(found), 0)
    assert sum(tries[:10]) <= 5 and 0 < sum(tries[10:]) < 40


def test_who_guesses_right_proposes_more():
    guesses, tokens = Guesses(), [1, 2, 3, 4] * 5
    first = len(propose(guesses, tokens, 8, 1))
    for _ in range(5):
        observe(guesses, 3, 3)
    assert 0 < first < len(propose(guesses, tokens, 8, 1)) == MOST


def test_a_full_batch_guesses_less():
    lengths = [len(propose(Guesses(kept_share=0.9), [1, 2, 3, 4] * 9, 8, rows)) for rows in (1, 4, 16, 64)]
    assert lengths == sorted(lengths, reverse=True) and lengths[0] == 8 and lengths[-1] == 0


# --------------------------------------------------------------------------------------------------- in the engine


def cycling(period: int):
    """An answer that repeats itself, with a stumble now and then."""

    def answer(context):
        n = len(context)
        return 97 + (n % period) if n % 17 else 65

    return answer


@pytest.mark.parametrize("sampling", [{}, {"stop": ("cdA",)}, {"min_tokens": 30}, {"logprobs": 2}, {"stop_token_ids": (99,)}])
def test_the_same_text_in_fewer_steps(bench, sampling):
    texts, steps = [], []
    for most in (0, 8):
        b = bench(cycling(4), max_guess=most)
        b.submit("a", "hello", max_tokens=60, **sampling)
        b.finish()
        outputs = b.outputs["a"]
        texts.append((b.text("a"), [o.token_ids for o in outputs if most == 0], outputs[-1].finish, outputs[-1].matched_stop))
        steps.append(b.core.steps)
        if most:
            tokens = [token for o in outputs for token in o.token_ids]
            assert len(tokens) == b.core.generation_tokens
            assert [lp.token_id for o in outputs for lp in o.logprobs] == (tokens if "logprobs" in sampling else [])
    assert texts[0][0] == texts[1][0] and texts[0][2:] == texts[1][2:]
    assert steps[1] < steps[0] or len(texts[0][0]) < 10


def noisy(context):
    """Logits that depend on the context, with a wide choice."""
    return np.random.default_rng([7, *context[-3:]]).standard_normal(256).astype(np.float32) * 3


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.1, 1.5), st.floats(-1, 1), st.integers(2, 30))
def test_a_seed_says_the_same_with_and_without(bench, seed: int, temperature: float, penalty: float, pages: int):
    """Sampled text too: each position has its own random number, guessed or not. Small pools and company included."""
    texts = []
    for most in (0, 8):
        b = bench(noisy, max_guess=most, n_pages=pages + 12)
        b.submit(
            "a", "abcabcabc", max_tokens=30, seed=seed, temperature=temperature, frequency_penalty=penalty, ignore_eos=True
        )
        b.submit("b", "xyzxyz", max_tokens=20, seed=seed + 1, temperature=temperature, ignore_eos=True)
        b.finish()
        texts.append([[t for o in b.outputs[name] for t in o.token_ids] for name in "ab"])
    assert texts[0] == texts[1]


def test_what_is_kept_is_counted(bench):
    b = bench(lambda context: 97 + len(context) % 3, max_guess=8)
    b.submit("a", "hello", max_tokens=80)
    b.finish()
    assert 0 < b.core.kept_tokens <= b.core.guessed_tokens
    assert b.core.steps + b.core.kept_tokens == 80
