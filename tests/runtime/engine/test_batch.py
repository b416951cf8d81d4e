"""The arrays of a step say what the plan says."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from baseload.runtime.engine.batch import build_batch


def test_a_decode_and_a_chunk_lie_end_to_end(sequence):
    decode, chunk = sequence([5, 6, 7, 8, 9]), sequence([1, 2, 3, 4, 5, 6, 7])
    decode.computed, chunk.computed = 4, 2
    decode.pages.extend([3, 1])
    chunk.pages.extend([2, 0, 9])
    batch = build_batch([(decode, 1), (chunk, 3)], page_size=4)
    assert batch.tokens.tolist() == [9, 3, 4, 5]
    assert batch.positions.tolist() == [4, 2, 3, 4]
    assert batch.slots.tolist() == [4, 10, 11, 0]
    assert batch.row_starts.tolist() == [0, 1, 4]
    assert batch.context_lens.tolist() == [5, 5]
    assert batch.page_tables.tolist() == [[3, 1, 0], [2, 0, 9]]
    assert batch.logit_rows.tolist() == [0], "the chunk ends before its prompt does"
    assert batch.full_logits.tolist() == [True]
    others = ("page_size", "wants_states", "draws")
    dtypes = {name: getattr(batch, name).dtype for name in batch.__slots__ if name not in others}
    assert dtypes.pop("full_logits") == np.bool_
    assert dtypes.pop("slots") == np.int64 and set(dtypes.values()) == {np.dtype(np.int32)}


@pytest.mark.parametrize(
    ("sampling", "full"),
    [
        ({}, False),
        ({"temperature": 0.7}, True),
        ({"logprobs": 0}, True),
        ({"repetition_penalty": 1.1}, True),
        ({"presence_penalty": 0.1}, True),
        ({"frequency_penalty": -0.1}, True),
        ({"logit_bias": ((1, 1.0),)}, True),
        ({"min_tokens": 3}, True),
        ({"min_tokens": 2}, False),
        ({"top_p": 0.5, "top_k": 3, "min_p": 0.1, "seed": 3, "stop": ("a",)}, False),
    ],
)
def test_a_greedy_row_that_nothing_bends_needs_no_logits(sequence, sampling: dict[str, Any], full: bool):
    s = sequence([1, 2, 3], output=[4, 5], **{"temperature": 0.0, **sampling})
    s.computed = 4
    s.pages.append(0)
    assert build_batch([(s, 1)], page_size=8).full_logits.tolist() == [full]


@given(st.data())
def test_any_plan(sequence, data: st.DataObject):
    size, plan, next_page = data.draw(st.integers(1, 5)), [], 0
    for _ in range(data.draw(st.integers(1, 5))):
        s = sequence(data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=20)))
        s.computed = data.draw(st.integers(0, len(s.tokens) - 1))
        n = data.draw(st.integers(1, s.missing))
        n_pages = -(-(s.computed + n) // size)
        s.pages.extend(range(next_page, next_page + n_pages))
        next_page += n_pages
        plan.append((s, n))
    batch = build_batch(plan, size)
    at, wanted = 0, []
    for row, (s, n) in enumerate(plan):
        assert (batch.row_starts[row], batch.row_starts[row + 1], batch.context_lens[row]) == (at, at + n, s.computed + n)
        for i in range(n):
            position = s.computed + i
            assert batch.tokens[at] == s.tokens[position] and batch.positions[at] == position
            assert batch.slots[at] == s.pages[position // size] * size + position % size
            at += 1
        wanted += [at - 1] if s.computed + n == len(s.tokens) else []
    assert batch.logit_rows.tolist() == wanted


def test_draws_are_asked_of_the_device_where_it_can_make_them(sequence):
    warm = sequence([5, 6], temperature=0.7, top_k=4, top_p=0.5, min_p=0.25, seed=9, choice=1)
    same = sequence([5, 6], temperature=0.7, seed=9)
    cold, shaped = sequence([5], temperature=0.0), sequence([5], temperature=1.0, repetition_penalty=1.5)
    told, early = sequence([5], temperature=1.0, logprobs=2), sequence([5], temperature=1.0, min_tokens=2)
    warm.guessed = [8, 9]
    plan = [(s, s.missing) for s in (warm, same, cold, shaped, told, early)]
    for s, _ in plan:
        s.pages.append(0)
    batch = build_batch(plan, 16, draws_on_device=True)
    assert batch.draws is not None
    assert batch.draws.wanted.tolist() == [True] * 4 + [False] * 4
    assert batch.full_logits.tolist() == [False] * 5 + [True] * 3, "the others' logits come to the host, but of the greedy one"
    assert batch.draws.positions.tolist()[:4] == [2, 3, 4, 2], "a guess is drawn where it would stand"
    assert batch.draws.top_k.tolist()[:4] == [4, 4, 4, 0] and batch.draws.min_p.tolist()[:4] == [0.25] * 3 + [0]
    keys = batch.draws.keys.tolist()
    assert keys[0] == keys[1] == keys[2] != keys[3], "one seed's choices part ways"
    assert build_batch([(cold, 1)], 16, draws_on_device=True).draws is None
    assert build_batch(plan, 16).draws is None
