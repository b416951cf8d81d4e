"""A model's weights in the native kernels' layout."""

import numpy as np

from ...kernels.cpu.pack import Format, Grouped, Layout, int8, pack, unpack
from ...kernels.cpu.step import NativeWeights
from ...kernels.spec import DecoderSpec
from .weights import Weights, expected_shapes

TOGETHER = (("q", "k", "v"), ("gate", "up"))  # these take the same activations, so all are bfloat16 or none is


def native_weights(weights: Weights, spec: DecoderSpec, layout: Layout) -> NativeWeights:
    """Everything that a decoder of this spec needs. Raises ModelFileError for an absent weight."""
    linears, vectors = {}, {}
    for name, shape in expected_shapes(spec).items():
        if len(shape) == 1:
            vector = np.array(weights.tensor(name), np.float32)  # a copy: the file may be a read-only map, and unaligned
            vectors[name] = vector + np.float32(spec.norm_offset) if name.endswith("norm") else vector
    for i in range(spec.n_layers):
        for names in (*TOGETHER, ("o",), ("down",)):
            found = _alike([weights.grouped(f"layers.{i}.{name}") for name in names])
            linears |= {f"layers.{i}.{name}": pack(weight, layout) for name, weight in zip(names, found, strict=True)}
        weights.release()
    for name in ("embed",) if spec.tied else ("embed", "head"):
        linears[name] = pack(weights.grouped(name), layout)
    return NativeWeights(linears, vectors)


def _alike(weights: list[Grouped]) -> list[Grouped]:
    wide = [weight.format == Format.BF16 for weight in weights]
    if all(wide) or not any(wide):
        return weights
    return [
        int8(unpack(pack(weight, Layout.DOTS))) if is_wide else weight for weight, is_wide in zip(weights, wide, strict=True)
    ]
