"""The decoder with the native step's arithmetic on the native step's weights: its oracle. Imports torch."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from ...kernels import rounded
from ...kernels.cpu.pack import Format, Layout, Packed, unpack
from ...kernels.cpu.step import NativeWeights, fine_inputs
from ...kernels.spec import DecoderSpec
from .decoder import Decoder

Rounding = Callable[[torch.Tensor], torch.Tensor]
QKV, OUT, GATE_UP, DOWN = 1, 2, 4, 8  # the bits of fine_inputs


class RoundedDecoder(Decoder):
    """Computes what NativeStep does with the same weights, up to the order of sums in float32."""

    def __init__(self, spec: DecoderSpec, weights: NativeWeights) -> None:
        super().__init__(replace(spec, norm_offset=0.0), _Unpacked(weights))  # the vectors hold the offset already
        self._ops = rounded

        def linear(weight: torch.Tensor, name: str, fine: int = 0) -> rounded.RoundedWeight:
            packed = weights.linears[name]
            if packed.layout == Layout.TILES:
                weight = rounded.upper_half(weight)
            return rounded.RoundedWeight(weight, _inputs(packed, fine))

        for i, layer in enumerate(self._layers):
            fine, at = fine_inputs(i, spec.n_layers), f"layers.{i}."
            self._layers[i] = replace(
                layer,
                qkv=linear(layer.qkv, at + "q", fine & QKV),
                o=linear(layer.o, at + "o", fine & OUT),
                gate_up=linear(layer.gate_up, at + "gate", fine & GATE_UP),
                down=linear(layer.down, at + "down", fine & DOWN),
            )
        self._head = linear(self._head, "embed" if spec.tied else "head")


def _inputs(weight: Packed, fine: int) -> Rounding:
    if weight.format == Format.BF16 or weight.layout == Layout.TILES:
        return rounded.to_bf16
    return rounded.fine if fine else rounded.coarse


class _Unpacked:
    """NativeWeights as weights.Tensors: what the packed ones mean."""

    def __init__(self, weights: NativeWeights) -> None:
        self._weights = weights

    def tensor(self, name: str) -> NDArray[np.float32]:
        packed = self._weights.linears.get(name)
        return self._weights.vectors[name] if packed is None else unpack(packed)
