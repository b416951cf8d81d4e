"""The decoder with the native step's arithmetic on the native step's weights: its oracle. Imports torch."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from ...kernels import rounded
from ...kernels.cpu.pack import Format, Layout, Packed, tile_integers, unpack
from ...kernels.cpu.step import NativeWeights, byte_inputs, fine_inputs
from ...kernels.spec import DecoderSpec
from .decoder import Decoder

QKV, OUT, GATE_UP, DOWN = 1, 2, 4, 8  # the bits of fine_inputs and byte_inputs


class RoundedDecoder(Decoder):
    """Computes what NativeStep does with the same weights, up to the order of sums in float32."""

    def __init__(self, spec: DecoderSpec, weights: NativeWeights) -> None:
        super().__init__(replace(spec, norm_offset=0.0), _Unpacked(weights))  # the vectors hold the offset already
        self._ops = rounded

        def linear(weight: torch.Tensor, names: Sequence[str], fine: int, in_bytes: int = 0) -> rounded.RoundedWeight:
            return _linear(weight, [weights.linears[name] for name in names], bool(fine), bool(in_bytes))

        for i, layer in enumerate(self._layers):
            fine, small = fine_inputs(i, spec.n_layers), byte_inputs(i, spec.n_layers, weights.layout)
            at = f"layers.{i}."
            self._layers[i] = replace(
                layer,
                qkv=linear(layer.qkv, (at + "q", at + "k", at + "v"), fine & QKV, small & QKV),
                o=linear(layer.o, (at + "o",), fine & OUT, small & OUT),
                gate_up=linear(layer.gate_up, (at + "gate", at + "up"), fine & GATE_UP, small & GATE_UP),
                down=linear(layer.down, (at + "down",), fine & DOWN, small & DOWN),
            )
        self._head = linear(self._head, ("embed" if spec.tied else "head",), weights.layout == Layout.TILES)


def _linear(weight: torch.Tensor, parts: Sequence[Packed], fine: bool, in_bytes: bool) -> rounded.RoundedWeight:
    """`weight` is what the parts mean, one after the other."""
    if parts[0].format == Format.BF16:
        return rounded.RoundedWeight(weight, rounded.to_bf16)
    if parts[0].layout == Layout.DOTS:
        return rounded.RoundedWeight(weight, rounded.fine if fine else rounded.coarse)
    integers = torch.from_numpy(np.concatenate([tile_integers(part) for part in parts])).float()
    steps = torch.from_numpy(np.concatenate([part.scales[: part.rows, None] for part in parts])) / 256
    inputs = rounded.byte_inputs if in_bytes and not fine else rounded.tile_inputs
    return rounded.RoundedWeight(rounded.tile_weight(integers, steps, fine), inputs)


class _Unpacked:
    """NativeWeights as weights.Tensors: what the packed ones mean."""

    def __init__(self, weights: NativeWeights) -> None:
        self._weights = weights

    def tensor(self, name: str) -> NDArray[np.float32]:
        packed = self._weights.linears.get(name)
        return self._weights.vectors[name] if packed is None else unpack(packed)
