"""Each operation against its formula written out in numpy float64, on shapes and layouts that a step really has."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from baseload.kernels import paged_attention as attention
from baseload.kernels import reference as ops
from baseload.kernels.spec import StepBatch
from baseload.kernels.torch_kernels import choose

EPS = float(np.finfo(np.float32).eps)


def randn(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def near(ours: torch.Tensor, theirs: NDArray, terms: int = 1) -> None:
    """Equal up to `terms` float32 roundings of the largest value, times a margin of 8."""
    theirs = np.asarray(theirs)
    bound = 8 * EPS * math.sqrt(terms) * max(1.0, float(np.abs(theirs).max(initial=0)))
    np.testing.assert_allclose(ours.double().numpy(), theirs, atol=bound, rtol=0)


# --- linear, embedding, norms, activations -------------------------------------------------------------------------------


def test_linear_with_and_without_bias():
    x, w, b = randn(5, 33), randn(7, 33, seed=1), randn(7, seed=2)
    exact = x.astype(np.float64) @ w.T.astype(np.float64)
    near(ops.linear(torch.from_numpy(x), torch.from_numpy(w)), exact, 33)
    near(ops.linear(torch.from_numpy(x), torch.from_numpy(w), torch.from_numpy(b)), exact + b, 33)


def test_embedding_scales_a_copy():
    table = torch.from_numpy(randn(9, 4))
    before = table.clone()
    tokens = torch.tensor([3, 3, 8], dtype=torch.int32)
    near(ops.embed(tokens, table), before[[3, 3, 8]].numpy())
    near(ops.embed(tokens, table, 2.5), 2.5 * before[[3, 3, 8]].numpy())
    assert table.equal(before)


def test_rms_norm_and_its_residual():
    x, branch, w = (torch.from_numpy(a) for a in (randn(4, 64), randn(4, 64, seed=1), randn(64, seed=2)))
    total = x.double().numpy() + branch.double().numpy()
    exact = total / np.sqrt((total**2).mean(-1, keepdims=True) + 1e-5) * w.numpy()
    near(ops.rms_norm(x + branch, w, 1e-5), exact, 64)
    near(ops.add_rms_norm(x, branch, w, 1e-5), exact, 64)
    near(x, total)  # the residual stream itself has moved on


def test_rms_norm_of_zeros_is_zero():
    assert ops.rms_norm(torch.zeros(2, 8), torch.ones(8), 1e-6).eq(0).all()


def test_activations():
    x = randn(3, 20)
    gate, up = x[:, :10].astype(np.float64), x[:, 10:].astype(np.float64)
    near(ops.silu_mul(torch.from_numpy(x)), gate / (1 + np.exp(-gate)) * up)
    tanh = np.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3))
    near(ops.gelu_tanh_mul(torch.from_numpy(x)), 0.5 * gate * (1 + tanh) * up)


def test_softcap_bounds_and_zero_turns_it_off():
    x = torch.tensor([-1e6, -1.0, 0.0, 2.0, 1e6])
    near(ops.softcap(x, 5.0), 5 * np.tanh(x.double().numpy() / 5))
    assert ops.softcap(x, 0.0) is x


# --- rope and KV write ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("factor", "factors"), [(1.0, ()), (4.0, ()), (1.0, (1.0, 1.0, 2.0, 8.0))])
def test_rope_rotates_pairs_by_their_angle(factor, factors):
    positions, x = np.array([0, 1, 77, 4096]), randn(4, 3, 8)
    rope = ops.rope_tables(torch.from_numpy(positions), 8, 10000.0, factor, factors, torch.float32)
    rotated = torch.from_numpy(x.copy())
    ops.rope_(rotated, rope)
    frequency = 10000.0 ** -(np.arange(4) / 4) / factor / np.array(factors or (1.0,) * 4)
    turn = np.exp(1j * positions[:, None] * frequency)[:, None]
    exact = (x[..., :4] + 1j * x[..., 4:]) * turn
    angle_rounding = 4096  # an angle of 4096 rad has lost 12 bits in float32
    near(rotated, np.concatenate([exact.real, exact.imag], -1), angle_rounding**2)
    assert rotated[0].equal(torch.from_numpy(x[0])), "position 0 is not turned"


def test_write_kv_touches_its_slots_only():
    pool, kv = torch.zeros(10, 2, 3, 4), torch.from_numpy(randn(2, 2, 3, 4))
    ops.write_kv(pool, torch.tensor([7, 2]), kv)
    assert pool[7].equal(kv[0]) and pool[2].equal(kv[1])
    assert pool[[0, 1, 3, 4, 5, 6, 8, 9]].eq(0).all()


# --- paged attention -----------------------------------------------------------------------------------------------------


def lay_out(rows: list[tuple[int, int]], page_size: int, scattered: bool, seed: int) -> StepBatch:
    """A step whose row r computes rows[r][0] queries at the end of a sequence of rows[r][1] tokens."""
    needed = [-(-context // page_size) for _, context in rows]
    pages = np.arange(sum(needed))
    if scattered:
        pages = np.random.default_rng(seed).permutation(pages)
    tables = np.zeros((len(rows), max(needed)), np.int32)
    for r, (begin, n) in enumerate(zip(np.cumsum([0, *needed]), needed, strict=False)):
        tables[r, :n] = pages[begin : begin + n]
    positions = [np.arange(context - n, context) for n, context in rows]
    slots = [tables[r][p // page_size] * page_size + p % page_size for r, p in enumerate(positions)]
    starts = np.cumsum([0] + [n for n, _ in rows]).astype(np.int32)
    return StepBatch(
        tokens=np.zeros(starts[-1], np.int32),
        positions=np.concatenate(positions).astype(np.int32),
        slots=np.concatenate(slots).astype(np.int64),
        row_starts=starts,
        context_lens=np.array([context for _, context in rows], np.int32),
        page_tables=tables,
        logit_rows=starts[1:] - 1,
        full_logits=np.ones(len(rows), np.bool_),
        page_size=page_size,
    )


def naive(q: NDArray, pool: NDArray, batch: StepBatch, window: int, scale: float, cap: float) -> NDArray:
    """Attention one query and one head at a time, in float64."""
    out = np.zeros(q.shape)
    heads_per_key = q.shape[1] // pool.shape[2]
    for r in range(len(batch.context_lens)):
        for t in range(batch.row_starts[r], batch.row_starts[r + 1]):
            p = int(batch.positions[t])
            seen = np.arange(max(0, p - window + 1) if window else 0, p + 1)
            kv = pool[batch.page_tables[r][seen // batch.page_size] * batch.page_size + seen % batch.page_size]
            for h in range(q.shape[1]):
                scores = kv[:, 0, h // heads_per_key].astype(np.float64) @ q[t, h] * scale
                scores = cap * np.tanh(scores / cap) if cap else scores
                weights = np.exp(scores - scores.max())
                out[t, h] = weights / weights.sum() @ kv[:, 1, h // heads_per_key]
    return out.reshape(len(q), -1)


def attend(batch: StepBatch, window: int, cap: float = 0.0, heads: int = 6) -> tuple[torch.Tensor, NDArray]:
    """Our answer and the naive one on random numbers; slots that no row owns hold NaN."""
    pages = int(batch.page_tables.max()) + 3
    pool = np.full((pages * batch.page_size + 1, 2, 2, 16), np.nan, np.float32)
    pool[-1] = 0
    for r, context in enumerate(batch.context_lens):
        p = np.arange(context)
        owned = batch.page_tables[r][p // batch.page_size] * batch.page_size + p % batch.page_size
        pool[owned] = randn(int(context), 2, 2, 16, seed=r)
    q = randn(len(batch.tokens), heads, 16, seed=99)
    layer = torch.from_numpy(pool)
    plan = ops.plan_attention(batch, window, layer)
    return ops.paged_attention(torch.from_numpy(q), layer, plan, 0.3, cap), naive(q, pool, batch, window, 0.3, cap)


row_shapes = st.integers(1, 60).flatmap(lambda context: st.tuples(st.integers(1, context), st.just(context)))
decode_rows = st.tuples(st.just(1), st.integers(1, 60))


@settings(max_examples=120, deadline=None)
@given(
    rows=st.lists(st.one_of(decode_rows, decode_rows, row_shapes), min_size=1, max_size=9),
    page_size=st.sampled_from([1, 4, 16]),
    window=st.sampled_from([0, 0, 1, 5, 32]),
    cap=st.sampled_from([0.0, 0.0, 1.5]),
    scattered=st.booleans(),
    seed=st.integers(0, 9),
)
def test_attention_of_any_mixture(rows, page_size, window, cap, scattered, seed):
    """Every mixture of decode rows and chunks, window, soft-cap and page order; strangers' NaN next door reaches nobody."""
    ours, exact = attend(lay_out(rows, page_size, scattered, seed), window, cap)
    near(ours, exact, 64)


def test_a_decode_row_alone_reads_its_pages_without_a_copy():
    batch = lay_out([(1, 50), (7, 20)], 8, scattered=False, seed=0)
    pool = torch.zeros(200, 2, 2, 16)
    plan = ops.plan_attention(batch, 0, pool)
    assert not plan.groups
    assert [chunk.slots for chunk in plan.chunks] == [slice(0, 50), slice(56, 76)]


def test_decode_rows_of_like_length_share_a_group_and_a_long_one_stays_out():
    batch = lay_out([(1, 20), (1, 400), (1, 17), (1, 20)], 4, scattered=True, seed=0)
    pool = torch.zeros(2000, 2, 2, 16)
    plan = ops.plan_attention(batch, 0, pool)
    assert [group.tokens.tolist() for group in plan.groups] == [[0, 3, 2]]
    assert [(chunk.start, chunk.end) for chunk in plan.chunks] == [(1, 2)]
    assert plan.groups[0].slots.view(3, 20)[2, 17:].eq(len(pool) - 1).all(), "padding points at the slot of zeros"


def test_a_group_never_gathers_more_than_the_cache_holds(monkeypatch):
    monkeypatch.setattr(attention, "GROUP_BYTES", 50 * 2 * 2 * 16 * 4)  # 50 keys
    batch = lay_out([(1, 20)] * 5, 4, scattered=True, seed=0)
    plan = ops.plan_attention(batch, 0, torch.zeros(2000, 2, 2, 16))
    assert [len(group.tokens) for group in plan.groups] == [2, 2]
    near(*attend(batch, 0), terms=64)


@pytest.mark.parametrize("window", [0, 9])
def test_long_chunks_are_cut_so_that_masks_stay_small(monkeypatch, window):
    monkeypatch.setattr(attention, "MASK_LIMIT", 200)
    batch = lay_out([(30, 60), (1, 3), (25, 25)], 4, scattered=True, seed=0)
    plan = ops.plan_attention(batch, window, torch.zeros(400, 2, 2, 16))
    assert all(chunk.mask is None or chunk.mask.numel() <= 200 for chunk in plan.chunks)
    near(*attend(batch, window), terms=64)


# --- sampling helpers and dispatch ---------------------------------------------------------------------------------------


def test_log_softmax_is_float32_and_stable():
    logits = torch.tensor([[1000.0, 999.0, -1000.0]]).bfloat16()
    found = ops.log_softmax(logits)
    x = logits.double().numpy()
    near(found, x - x.max() - np.log(np.exp(x - x.max()).sum()))
    assert found.dtype == torch.float32


def test_top_k_is_ordered_and_never_asks_for_more_than_there_is():
    values, indices = ops.top_k(torch.tensor([[1.0, 5.0, 3.0]]), 2)
    assert values.tolist() == [[5.0, 3.0]] and indices.tolist() == [[1, 2]]
    assert ops.top_k(torch.zeros(1, 3), 9)[0].shape == (1, 3)


def test_dispatch_says_what_it_chose():
    kernels = choose("cpu", "bfloat16")
    assert kernels.ops is ops and kernels.dtype == torch.bfloat16
    for part in ("reference", "cpu", "bfloat16", "threads", torch.__version__):
        assert part in kernels.describe()


@pytest.mark.parametrize(("device", "dtype"), [("cpu", "int7"), ("cuda:99", "float32"), ("abacus", "float32")])
def test_what_is_not_to_be_had_is_refused_in_one_line(device, dtype):
    with pytest.raises(ValueError, match=device if device != "cpu" else dtype) as caught:
        choose(device, dtype)
    assert "\n" not in str(caught.value)
