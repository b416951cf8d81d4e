"""Norms, activations, rotation and KV write: what the reference says, up to roundings, on any shape a decoder has."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from baseload.kernels import reference
from baseload.kernels.triton import activation, rms_norm, rotate_and_write

FEW = settings(max_examples=12, deadline=None)
widths = st.sampled_from([1, 5, 64, 96, 576, 1000])
dtypes = st.sampled_from([torch.float32, torch.float16, torch.bfloat16])


@FEW
@given(rows=st.integers(0, 5), width=widths, dtype=dtypes, seed=st.integers(0, 99))
def test_rms_norm_is_its_formula(kit, rows, width, dtype, seed):
    x, w = kit.randn(rows, width, seed=seed, dtype=dtype), kit.randn(width, seed=seed + 1, dtype=dtype)
    kit.near(rms_norm.rms_norm(x, w, 1e-5), reference.rms_norm(x.double(), w.double(), 1e-5), dtype)


@FEW
@given(rows=st.integers(1, 5), width=widths, dtype=dtypes, seed=st.integers(0, 99))
def test_the_residual_moves_on_in_place(kit, rows, width, dtype, seed):
    x, branch = kit.randn(rows, width, seed=seed, dtype=dtype), kit.randn(rows, width, seed=seed + 1, dtype=dtype)
    w, total = kit.randn(width, seed=seed + 2, dtype=dtype), x + branch
    found = rms_norm.add_rms_norm(x, branch, w, 1e-6)
    kit.near(x, total, dtype, 1)  # the stream itself; the interpreter cuts bfloat16 where a GPU rounds
    kit.near(found, reference.rms_norm(x.double(), w.double(), 1e-6), dtype)


def test_rms_norm_takes_rows_out_of_a_wider_tensor(kit):
    wide, w = kit.randn(3, 40), kit.randn(8, seed=1)
    kit.near(rms_norm.rms_norm(wide[:, 16:24], w, 1e-5), reference.rms_norm(wide[:, 16:24], w, 1e-5), torch.float32)


@FEW
@given(rows=st.integers(0, 4), width=widths, dtype=dtypes, gelu=st.booleans(), seed=st.integers(0, 99))
def test_activations_are_their_formulas(kit, rows, width, dtype, gelu, seed):
    x = kit.randn(rows, 2 * width, seed=seed, dtype=dtype) * 4
    ours, exact = ((m.gelu_tanh_mul if gelu else m.silu_mul) for m in (activation, reference))
    kit.near(ours(x), exact(x.double()), dtype)


def test_activations_of_large_numbers_stay_numbers(kit):
    x = torch.tensor([[-1e4, 1e4, -60000.0, 1.0, 1.0, 1.0]], device=kit.device)
    for act in (activation.silu_mul, activation.gelu_tanh_mul):
        assert act(x).tolist() == [[0.0, 1e4, 0.0]]


@FEW
@given(
    tokens=st.integers(1, 4),
    shape=st.sampled_from([(1, 1, 2), (4, 2, 16), (3, 1, 80), (8, 8, 64), (9, 3, 64)]),
    normed=st.booleans(),
    dtype=dtypes,
    seed=st.integers(0, 99),
)
def test_heads_are_normed_rotated_and_written(kit, tokens, shape, normed, dtype, seed):
    n_heads, n_kv, dim = shape
    heads = kit.randn(tokens, n_heads + 2 * n_kv, dim, seed=seed, dtype=dtype)
    norms = (kit.randn(dim, seed=seed + 1, dtype=dtype), kit.randn(dim, seed=seed + 2, dtype=dtype)) if normed else None
    positions = torch.randint(0, 1000, (tokens,), generator=torch.Generator().manual_seed(seed)).to(kit.device)
    rope = reference.rope_tables(positions, dim, 1e4, 1.0, (), torch.float32)
    slots = torch.randperm(7, generator=torch.Generator().manual_seed(seed))[:tokens].to(kit.device)
    slots[0] = -1
    pool = torch.full((8, 2, n_kv, dim), 7.0, device=kit.device, dtype=dtype)
    exact, kept = heads.double(), torch.full(pool.shape, 7.0, device=kit.device, dtype=torch.float64)
    wide = None if norms is None else (norms[0].double(), norms[1].double())
    double = reference.Rope(rope.cos.double(), rope.sin.double())
    expected = reference.rotate_and_write(exact, wide, 1e-6, double, kept, slots.where(slots >= 0, 7))
    found = rotate_and_write.rotate_and_write(heads, norms, 1e-6, rope, pool, slots)
    kit.near(found, expected, dtype, 8)
    assert pool[7].eq(7.0).all(), "padding is written nowhere"
    kit.near(pool[:7], kept[:7], dtype, 8)


def test_values_go_through_as_they_are(kit):
    heads = kit.randn(2, 4, 8)
    pool = torch.zeros(4, 2, 1, 8, device=kit.device)
    rope = reference.rope_tables(torch.tensor([5, 9], device=kit.device), 8, 1e4, 1.0, (), torch.float32)
    rotate_and_write.rotate_and_write(heads, None, 1e-6, rope, pool, torch.tensor([3, 1], device=kit.device))
    assert pool[3, 1, 0].equal(heads[0, 3]) and pool[1, 1, 0].equal(heads[1, 3]) and pool[[0, 2]].eq(0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_position_zero_is_not_turned(kit, dtype):
    heads = kit.randn(1, 3, 16, dtype=dtype)
    before = heads.clone()
    pool = torch.zeros(1, 2, 1, 16, device=kit.device, dtype=dtype)
    zero = torch.zeros(1, dtype=torch.int64, device=kit.device)
    rope = reference.rope_tables(zero, 16, 1e4, 1.0, (), torch.float32)
    assert rotate_and_write.rotate_and_write(heads, None, 1e-6, rope, pool, zero).equal(before[:, :1])
