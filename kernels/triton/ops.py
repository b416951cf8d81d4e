"""The operations of kernels/reference.py on a GPU: ours where a pass over memory can be saved, torch's where it is best.

Matrix products of dense weights are torch's; angles of rotation are float32 always.
"""

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


def rope_tables(
    positions: torch.Tensor, head_dim: int, theta: float, factor: float, freq_factors: tuple[float, ...], dtype: torch.dtype
) -> Rope:
    """See reference.rope_tables. `dtype` is that of the heads."""
    return reference.rope_tables(positions, head_dim, theta, factor, freq_factors, torch.float32)
