"""RMS norm, alone or with the addition that ends the residual branch before it: one read of x, one or two writes.

out = x / sqrt(mean(x^2) + eps) * weight (Zhang & Sennrich, arXiv 1910.07467), summed in float32.
"""
# pyright: reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false
# (kernels are in a language of their own, and a launch takes options that no signature has)

import torch
import triton
import triton.language as tl

from .launch import warps


@triton.jit
def _rms_norm(x, branch, weight, out, x_stride, branch_stride, width, eps, ADD: tl.constexpr, BLOCK: tl.constexpr):
    """A program a row. With ADD: x += branch, rounded to x's dtype, in place; the norm is that of the rounded sum."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < width
    values = tl.load(x + row * x_stride + at, mask=inside, other=0.0)
    if ADD:
        added = tl.load(branch + row * branch_stride + at, mask=inside, other=0.0)
        values = (values.to(tl.float32) + added.to(tl.float32)).to(x.dtype.element_ty)
        tl.store(x + row * x_stride + at, values, mask=inside)
    values = values.to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(values * values, 0) / width + eps)
    normed = values * scale * tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * width + at, normed.to(out.dtype.element_ty), mask=inside)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """See reference.rms_norm. x [T, n] with n neighbouring elements a row, weight [n]."""
    return _launch(x, x, weight, eps, add=False)


def add_rms_norm(x: torch.Tensor, branch: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """See reference.add_rms_norm: x += branch *in place*, and returns rms_norm(x)."""
    return _launch(x, branch, weight, eps, add=True)


def _launch(x: torch.Tensor, branch: torch.Tensor, weight: torch.Tensor, eps: float, add: bool) -> torch.Tensor:
    rows, width = x.shape
    assert x.stride(1) == branch.stride(1) == 1
    out = torch.empty(rows, width, device=x.device, dtype=x.dtype)
    block = triton.next_power_of_2(width)
    if rows:
        _rms_norm[(rows,)](
            x, branch, weight, out, x.stride(0), branch.stride(0), width, eps, ADD=add, BLOCK=block, num_warps=warps(block)
        )
    return out
