"""Shapes of well-known models, with random weights: what a GPU does with them depends on shapes alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..kernels.spec import DecoderSpec, LayerSpec
from ..runtime.models.weights import expected_shapes


def _spec(n_layers: int, theta: float, **sizes: Any) -> DecoderSpec:
    layers = (LayerSpec(rope_theta=theta),) * n_layers
    return DecoderSpec(n_layers=n_layers, layers=layers, norm_eps=1e-5, context_length=40960, **sizes)


# From each model's config.json on Hugging Face.
SPECS = {
    "llama-3.1-8b": replace(
        _spec(32, 5e5, hidden=4096, n_heads=32, n_kv_heads=8, head_dim=128, intermediate=14336, vocab=128256), tied=False
    ),
    "qwen3-0.6b": replace(
        _spec(28, 1e6, hidden=1024, n_heads=16, n_kv_heads=8, head_dim=128, intermediate=3072, vocab=151936), qk_norm=True
    ),
    "smollm2-135m": _spec(30, 1e5, hidden=576, n_heads=9, n_kv_heads=3, head_dim=64, intermediate=1536, vocab=49152),
}
TINY = _spec(2, 1e4, hidden=32, n_heads=4, n_kv_heads=2, head_dim=16, intermediate=48, vocab=96)


def spec_of(name: str, smoke: bool) -> DecoderSpec:
    """The model's, or a tiny one that keeps its norms and its head."""
    found = SPECS[name]
    return replace(TINY, qk_norm=found.qk_norm, tied=found.tied) if smoke else found


def n_weights(spec: DecoderSpec) -> int:
    """Weights that a decode step reads: all, but for an embedding that is not the head too."""
    total = sum(int(np.prod(shape)) for shape in expected_shapes(spec).values())
    return total if spec.tied else total - spec.vocab * spec.hidden


@dataclass(frozen=True)
class RandomWeights:
    """Weights as a decoder takes them. Large ones repeat a million numbers: drawing billions would take minutes."""

    spec: DecoderSpec

    def tensor(self, name: str) -> NDArray[np.float32]:
        """Normal numbers that keep the size of what they multiply; around 1 for norms."""
        shape = expected_shapes(self.spec)[name]
        size = int(np.prod(shape))
        few = np.random.default_rng(len(name)).standard_normal(min(size, 1_000_003), np.float32)
        if len(shape) == 1:
            return few * np.float32(0.1) + np.float32(name.endswith("norm"))
        return np.resize(few * np.float32(shape[1] ** -0.5), shape)
