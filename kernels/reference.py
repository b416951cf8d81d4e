"""The operations of a decoder in plain torch: the truth that other implementations are tested against.

All of them work on one flat ragged batch (kernels/spec.py) of T tokens in R rows, and on any device and float dtype. A
tensor's leading dimension T is the batch's tokens in order; H query heads share K key/value heads of D dimensions each.
Attention lives in paged_attention.py beside this file.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F

from .paged_attention import KvPool, paged_attention, plan_attention

__all__ = [
    "KvPool",
    "Rope",
    "add_rms_norm",
    "embed",
    "gelu_tanh_mul",
    "linear",
    "log_softmax",
    "paged_attention",
    "plan_attention",
    "rms_norm",
    "rope_",
    "rope_tables",
    "rotate_and_write",
    "silu_mul",
    "softcap",
    "top_k",
    "write_kv",
]


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x [T, in] times weight [out, in], transposed, plus bias [out]: [T, out]."""
    return F.linear(x, weight, bias)


def embed(tokens: torch.Tensor, table: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    """Rows of table [vocab, hidden] for tokens [T], times scale: a new [T, hidden]."""
    x = table.index_select(0, tokens)
    return x if scale == 1.0 else x.mul_(torch.tensor(scale, dtype=x.dtype))


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension (Zhang & Sennrich, arXiv 1910.07467)."""
    return F.rms_norm(x, weight.shape, weight, eps)


def add_rms_norm(x: torch.Tensor, branch: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """The end of one residual branch and the start of the next: x += branch *in place*, and returns rms_norm(x)."""
    return rms_norm(x.add_(branch), weight, eps)


class Rope(NamedTuple):
    """cos and sin [T, 1, D]; the first half of sin is negated, so that a rotation is one roll and two products."""

    cos: torch.Tensor
    sin: torch.Tensor


def rope_tables(
    positions: torch.Tensor,
    head_dim: int,
    theta: float,
    factor: float,
    freq_factors: tuple[float, ...],
    dtype: torch.dtype,
) -> Rope:
    """Angles for positions [T] (Su et al., arXiv 2104.09864): theta^(-2i/D) / freq_factors[i] * position / factor."""
    inverse = theta ** -(torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device) / head_dim) / factor
    if freq_factors:
        inverse /= torch.tensor(freq_factors, device=positions.device)
    angles = torch.outer(positions.float(), inverse)
    cos, sin = angles.cos(), angles.sin()
    return Rope(torch.cat((cos, cos), -1)[:, None].to(dtype), torch.cat((-sin, sin), -1)[:, None].to(dtype))


def rope_(x: torch.Tensor, rope: Rope) -> None:
    """Rotate heads x [T, n, D] in place; dimension i pairs with i + D/2 (the "rotate-half" order)."""
    swapped = x.roll(x.shape[-1] // 2, -1)
    x.mul_(rope.cos).addcmul_(swapped, rope.sin)


def write_kv(pool: torch.Tensor, slots: torch.Tensor, kv: torch.Tensor) -> None:
    """Put kv [T, 2, K, D] into one layer's pool [n_slots, 2, K, D] at slots [T]."""
    pool.index_copy_(0, slots, kv)


def rotate_and_write(
    heads: torch.Tensor,
    norms: tuple[torch.Tensor, torch.Tensor] | None,
    eps: float,
    rope: Rope,
    pool: torch.Tensor,
    slots: torch.Tensor,
    write: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None] = write_kv,
) -> torch.Tensor:
    """heads [T, H + 2K, D] hold q, k and v: norm q and k (by `norms`, [D] each, if there are any), rotate them, put k and v
    into one layer's pool [n_slots + 1, 2, K, D] at slots [T]. Returns q [T, H, D]; q and k change *in place*."""
    n_kv = pool.shape[2]
    q, k = heads[:, : -2 * n_kv], heads[:, -2 * n_kv : -n_kv]
    if norms is not None:
        q.copy_(rms_norm(q, norms[0], eps))
        k.copy_(rms_norm(k, norms[1], eps))
    rope_(heads[:, :-n_kv], rope)
    write(pool, slots, heads[:, -2 * n_kv :].unflatten(1, (2, n_kv)))
    return q


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """gate_up [T, 2 * n] holds gate and up side by side: silu(gate) * up, [T, n]."""
    gate, up = gate_up.chunk(2, -1)
    return F.silu(gate).mul_(up)


def gelu_tanh_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """The same with GELU in its tanh form."""
    gate, up = gate_up.chunk(2, -1)
    return F.gelu(gate, approximate="tanh").mul_(up)


def softcap(x: torch.Tensor, cap: float) -> torch.Tensor:
    """cap * tanh(x / cap) (Gemma 2, arXiv 2408.00118); cap 0 leaves x alone."""
    return torch.tanh(x / cap).mul_(cap) if cap else x


def log_softmax(logits: torch.Tensor) -> torch.Tensor:
    """Log-probabilities over the last dimension, in float32."""
    return torch.log_softmax(logits.float(), -1)


def top_k(logits: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Values and indices [L, k] of the k largest logits of each row, largest first."""
    values, indices = torch.topk(logits, min(k, logits.shape[-1]), -1)
    return values, indices
