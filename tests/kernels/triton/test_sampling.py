"""Draws against runtime/engine/sampler.py's own distribution: the tokens that it keeps, at the places where it keeps them."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from baseload.kernels.triton import shaping
from baseload.kernels.triton.sampling import sample, uniforms
from baseload.runtime.engine.sampler import _candidates
from baseload.wire.chat import SamplingParams

Row = tuple[float, int, float, float]  # temperature, top_k, top_p, min_p
PLAIN: Row = (1.0, 0, 1.0, 0.0)


def exact(logits: NDArray[np.float32], row: Row) -> NDArray[np.float64]:
    """The probability of each token, as the engine's sampler on the host has it."""
    temperature, top_k, top_p, min_p = row
    weights = np.exp((logits - logits.max()) * np.float32(1 / max(temperature, 1e-5)))
    weights[weights < np.float32(min_p)] = 0
    kept = np.zeros(len(weights))
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p)
    ids = _candidates(weights, params) if top_k or top_p < 1 else np.arange(len(weights))
    kept[ids] = weights[ids]
    return kept / kept.sum()


def draw(kit, logits: NDArray[np.float32], rows: list[Row], u: list[float]) -> tuple[list[int], list[int], list[bool]]:
    """(best, token, finite) of each row."""
    temperature, top_k, top_p, min_p = (torch.tensor(column, device=kit.device) for column in zip(*rows, strict=True))
    where = torch.tensor(u, device=kit.device, dtype=torch.float32)
    best, finite, token = sample(torch.from_numpy(logits).to(kit.device), temperature, top_k.int(), top_p, min_p, where)
    return best.tolist(), token.tolist(), finite.bool().tolist()


def falls_there(chance: NDArray[np.float64], token: int, u: float) -> bool:
    """Whether u lies in the token's part of the cumulative sum, up to float32 sums."""
    end = np.cumsum(chance)
    return chance[token] > 0 and end[token] - chance[token] - 1e-5 <= u <= end[token] + 1e-5


@settings(max_examples=12, deadline=None)
@given(
    vocab=st.sampled_from([2, 33, 120]),
    step=st.sampled_from([0.0, 0.5, 4.0]),  # coarse logits have many equals
    rows=st.lists(
        st.tuples(
            st.sampled_from([0.2, 1.0, 1.7]),
            st.sampled_from([0, 1, 3, 20, 500]),
            st.sampled_from([1.0, 0.95, 0.5, 1e-6]),
            st.sampled_from([0.0, 0.0, 0.05, 1.0]),
        ),
        min_size=1,
        max_size=4,
    ),
    u=st.lists(st.sampled_from([0.0, 0.13, 0.5, 0.77, 0.9999]), min_size=4, max_size=4),
    seed=st.integers(0, 50),
)
def test_a_draw_falls_where_the_hosts_distribution_has_it(kit, vocab, step, rows, u, seed):
    logits = np.random.default_rng(seed).standard_normal((len(rows), vocab)).astype(np.float32) * 3
    logits = np.round(logits / step) * np.float32(step) if step else logits
    best, token, finite = draw(kit, logits, rows, u[: len(rows)])
    assert best == logits.argmax(1).tolist() and all(finite)
    for r, row in enumerate(rows):
        assert falls_there(exact(logits[r], row), token[r], u[r])


def test_draws_over_a_grid_have_the_exact_frequencies(kit):
    """A grid of numbers hits each token as often as its probability says, give or take one."""
    logits, n, row = np.random.default_rng(7).standard_normal(9).astype(np.float32) * 2, 40, (0.8, 6, 0.97, 0.01)
    _, token, _ = draw(kit, np.tile(logits, (n, 1)), [row] * n, [(i + 0.5) / n for i in range(n)])
    assert (np.abs(np.bincount(token, minlength=9) - n * exact(logits, row)) <= 1 + 1e-4).all()


def test_among_equals_the_lowest_ids_stay(kit):
    _, token, _ = draw(kit, np.zeros((3, 20), np.float32), [(1.0, 4, 1.0, 0.0)] * 3, [0.0, 0.6, 0.999])
    assert token == [0, 2, 3]
    _, token, _ = draw(kit, np.zeros((2, 20), np.float32), [(1.0, 0, 0.25, 0.0)] * 2, [0.0, 0.999])
    assert token == [0, 4]


def test_temperature_zero_and_a_temperature_near_it_take_the_best(kit):
    logits = np.array([[1.0, 3.0, 3.0, 2.0]] * 2, np.float32)
    logits[1, 2] = 2.999
    best, token, _ = draw(kit, logits, [(0.0, 0, 1.0, 0.0), (1e-9, 0, 1.0, 0.0)], [0.9, 0.9])
    assert best == token == [1, 1]


def test_broken_rows_are_said_to_be_so_and_harm_no_other(kit):
    logits = np.tile(np.arange(5, dtype=np.float32), (4, 1))
    logits[0, 2], logits[1, 1], logits[2] = np.nan, np.inf, -np.inf
    _, token, finite = draw(kit, logits, [PLAIN] * 4, [0.999] * 4)
    assert finite == [False, False, False, True] and token[3] == 4


def test_random_numbers_depend_on_key_and_position_alone(kit):
    def numbers(pairs: list[tuple[int, int]]) -> list[float]:
        keys = torch.tensor([k for k, _ in pairs], device=kit.device)
        return uniforms(keys, torch.tensor([p for _, p in pairs], dtype=torch.int32, device=kit.device)).tolist()

    first = numbers([(5, 0), (5, 1), (6, 0), (2**62 + 5, 0)])
    assert len(set(first)) == 4 and all(0 <= x < 1 for x in first)
    assert numbers([(6, 0), (5, 0)]) == [first[2], first[0]]
    many = np.array(numbers([(9, p) for p in range(200)]))
    assert abs(many.mean() - 0.5) < 0.08 and len(set(many)) == 200


def test_a_mask_forbids_what_has_no_bit(kit):
    logits = torch.zeros(3, 70, device=kit.device)
    masks = torch.tensor([[5, 0, 1], [-(2**31), -1, 0]], dtype=torch.int32, device=kit.device)
    shaping.mask(logits, masks, torch.tensor([1, -1, 0], dtype=torch.int32, device=kit.device))
    allowed = [torch.isfinite(row).nonzero()[:, 0].tolist() for row in logits]
    assert allowed == [list(range(31, 64)), list(range(70)), [0, 2, 64]]


def test_penalties_biases_and_bans_touch_their_tokens_only(kit):
    logits = torch.tensor([[2.0, -2.0, 1.0, 4.0], [1.0, 1.0, 1.0, 1.0]], device=kit.device)
    changes = shaping.Changes(
        torch.tensor([0, 3, 3], dtype=torch.int32, device=kit.device),
        torch.tensor([0, 1, 3], dtype=torch.int32, device=kit.device),
        torch.tensor([2.0, 2.0, 1.0], device=kit.device),
        torch.tensor([0.0, -0.5, -torch.inf], device=kit.device),
    )
    shaping.change(logits, changes)
    assert logits.tolist() == [[1.0, -4.5, 1.0, -torch.inf], [1.0, 1.0, 1.0, 1.0]]
