"""kernels/reference.py's operations with the native step's roundings (kernels/cpu): its oracle. Sums are float32.

Only what rounds stands here: linears, whose inputs (with tiles, weights too) become integers or bfloat16, and attention, whose
queries, keys, values and weights become bfloat16. All other operations are reference.py's own.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from . import reference
from .cpu.pack import GROUP
from .reference import Rope, add_rms_norm, embed, gelu_tanh_mul, rms_norm, rope_, rope_tables, silu_mul, softcap
from .spec import StepBatch

__all__ = [
    "RoundedWeight",
    "add_rms_norm",
    "byte_inputs",
    "coarse",
    "embed",
    "fine",
    "gelu_tanh_mul",
    "linear",
    "low_byte",
    "paged_attention",
    "plan_attention",
    "quantise_bytes",
    "quantise_coarse",
    "quantise_fine",
    "quantise_row",
    "rms_norm",
    "rope_",
    "rope_tables",
    "rotate_and_write",
    "silu_mul",
    "softcap",
    "tile_inputs",
    "tile_weight",
    "to_bf16",
    "write_kv",
]
LEAST = 1e-30  # 32 inputs that span no more count as zeros
KEYS = 64  # of attention's inner loop, at absolute positions: each such block weighs its keys by the largest score so far


def to_bf16(x: torch.Tensor) -> torch.Tensor:
    """float32 rounded to bfloat16 (to even), as float32."""
    return x.bfloat16().float()


def quantise_coarse(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """x [T, in] in steps of 8 bits: integers [T, G, 32] and what one of them stands for [T, G, 1].

    256 steps go from the least to the largest of each 32 and 0; the integers are counted from that which stands for 0.
    """
    groups = x.unflatten(-1, (-1, GROUP))
    top, bottom = groups.amax(-1, keepdim=True).clamp(min=0), groups.amin(-1, keepdim=True).clamp(max=0)
    span = top - bottom
    inverse = _inverse(255, span)
    zero = (-bottom * inverse).round() - 128
    codes = (groups.double() * inverse + zero).float().clamp(-128, 127).round()  # one rounding, as a fused product has
    return codes - zero, span * torch.tensor(1 / 255)


def quantise_fine(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same in steps of 16 bits: of the largest magnitude / 32512."""
    groups = x.unflatten(-1, (-1, GROUP))
    peak = groups.abs().amax(-1, keepdim=True)
    return (groups * _inverse(32512, peak)).round(), peak * torch.tensor(1 / 32512)


def _inverse(steps: float, span: torch.Tensor) -> torch.Tensor:
    # Torch divides a number by a tensor in two roundings, a tensor by a tensor in one.
    return torch.where(span > LEAST, torch.tensor(float(steps)) / span, 0.0)


def coarse(x: torch.Tensor) -> torch.Tensor:
    """x [T, in] as quantise_coarse has it."""
    integers, step = quantise_coarse(x)
    return (integers * step).flatten(-2)


def fine(x: torch.Tensor) -> torch.Tensor:
    """x [T, in] as quantise_fine has it."""
    integers, step = quantise_fine(x)
    return (integers * step).flatten(-2)


def quantise_row(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """x [T, in] in steps of the row's largest magnitude / 32512: integers, and what one of them stands for [T, 1]."""
    peak = x.abs().amax(-1, keepdim=True)
    return (x * _inverse(32512, peak)).round(), peak * torch.tensor(1 / 32512)


def byte_inputs(x: torch.Tensor) -> torch.Tensor:
    """x [T, in] in steps of the row's largest magnitude / 127; then nothing, in place of low bytes."""
    integers, step = quantise_bytes(x)
    return torch.cat((integers * step, torch.zeros_like(x)), -1)


def quantise_bytes(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """x [.., n] in steps of the largest magnitude of n / 127: integers, and what one of them stands for [.., 1]."""
    peak = x.abs().amax(-1, keepdim=True)
    return (x * _inverse(127, peak)).round(), peak * torch.tensor(1 / 127)


def low_byte(integers: torch.Tensor) -> torch.Tensor:
    """What remains of integers after the nearest multiples of 256."""
    return integers - ((integers + 128) / 256).floor() * 256


def tile_inputs(x: torch.Tensor) -> torch.Tensor:
    """x [T, in] as quantise_row has it; then, negative, its low bytes, which are not multiplied by weights' low bytes."""
    integers, step = quantise_row(x)
    return torch.cat((integers * step, -low_byte(integers) * step), -1)


def tile_weight(integers: torch.Tensor, step: torch.Tensor, fine: bool) -> torch.Tensor:
    """The weight [out, in] of such `integers`, times `step` [out, 1]; then the low bytes. Not `fine`: without these."""
    low = low_byte(integers)
    return torch.cat((integers, low) if fine else (integers - low, torch.zeros_like(low)), -1) * step


@dataclass(frozen=True, slots=True)
class RoundedWeight:
    """A linear weight [out, in], and what its inputs become first."""

    weight: torch.Tensor
    inputs: Callable[[torch.Tensor], torch.Tensor]


def linear(x: torch.Tensor, weight: RoundedWeight, bias: torch.Tensor | None = None) -> torch.Tensor:
    """As reference.linear, of rounded x."""
    return F.linear(weight.inputs(x), weight.weight, bias)


def write_kv(pool: torch.Tensor, slots: torch.Tensor, kv: torch.Tensor) -> None:
    """As reference.write_kv, rounded to bfloat16."""
    pool.index_copy_(0, slots, to_bf16(kv))


def rotate_and_write(
    heads: torch.Tensor,
    norms: tuple[torch.Tensor, torch.Tensor] | None,
    eps: float,
    rope: Rope,
    pool: torch.Tensor,
    slots: torch.Tensor,
) -> torch.Tensor:
    """As reference.rotate_and_write, with our write_kv."""
    return reference.rotate_and_write(heads, norms, eps, rope, pool, slots, write_kv)


@dataclass(frozen=True, slots=True)
class Row:
    """A row's queries, tokens start : end of T, whose first is at `position`, and the slots of all its keys."""

    start: int
    end: int
    position: int
    slots: torch.Tensor


def plan_attention(batch: StepBatch, window: int, like: torch.Tensor) -> tuple[int, list[Row]]:
    """The window, and the rows."""
    rows = []
    for r, context in enumerate(batch.context_lens.tolist()):
        slots = (batch.page_tables[r].astype(np.int64)[:, None] * batch.page_size + np.arange(batch.page_size)).ravel()[
            :context
        ]
        start, end = batch.row_starts[r : r + 2].tolist()
        rows.append(Row(start, end, context - (end - start), torch.from_numpy(slots)))
    return window, rows


def paged_attention(
    q: torch.Tensor, pool: torch.Tensor, plan: tuple[int, list[Row]], scale: float, cap: float = 0.0
) -> torch.Tensor:
    """As reference.paged_attention: q [T, H, D] against pool [n_slots, 2, K, D] gives [T, H * D]."""
    window, rows = plan
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    for row in rows:
        keys, values = (pool[row.slots, i].repeat_interleave(q.shape[1] // pool.shape[2], 1).transpose(0, 1) for i in (0, 1))
        queries = to_bf16(q[row.start : row.end]).transpose(0, 1)  # [H, Q, D]
        query = torch.arange(row.position, row.position + row.end - row.start)[:, None]
        total, peak, mixed = torch.zeros(()), torch.full((), -1e30), torch.zeros(())
        for first in range(0, len(row.slots), KEYS):
            key = torch.arange(first, min(first + KEYS, len(row.slots)))
            hidden = (key > query) | (key <= query - window) if window else key > query
            scores = softcap(queries @ keys[:, key].transpose(1, 2) * scale, cap).masked_fill(hidden, -torch.inf)
            now = scores.amax(-1, keepdim=True).maximum(peak)
            weights, shrink = (scores - now).exp(), (peak - now).exp()
            total = total * shrink + weights.sum(-1, keepdim=True)
            mixed = mixed * shrink + to_bf16(weights) @ values[:, key]
            peak = now
        out[row.start : row.end] = (mixed / total).transpose(0, 1)
    return out.flatten(1)
