"""Attention over paged keys and values: decode rows and chunks of prompts by one kernel, with grouped queries, a sliding
window and a soft-cap.

A program holds a block of queries of one row together with all heads that share one key head, as the rows of one tile, and
walks over the row's keys with a running softmax (Milakov & Gimelshein, arXiv 1805.02867; Dao, arXiv 2307.08691). A decode
row has one query, so there is little to do in parallel: its keys are cut into segments, each with a program of its own, and
a second kernel puts the segments' results together (Flash-Decoding). Cuts depend on the row's own length and the number of
segments, never on what else is in the batch.
"""
# pyright: reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false
# (kernels are in a language of their own, and a launch takes options that no signature has)

import torch
import triton
import triton.language as tl

from .attention_plan import DevicePlan, Launch, segments
from .launch import INTERPRETED, precision, upcast

TILE = 128  # query-and-head pairs that a program of a chunk holds; not yet measured
LOG2_E = 1.4426950408889634


@triton.jit(do_not_specialize=["n_blocks", "table_stride"])  # they change from step to step; each kind would be compiled
def _attend(
    q, pool, out, part, part_max, part_sum, row_starts, context_lens, page_tables, rows,
    q_stride, out_stride, slot_stride, table_stride, scale_log2, cap, window, n_blocks,
    N_KV: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr, DIMS: tl.constexpr, PAGE: tl.constexpr,
    QUERIES: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, SEGMENTS: tl.constexpr,
    CAPPED: tl.constexpr, WINDOWED: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A program: a block of queries, one key head, one segment of the keys. Tile row m is query m // GROUP, head m % GROUP."""
    block, kv_head, segment = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    row = tl.load(rows + block // n_blocks)
    first_query = block % n_blocks * QUERIES
    start = tl.load(row_starts + row)
    n_queries = tl.load(row_starts + row + 1) - start
    context = tl.load(context_lens + row)

    m = tl.arange(0, ROWS)
    d = tl.arange(0, DIMS)
    query = first_query + m // GROUP
    is_query = (m // GROUP < QUERIES) & (query < n_queries)
    position = context - n_queries + query  # of each tile row's query in its sequence
    token = (start + query).to(tl.int64)
    head = kv_head * GROUP + m % GROUP
    kept = is_query[:, None] & (d < DIM)[None]
    queries = tl.load(q + token[:, None] * q_stride + head[:, None] * DIM + d[None], mask=kept, other=0.0)
    if UPCAST:
        queries = queries.to(tl.float32)

    end = tl.minimum(context, context - n_queries + first_query + QUERIES)  # keys that any of the queries sees: begin .. end
    end = tl.where(first_query < n_queries, end, 0)
    begin = 0
    if WINDOWED:
        begin = tl.maximum(0, context - n_queries + first_query - window + 1) // KEYS * KEYS
    if SEGMENTS > 1:
        tiles = tl.cdiv(tl.cdiv(end - begin, KEYS), SEGMENTS)
        begin = begin + segment * tiles * KEYS
        end = tl.minimum(end, begin + tiles * KEYS)

    largest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    mixed = tl.zeros([ROWS, DIMS], tl.float32)
    n = tl.arange(0, KEYS)
    for low in range(begin, end, KEYS):
        key = low + n
        is_key = key < end
        page = tl.load(page_tables + row.to(tl.int64) * table_stride + key // PAGE, mask=is_key, other=0)
        source = (page.to(tl.int64) * PAGE + key % PAGE) * slot_stride + kv_head * DIM
        k = tl.load(pool + source[None, :] + d[:, None], mask=is_key[None, :] & (d < DIM)[:, None], other=0.0)
        v = tl.load(pool + source[:, None] + N_KV * DIM + d[None, :], mask=is_key[:, None] & (d < DIM)[None, :], other=0.0)
        if UPCAST:
            k, v = k.to(tl.float32), v.to(tl.float32)
        scores = tl.dot(queries, k, input_precision=PRECISION) * scale_log2
        if CAPPED:  # cap * tanh(s / cap), with s and cap in units of log 2
            scores = cap * (2.0 * tl.sigmoid(2.0 * scores / cap) - 1.0)
        seen = is_key[None, :] & (key[None, :] <= position[:, None])
        if WINDOWED:
            seen = seen & (key[None, :] > position[:, None] - window)
        scores = tl.where(seen, scores, float("-inf"))
        higher = tl.maximum(largest, tl.max(scores, 1))
        shift = tl.where(higher == float("-inf"), 0.0, higher)  # a row that has seen nothing yet
        weights = tl.exp2(scores - shift[:, None])
        shrink = tl.exp2(largest - shift)
        total = total * shrink + tl.sum(weights, 1)
        mixed = mixed * shrink[:, None] + tl.dot(weights.to(v.dtype), v, input_precision=PRECISION)
        largest = higher

    if SEGMENTS > 1:
        at = (token * (N_KV * GROUP) + head) * SEGMENTS + segment
        tl.store(part + at[:, None] * DIM + d[None], mixed, mask=kept)
        tl.store(part_max + at, largest, mask=is_query)
        tl.store(part_sum + at, total, mask=is_query)
    else:
        mixed = mixed / tl.where(total > 0, total, 1.0)[:, None]
        tl.store(out + token[:, None] * out_stride + head[:, None] * DIM + d[None], mixed.to(out.dtype.element_ty), mask=kept)


@triton.jit
def _join(
    out, part, part_max, part_sum, row_starts, rows, out_stride,
    N_HEADS: tl.constexpr, DIM: tl.constexpr, DIMS: tl.constexpr, SEGMENTS: tl.constexpr,
):  # fmt: skip
    """A program: one decode row and one head. A segment without keys has the maximum -inf, the sum 0 and so no weight."""
    row = tl.load(rows + tl.program_id(0))
    head = tl.program_id(1)
    token = tl.load(row_starts + row).to(tl.int64)
    s = tl.arange(0, SEGMENTS)
    d = tl.arange(0, DIMS)
    at = (token * N_HEADS + head) * SEGMENTS + s
    largest = tl.load(part_max + at)
    highest = tl.max(largest, 0)
    weights = tl.exp2(largest - tl.where(highest == float("-inf"), 0.0, highest))
    total = tl.sum(tl.load(part_sum + at) * weights, 0)
    parts = tl.load(part + at[:, None] * DIM + d[None], mask=(d < DIM)[None] & (weights > 0)[:, None], other=0.0)
    mixed = tl.sum(parts * weights[:, None], 0) / tl.where(total > 0, total, 1.0)
    tl.store(out + token * out_stride + head * DIM + d, mixed.to(out.dtype.element_ty), mask=d < DIM)


def _blocks(dim: int, decode: bool) -> tuple[int, int, int]:
    """(keys a tile, warps, stages) by a head's dimensions. Not yet measured."""
    if INTERPRETED:
        return 32, 4, 1
    if decode:
        return (64, 4, 3) if dim <= 128 else (32, 4, 2)
    return (64, 4, 3) if dim <= 64 else (64, 8, 2) if dim <= 128 else (32, 8, 2)


def paged_attention(q: torch.Tensor, pool: torch.Tensor, plan: DevicePlan, scale: float, cap: float = 0.0) -> torch.Tensor:
    """See paged_attention.paged_attention: q [T, H, D] against one layer's pool [n_slots + 1, 2, K, D], to [T, H * D].

    Sums are float32; the weights are rounded to the pool's dtype before they meet the values.
    """
    tokens, heads, dim = q.shape
    assert q.stride(2) == 1 and q.stride(1) == dim and pool[0].is_contiguous()
    out = torch.empty(tokens, heads * dim, device=q.device, dtype=q.dtype)
    for launch in plan.launches:
        _launch(q, pool, out, plan, launch, scale, cap)
    return out


def _launch(
    q: torch.Tensor, pool: torch.Tensor, out: torch.Tensor, plan: DevicePlan, launch: Launch, scale: float, cap: float
) -> None:
    tokens, heads, dim = q.shape
    n_kv, decode = pool.shape[2], launch.queries == 1
    group, dims = heads // n_kv, max(16, triton.next_power_of_2(dim))
    queries = 1 if decode else max(1, TILE // group)
    n_blocks, count = triton.cdiv(launch.queries, queries), segments(len(launch.rows), n_kv, launch.keys) if decode else 1
    keys, n_warps, n_stages = _blocks(dim, decode)
    part, stats = out, (out, out)
    if count > 1:
        part = torch.empty(tokens * heads * count, dim, device=q.device, dtype=torch.float32)
        found = torch.empty(2, tokens * heads * count, device=q.device, dtype=torch.float32)
        stats = found[0], found[1]
    _attend[(len(launch.rows) * n_blocks, n_kv, count)](
        q, pool, out, part, *stats, plan.row_starts, plan.context_lens, plan.page_tables, launch.rows,
        q.stride(0), out.stride(0), pool.stride(0), plan.page_tables.stride(0), scale * LOG2_E, cap * LOG2_E,
        plan.window, n_blocks,
        N_KV=n_kv, GROUP=group, DIM=dim, DIMS=dims, PAGE=plan.page_size,
        QUERIES=queries, ROWS=max(16, triton.next_power_of_2(queries * group)), KEYS=keys, SEGMENTS=count,
        CAPPED=cap > 0, WINDOWED=plan.window > 0, UPCAST=upcast(pool.dtype), PRECISION=precision(pool.dtype),
        num_warps=n_warps, num_stages=n_stages,
    )  # fmt: skip
    if count > 1:
        _join[(len(launch.rows), heads)](
            out, part, *stats, plan.row_starts, launch.rows, out.stride(0),
            N_HEADS=heads, DIM=dim, DIMS=dims, SEGMENTS=count, num_warps=4,
        )  # fmt: skip
