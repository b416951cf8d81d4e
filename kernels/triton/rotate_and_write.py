"""Between the product that makes q, k and v and attention, one pass: norm q and k, rotate both, put k and v into their pages.

q stays where it is; k and v are read once and written once, into the pool. Dimension i of a head pairs with i + D/2:
(a, b) becomes (a cos - b sin, b cos + a sin) (Su et al., arXiv 2104.09864).
"""
# pyright: reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false
# (kernels are in a language of their own, and a launch takes options that no signature has)

import torch
import triton
import triton.language as tl

from ..reference import Rope
from .launch import INTERPRETED, warps

TILE = 512  # elements of each half that a program holds; not yet measured


@triton.jit
def _rotate_and_write(
    heads, q_norm, k_norm, cos, sin, pool, slots, head_stride, slot_stride, eps,
    N_HEADS: tl.constexpr, N_KV: tl.constexpr, DIM: tl.constexpr, HALF: tl.constexpr, NORM: tl.constexpr, ROWS: tl.constexpr
):  # fmt: skip
    """A program: ROWS of the H + 2K heads of one token. Those below H are q, the next K are k, the last K are v."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * ROWS + tl.arange(0, ROWS)[:, None]
    i = tl.arange(0, HALF)[None]
    half: tl.constexpr = DIM // 2
    inside = (head < N_HEADS + 2 * N_KV) & (i < half)
    source = heads + token * head_stride + head * DIM + i
    a = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(source + half, mask=inside, other=0.0).to(tl.float32)
    turned = head < N_HEADS + N_KV
    if NORM:
        scale = 1.0 / tl.sqrt((tl.sum(a * a, 1) + tl.sum(b * b, 1)) / DIM + eps)[:, None]
        is_q = inside & (head < N_HEADS)
        is_k = inside & (head >= N_HEADS)
        low = tl.load(q_norm + i + head * 0, mask=is_q, other=0.0) + tl.load(k_norm + i + head * 0, mask=is_k, other=0.0)
        high = tl.load(q_norm + half + i + head * 0, mask=is_q, other=0.0) + tl.load(
            k_norm + half + i + head * 0, mask=is_k, other=0.0
        )
        # rounded as a norm that stands by itself would round it
        a = tl.where(turned, (a * scale * low.to(tl.float32)).to(heads.dtype.element_ty).to(tl.float32), a)
        b = tl.where(turned, (b * scale * high.to(tl.float32)).to(heads.dtype.element_ty).to(tl.float32), b)
    c = tl.load(cos + token * DIM + half + i, mask=i < half, other=0.0).to(tl.float32)
    s = tl.load(sin + token * DIM + half + i, mask=i < half, other=0.0).to(tl.float32)  # in the first half it is negated
    first = tl.where(turned, a * c - b * s, a).to(heads.dtype.element_ty)
    second = tl.where(turned, b * c + a * s, b).to(heads.dtype.element_ty)
    query = inside & (head < N_HEADS)
    tl.store(source, first, mask=query)
    tl.store(source + half, second, mask=query)
    slot = tl.load(slots + token).to(tl.int64) + head * 0
    kept = inside & (head >= N_HEADS) & (slot >= 0)
    target = pool + slot * slot_stride + (head - N_HEADS) * DIM + i
    tl.store(target, first, mask=kept)
    tl.store(target + half, second, mask=kept)


def rotate_and_write(
    heads: torch.Tensor,
    norms: tuple[torch.Tensor, torch.Tensor] | None,
    eps: float,
    rope: Rope,
    pool: torch.Tensor,
    slots: torch.Tensor,
) -> torch.Tensor:
    """See reference.rotate_and_write. A token with a negative slot (padding) is written nowhere."""
    tokens, n, dim = heads.shape
    n_kv = pool.shape[2]
    assert heads.stride(2) == 1 and heads.stride(1) == dim and pool[0].is_contiguous() and rope.cos.is_contiguous()
    half = triton.next_power_of_2(dim // 2)
    rows = triton.next_power_of_2(n) if INTERPRETED else max(1, TILE // half)
    q_norm, k_norm = norms or (heads, heads)
    grid = (tokens, triton.cdiv(n, rows))
    if tokens:
        _rotate_and_write[grid](
            heads, q_norm, k_norm, rope.cos, rope.sin, pool, slots, heads.stride(0), pool.stride(0), eps,
            N_HEADS=n - 2 * n_kv, N_KV=n_kv, DIM=dim, HALF=half, NORM=norms is not None, ROWS=rows,
            num_warps=warps(rows * half),
        )  # fmt: skip
    return heads[:, : n - 2 * n_kv]
