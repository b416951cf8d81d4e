"""Paged attention against one query and one head at a time in float64, on any ragged batch."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from baseload.kernels.spec import StepBatch
from baseload.kernels.triton import attention_plan
from baseload.kernels.triton.attention import paged_attention
from baseload.kernels.triton.attention_plan import plan_attention, segments


def lay_out(rows: list[tuple[int, int]], page_size: int, seed: int) -> StepBatch:
    """A step whose row r computes rows[r][0] queries at the end of a sequence of rows[r][1] tokens, in scattered pages."""
    needed = [-(-context // page_size) for _, context in rows]
    pages = np.random.default_rng(seed).permutation(sum(needed))
    tables = np.zeros((len(rows), max(needed)), np.int32)
    for r, (begin, n) in enumerate(zip(np.cumsum([0, *needed]), needed, strict=False)):
        tables[r, :n] = pages[begin : begin + n]
    starts = np.cumsum([0] + [n for n, _ in rows]).astype(np.int32)
    positions = [np.arange(context - n, context) for n, context in rows]
    slots = [tables[r][p // page_size] * page_size + p % page_size for r, p in enumerate(positions)]
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


def owned(batch: StepBatch, r: int) -> np.ndarray:
    """The slots of row r's tokens, in order."""
    p = np.arange(batch.context_lens[r])
    return batch.page_tables[r][p // batch.page_size] * batch.page_size + p % batch.page_size


def naive(q: torch.Tensor, pool: torch.Tensor, batch: StepBatch, window: int, scale: float, cap: float) -> torch.Tensor:
    """[T, H * D] in float64."""
    q, group = q.double().cpu(), q.shape[1] // pool.shape[2]
    out = torch.zeros(q.shape, dtype=torch.float64)
    for r, context in enumerate(batch.context_lens.tolist()):
        kv = pool[torch.from_numpy(owned(batch, r)).long().to(pool.device)].double().cpu().repeat_interleave(group, 2)
        for t in range(*batch.row_starts[r : r + 2].tolist()):
            p = int(batch.positions[t])
            seen = slice(max(0, p - window + 1) if window else 0, min(p + 1, context))
            scores = torch.einsum("khd,hd->hk", kv[seen, 0], q[t]) * scale
            scores = cap * torch.tanh(scores / cap) if cap else scores
            out[t] = torch.einsum("hk,khd->hd", scores.softmax(-1), kv[seen, 1])
    return out.flatten(1)


def tensors(kit, batch: StepBatch, shape: tuple[int, int, int], dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """q and a pool whose slots that no row owns hold NaN."""
    n_heads, n_kv, dim = shape
    pages = sum(-(-int(c) // batch.page_size) for c in batch.context_lens) + 2
    pool = torch.full((pages * batch.page_size + 1, 2, n_kv, dim), torch.nan, dtype=dtype, device=kit.device)
    for r in range(len(batch.context_lens)):
        slots = torch.from_numpy(owned(batch, r)).long().to(kit.device)
        pool[slots] = kit.randn(len(slots), 2, n_kv, dim, seed=r, dtype=dtype)
    return kit.randn(len(batch.tokens), n_heads, dim, seed=99, dtype=dtype), pool


def attend(q: torch.Tensor, pool: torch.Tensor, batch: StepBatch, window: int = 0, cap: float = 0.0) -> torch.Tensor:
    return paged_attention(q, pool, plan_attention(batch, window, pool), 0.3, cap).cpu()


@st.composite
def ragged(draw: st.DrawFn) -> list[tuple[int, int]]:
    """(queries, context) of each row: decode rows, chunks, whole prompts."""
    rows = []
    for _ in range(draw(st.integers(1, 4))):
        context = draw(st.integers(1, 90))
        rows.append((draw(st.one_of(st.just(1), st.integers(1, min(context, 20)))), context))
    return rows


@settings(max_examples=12, deadline=None)
@given(
    rows=ragged(),
    shape=st.sampled_from([(1, 1, 16), (4, 2, 32), (6, 2, 16), (3, 3, 24), (7, 1, 16)]),
    page_size=st.sampled_from([1, 16, 32]),
    window=st.sampled_from([0, 0, 1, 7, 40]),
    cap=st.sampled_from([0.0, 0.0, 3.0]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    least=st.sampled_from([2, 256]),
)
def test_any_ragged_batch(kit, rows, shape, page_size, window, cap, dtype, least):
    batch = lay_out(rows, page_size, seed=len(rows))
    q, pool = tensors(kit, batch, shape, dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention_plan, "LEAST_KEYS", least)  # 2: short rows are cut into segments too
        found = attend(q, pool, batch, window, cap)
    kit.near(found, naive(q, pool, batch, window, 0.3, cap), dtype, 8)


def test_a_row_is_the_same_in_any_company(kit, monkeypatch):
    monkeypatch.setattr(attention_plan, "LEAST_KEYS", 8)
    monkeypatch.setattr(attention_plan, "PROGRAMS", 10**6)  # the number of segments follows the number of rows; not here
    alone, company = lay_out([(1, 70)], 16, seed=1), lay_out([(1, 70), (5, 20), (1, 3), (1, 60)], 16, seed=2)
    q, pool = tensors(kit, alone, (4, 2, 32), torch.float32)
    others, wide = tensors(kit, company, (4, 2, 32), torch.float32)
    others[0] = q[0]
    assert attend(q, pool, alone)[0].equal(attend(others, wide, company)[0])


def test_a_rows_broken_numbers_stay_its_own(kit):
    batch = lay_out([(1, 30), (6, 20), (1, 9)], 16, seed=3)
    q, pool = tensors(kit, batch, (2, 1, 16), torch.float32)
    sound = attend(q, pool, batch)
    pool[torch.from_numpy(owned(batch, 1)).long().to(kit.device)] = torch.nan
    broken = attend(q, pool, batch)
    assert broken[[0, 7]].equal(sound[[0, 7]]) and broken[1:7].isnan().all()


def test_a_padding_row_without_keys_gives_zeros(kit):
    batch = lay_out([(1, 30), (1, 1)], 16, seed=3)
    q, pool = tensors(kit, batch, (2, 1, 16), torch.float32)
    batch.context_lens[1] = 0
    assert attend(q, pool, batch)[1].eq(0).all()


def test_few_rows_with_many_keys_are_cut_and_many_rows_are_not():
    assert segments(1, 8, 8192) == 16
    assert segments(1, 8, 300) == 1 and segments(512, 8, 8192) == 1
    assert segments(8, 8, 8192) * 8 * 8 >= attention_plan.PROGRAMS
