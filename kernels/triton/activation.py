"""Gated activations: activation(gate) * up, one read and one write.

silu(g) = g * sigmoid(g). GELU in its tanh form, 0.5 g (1 + tanh(u)) with u = sqrt(2 / pi) (g + 0.044715 g^3) (Hendrycks &
Gimpel, arXiv 1606.08415), is g * sigmoid(2u), because tanh(u) = 2 sigmoid(2u) - 1.
"""
# pyright: reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false
# (kernels are in a language of their own, and a launch takes options that no signature has)

import math

import torch
import triton
import triton.language as tl

from .launch import INTERPRETED, warps

BLOCK = 1024  # elements a program; not yet measured
TWO_SQRT_2_OVER_PI = tl.constexpr(2 * math.sqrt(2 / math.pi))


@triton.jit
def _gated(gate_up, out, width, row_stride, GELU: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < width
    gate = tl.load(gate_up + row * row_stride + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * row_stride + width + at, mask=inside, other=0.0).to(tl.float32)
    slope = TWO_SQRT_2_OVER_PI * (gate + 0.044715 * gate * gate * gate) if GELU else gate
    tl.store(out + row * width + at, (gate * tl.sigmoid(slope) * up).to(out.dtype.element_ty), mask=inside)


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """See reference.silu_mul: gate_up [T, 2n], gate and up side by side, to [T, n]."""
    return _launch(gate_up, gelu=False)


def gelu_tanh_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """See reference.gelu_tanh_mul."""
    return _launch(gate_up, gelu=True)


def _launch(gate_up: torch.Tensor, gelu: bool) -> torch.Tensor:
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    assert gate_up.stride(1) == 1
    out = torch.empty(rows, width, device=gate_up.device, dtype=gate_up.dtype)
    block = triton.next_power_of_2(width) if INTERPRETED else BLOCK  # there, a program costs more than its elements
    if rows:
        grid = (rows, triton.cdiv(width, block))
        _gated[grid](gate_up, out, width, gate_up.stride(0), GELU=gelu, BLOCK=block, num_warps=warps(block))
    return out
