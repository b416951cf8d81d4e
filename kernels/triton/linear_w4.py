"""A linear layer whose weights stay packed in 4 bits: w = scale * code + shift, one scale and shift for a group of inputs.

Few rows: the weight is unpacked on its way into the product, so that a quarter of bfloat16's bytes are read. Many rows: it is
unpacked once into memory, and the vendor's product does the rest; that costs 2.5 bytes a weight once instead of work a row.

Codes lie as in GGUF's Q4_0 and Q4_1: of 32 neighbouring inputs, byte e holds input e in its low half and input e + 16 in its
high one. So a tile of bytes meets two tiles of x, and nothing is shuffled.
"""
# pyright: reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false
# (kernels are in a language of their own, and a launch takes options that no signature has)

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from ..cpu.pack import Format, Grouped
from .launch import INTERPRETED, precision, upcast

FORMATS = (Format.Q4_MIN, Format.Q4_BIAS)
FEW = 64  # rows up to which the fused kernel is taken; not yet measured


@dataclass(frozen=True, slots=True)
class Packed4:
    """A weight [out, in]: codes [out, in / 2] uint8, scales and shifts [out, in / group] float16. in is a multiple of `group`,
    and that of 32."""

    codes: torch.Tensor
    scales: torch.Tensor
    shifts: torch.Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """[out, in]."""
        return self.codes.shape[0], self.codes.shape[1] * 2

    @property
    def group(self) -> int:
        """Inputs that share a scale."""
        return self.shape[1] // self.scales.shape[1]

    @classmethod
    def of(cls, weight: Grouped, device: torch.device) -> "Packed4":
        """A weight of a file in one of the two 4-bit formats. A bias of 8 becomes a shift of -8 scales."""
        assert weight.d is not None and weight.format in FORMATS
        shifts = weight.m if weight.m is not None else weight.d * np.float16(-8)
        codes = np.ascontiguousarray(weight.codes).reshape(len(weight.codes), -1)
        return cls(*(torch.from_numpy(np.ascontiguousarray(part)).to(device) for part in (codes, weight.d, shifts)))

    @property
    def nbytes(self) -> int:
        """Memory of all three."""
        return sum(part.numel() * part.element_size() for part in (self.codes, self.scales, self.shifts))


@triton.jit
def _halves(codes, scales, shifts, n, byte, n_out, width, G: tl.constexpr):
    """Weights of outputs n [N, 1] and bytes [1, B] as two float32 tiles [N, B]: the low halves' and the high halves'."""
    inside = (n < n_out) & (byte < width)
    packed = tl.load(codes + n.to(tl.int64) * width + byte, mask=inside, other=0)
    at = n.to(tl.int64) * (width // (G // 2)) + byte // (G // 2)
    scale = tl.load(scales + at, mask=inside, other=0.0).to(tl.float32)
    shift = tl.load(shifts + at, mask=inside, other=0.0).to(tl.float32)
    low = (packed & 15).to(tl.float32) * scale + shift
    high = (packed >> 4).to(tl.float32) * scale + shift
    return low, high


@triton.jit(do_not_specialize=["n_rows"])
def _linear(
    x, codes, scales, shifts, out, n_rows, n_out, width, x_stride,
    G: tl.constexpr, M: tl.constexpr, N: tl.constexpr, B: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr
):  # fmt: skip
    """A program: M rows of x and N outputs, walking over the inputs B bytes (2B inputs) at a time."""
    m = (tl.program_id(1) * M + tl.arange(0, M))[:, None]
    n = (tl.program_id(0) * N + tl.arange(0, N))[:, None]
    b = tl.arange(0, B)[None]
    total = tl.zeros([M, N], tl.float32)
    for begin in range(0, width, B):
        byte = begin + b
        low, high = _halves(codes, scales, shifts, n, byte, n_out, width, G)
        source = x + m.to(tl.int64) * x_stride + byte // 16 * 32 + byte % 16
        inside = (m < n_rows) & (byte < width)
        x_low = tl.load(source, mask=inside, other=0.0)
        x_high = tl.load(source + 16, mask=inside, other=0.0)
        low, high = low.to(x_low.dtype), high.to(x_low.dtype)
        if UPCAST:
            x_low, x_high, low, high = x_low.to(tl.float32), x_high.to(tl.float32), low.to(tl.float32), high.to(tl.float32)
        total += tl.dot(x_low, tl.trans(low), input_precision=PRECISION)
        total += tl.dot(x_high, tl.trans(high), input_precision=PRECISION)
    column = tl.program_id(0) * N + tl.arange(0, N)[None]
    target = out + m.to(tl.int64) * n_out + column
    tl.store(target, total.to(out.dtype.element_ty), mask=(m < n_rows) & (column < n_out))


@triton.jit
def _unpack(codes, scales, shifts, out, n_out, width, G: tl.constexpr, N: tl.constexpr, B: tl.constexpr):
    n = (tl.program_id(0) * N + tl.arange(0, N))[:, None]
    byte = (tl.program_id(1) * B + tl.arange(0, B))[None]
    low, high = _halves(codes, scales, shifts, n, byte, n_out, width, G)
    target = out + n.to(tl.int64) * width * 2 + byte // 16 * 32 + byte % 16
    inside = (n < n_out) & (byte < width)
    tl.store(target, low.to(out.dtype.element_ty), mask=inside)
    tl.store(target + 16, high.to(out.dtype.element_ty), mask=inside)


def unpack(weight: Packed4, dtype: torch.dtype) -> torch.Tensor:
    """The weight [out, in] in `dtype`."""
    out = torch.empty(weight.shape, device=weight.codes.device, dtype=dtype)
    n, b = (128, 512) if INTERPRETED else (16, 128)
    n_out, width = weight.codes.shape
    grid = (triton.cdiv(n_out, n), triton.cdiv(width, b))
    _unpack[grid](weight.codes, weight.scales, weight.shifts, out, n_out, width, G=weight.group, N=n, B=b)
    return out


def _blocks(rows: int) -> tuple[int, int, int, int, int]:
    """(rows, outputs, bytes a step, warps, stages) of a program. Not yet measured."""
    if INTERPRETED:
        return max(16, triton.next_power_of_2(rows)), 512, 512, 4, 1
    if rows <= 16:
        return 16, 32, 64, 4, 4
    return (32, 64, 64, 4, 3) if rows <= 32 else (64, 64, 32, 4, 3)


def linear(x: torch.Tensor, weight: Packed4) -> torch.Tensor:
    """x [T, in] times the weight, transposed: [T, out]. Weights are rounded to x's dtype; sums are float32."""
    rows = len(x)
    if rows > FEW:
        return F.linear(x, unpack(weight, x.dtype))
    out = torch.empty(rows, weight.shape[0], device=x.device, dtype=x.dtype)
    m, n, b, n_warps, n_stages = _blocks(rows)
    n_out, width = weight.codes.shape
    if rows:
        _linear[(triton.cdiv(n_out, n), triton.cdiv(rows, m))](
            x, weight.codes, weight.scales, weight.shifts, out, rows, n_out, width, x.stride(0),
            G=weight.group, M=m, N=n, B=b, UPCAST=upcast(x.dtype), PRECISION=precision(x.dtype),
            num_warps=n_warps, num_stages=n_stages,
        )  # fmt: skip
    return out
