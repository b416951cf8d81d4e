"""A linear layer in 8 bits: weights with a scale an output, inputs rounded to 8 bits with a scale a row as they come.

The product of integers is the vendor's (`torch._int_mm`, exact in int32); what is ours is a pass before it, which finds a row's
scale and rounds it, and one behind it, which multiplies by both scales. `_int_mm` on a GPU wants more than 16 rows: fewer are
padded. (Compare Dettmers et al., LLM.int8(), arXiv 2208.07339: this is its plain row- and column-wise form, without outliers.)
"""
# pyright: reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false, reportPrivateImportUsage=false
# (kernels are in a language of their own, and a launch takes options that no signature has)

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from .launch import INTERPRETED, warps

LEAST_ROWS = 32  # of an integer product on a GPU
BLOCK = 1024  # not yet measured


@dataclass(frozen=True, slots=True)
class Packed8:
    """A weight [out, in]: codes [out, in] int8, scales [out] float32. On a GPU, in and out are multiples of 8."""

    codes: torch.Tensor
    scales: torch.Tensor

    @classmethod
    def of(cls, weight: torch.Tensor) -> "Packed8":
        """A float weight [out, in], rounded: an error of at most scale / 2 an element."""
        scales = weight.float().abs().amax(1).clamp(min=1e-30) / 127
        return cls((weight.float() / scales[:, None]).round().clamp(-127, 127).to(torch.int8), scales)


@triton.jit
def _round(x, codes, scales, width, x_stride, BLOCK: tl.constexpr):
    """A program: one row of x, to int8 with one scale. Ties go away from zero."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    values = tl.load(x + row * x_stride + at, mask=at < width, other=0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(values), 0), 1e-30) / 127
    scaled = values / scale
    rounded = tl.where(scaled >= 0, tl.floor(scaled + 0.5), -tl.floor(0.5 - scaled))
    tl.store(codes + row * width + at, tl.minimum(tl.maximum(rounded, -127.0), 127.0).to(tl.int8), mask=at < width)
    tl.store(scales + row, scale)


@triton.jit
def _scale(total, row_scales, out_scales, out, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < width
    scale = tl.load(row_scales + row) * tl.load(out_scales + at, mask=inside, other=0.0)
    found = tl.load(total + row * width + at, mask=inside, other=0).to(tl.float32) * scale
    tl.store(out + row * width + at, found.to(out.dtype.element_ty), mask=inside)


def linear(x: torch.Tensor, weight: Packed8) -> torch.Tensor:
    """x [T, in] times the weight, transposed: [T, out] in x's dtype."""
    rows, n_in = x.shape
    n_out = len(weight.codes)
    out = torch.empty(rows, n_out, device=x.device, dtype=x.dtype)
    if not rows:
        return out
    padded = max(rows, LEAST_ROWS)
    codes = torch.zeros(padded, n_in, device=x.device, dtype=torch.int8)
    scales = torch.empty(rows, device=x.device, dtype=torch.float32)
    block = triton.next_power_of_2(n_in)
    _round[(rows,)](x, codes, scales, n_in, x.stride(0), BLOCK=block, num_warps=warps(block))
    total = torch._int_mm(codes, weight.codes.t())
    block = triton.next_power_of_2(n_out) if INTERPRETED else BLOCK
    _scale[(rows, triton.cdiv(n_out, block))](total, scales, weight.scales, out, n_out, BLOCK=block)
    return out
