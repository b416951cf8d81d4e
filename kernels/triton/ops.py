"""The operations of kernels/reference.py on a GPU: ours where a pass over memory can be saved, torch's where it is best.

Matrix products of dense weights are torch's; angles of rotation are float32 always.
"""

import functools

import torch

from .. import reference
from ..reference import Rope, embed, softcap
from . import linear_w4
from .activation import gelu_tanh_mul, silu_mul
from .attention import paged_attention
from .attention_plan import plan_attention
from .linear_w4 import Packed4
from .rms_norm import add_rms_norm, rms_norm
from .rotate_and_write import rotate_and_write

__all__ = [
    "add_rms_norm",
    "embed",
    "gelu_tanh_mul",
    "linear",
    "paged_attention",
    "plan_attention",
    "rms_norm",
    "rope_tables",
    "rotate_and_write",
    "silu_mul",
    "softcap",
]


def linear(x: torch.Tensor, weight: torch.Tensor | Packed4, bias: torch.Tensor | None = None) -> torch.Tensor:
    """See reference.linear; the weight may be packed."""
    if isinstance(weight, Packed4):
        out = linear_w4.linear(x, weight)
        return out if bias is None else out.add_(bias)
    return reference.linear(x, weight, bias)


@functools.lru_cache(maxsize=64)
def _inverse(head_dim: int, theta: float, factor: float, freq_factors: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """Kept on the device: what comes from the host can't be part of a captured graph."""
    found = theta ** -(torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim) / factor
    return (found / torch.tensor(freq_factors) if freq_factors else found).to(device)


def rope_tables(
    positions: torch.Tensor, head_dim: int, theta: float, factor: float, freq_factors: tuple[float, ...], dtype: torch.dtype
) -> Rope:
    """See reference.rope_tables; float32 whatever `dtype` the heads have, since they are multiplied in it."""
    angles = torch.outer(positions.float(), _inverse(head_dim, theta, factor, freq_factors, positions.device))
    cos, sin = angles.cos(), angles.sin()
    return Rope(torch.cat((cos, cos), -1)[:, None], torch.cat((-sin, sin), -1)[:, None])
