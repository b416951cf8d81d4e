"""Low-rank adapters for a batch whose rows may each have another one: y += scale * (x A) B of the row's own adapter.

Hu et al., arXiv 2106.09685; a batch of many adapters: Chen et al., Punica, arXiv 2310.18547. Adapters are stacked: A as
[adapters, rank, in], B as [adapters, out, rank], smaller ranks padded with zeros. Two kernels, `shrink` (in to rank) and
`expand` (rank to out); a program has one row, for decode rows of one batch seldom share an adapter, and the base's product,
which they share, costs far more.
"""
# pyright: reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false
# (kernels are in a language of their own, and a launch takes options that no signature has)

import torch
import triton
import triton.language as tl

from .launch import INTERPRETED

INPUTS, OUTPUTS = 512, 128  # of a program at a time; not yet measured


@triton.jit
def _shrink(x, a, adapters, low, n_in, rank, x_stride, R: tl.constexpr, BLOCK: tl.constexpr):
    """low [T, R] = A x, in float32. A program: one row."""
    row = tl.program_id(0).to(tl.int64)
    adapter = tl.load(adapters + row).to(tl.int64)
    r = tl.arange(0, R)
    if adapter >= 0:
        total = tl.zeros([R], tl.float32)
        for begin in range(0, n_in, BLOCK):
            at = begin + tl.arange(0, BLOCK)
            values = tl.load(x + row * x_stride + at, mask=at < n_in, other=0.0).to(tl.float32)
            weights = tl.load(
                a + (adapter * rank + r[:, None]) * n_in + at[None], mask=(r < rank)[:, None] & (at < n_in)[None], other=0.0
            )
            total += tl.sum(weights.to(tl.float32) * values[None], 1)
        tl.store(low + row * R + r, total)


@triton.jit
def _expand(low, b, adapters, scales, y, n_out, rank, y_stride, R: tl.constexpr, BLOCK: tl.constexpr):
    """y [T, out] += scale * B low. A program: one row, BLOCK outputs."""
    row = tl.program_id(0).to(tl.int64)
    adapter = tl.load(adapters + row).to(tl.int64)
    r = tl.arange(0, R)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    if adapter >= 0:
        values = tl.load(low + row * R + r)
        weights = tl.load(
            b + (adapter * n_out + at[:, None]) * rank + r[None], mask=(at < n_out)[:, None] & (r < rank)[None], other=0.0
        )
        added = tl.sum(weights.to(tl.float32) * values[None], 1) * tl.load(scales + adapter)
        place = y + row * y_stride + at
        sum_ = tl.load(place, mask=at < n_out, other=0.0).to(tl.float32) + added
        tl.store(place, sum_.to(y.dtype.element_ty), mask=at < n_out)


def add_adapters(
    y: torch.Tensor, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scales: torch.Tensor, adapters: torch.Tensor
) -> None:
    """y [T, out] += scales[i] * B[i] A[i] x [T, in] *in place*, with i = adapters [T] int32 of each row; -1: none.

    a [adapters, rank, in], b [adapters, out, rank], scales [adapters] float32. Sums are float32, y is rounded once.
    """
    tokens, n_in = x.shape
    rank, n_out = a.shape[1], b.shape[1]
    assert a.is_contiguous() and b.is_contiguous() and x.stride(1) == y.stride(1) == 1
    width = max(16, triton.next_power_of_2(rank))
    low = torch.empty(tokens, width, device=x.device, dtype=torch.float32)
    outputs = triton.next_power_of_2(n_out) if INTERPRETED else OUTPUTS
    if tokens:
        _shrink[(tokens,)](x, a, adapters, low, n_in, rank, x.stride(0), R=width, BLOCK=INPUTS, num_warps=8)
        grid = (tokens, triton.cdiv(n_out, outputs))
        _expand[grid](low, b, adapters, scales, y, n_out, rank, y.stride(0), R=width, BLOCK=outputs)
