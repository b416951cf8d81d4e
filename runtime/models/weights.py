"""Weights by our neutral names, wherever they lie.

Names: `embed`, `head` (absent where tied), `norm`, and for each layer `layers.{i}.` + attn_norm, q, k, v, o, q_bias, k_bias,
v_bias, q_norm, k_norm, post_attn_norm, mlp_norm, gate, up, down, post_mlp_norm. Linear weights are [out, in], heads in
"rotate-half" order, norm weights are what the norm multiplies by.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ...kernels.cpu.pack import Grouped
from ...kernels.spec import DecoderSpec
from ...wire.errors import ModelFileError
from .groups import grouped
from .load_gguf import GgufFile
from .quants import dequantize

GGUF_TOP = {"embed": "token_embd.weight", "head": "output.weight", "norm": "output_norm.weight"}
GGUF_LAYER = {
    "attn_norm": "attn_norm.weight",
    "q": "attn_q.weight",
    "k": "attn_k.weight",
    "v": "attn_v.weight",
    "o": "attn_output.weight",
    "q_bias": "attn_q.bias",
    "k_bias": "attn_k.bias",
    "v_bias": "attn_v.bias",
    "q_norm": "attn_q_norm.weight",
    "k_norm": "attn_k_norm.weight",
    "post_attn_norm": "post_attention_norm.weight",
    "mlp_norm": "ffn_norm.weight",
    "gate": "ffn_gate.weight",
    "up": "ffn_up.weight",
    "down": "ffn_down.weight",
    "post_mlp_norm": "post_ffw_norm.weight",
}


class Tensors(Protocol):
    """Weights as a decoder on torch takes them."""

    def tensor(self, name: str) -> NDArray[np.float32]:
        """The tensor in float32; may be a read-only view. Raises ModelFileError for an absent one."""
        ...


class Weights(Tensors, Protocol):
    """A model's weights, wherever they lie."""

    def names(self) -> frozenset[str]:
        """The neutral names that are there."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """The tensor's shape, without reading it. Raises ModelFileError for an absent one."""
        ...

    def grouped(self, name: str) -> Grouped:
        """A linear weight in groups of 32 inputs, as near to the file's own format as the native kernels have one. Its inputs
        must be a multiple of 32. Raises ModelFileError for an absent one."""
        ...

    def release(self) -> None:
        """Give back what reading so far has taken of the memory; all can be read again."""
        ...


class GgufWeights:
    """The weights of a GGUF file. `permuted` (the llama architecture): q and k rows are in interleaved rope order."""

    def __init__(self, file: GgufFile, spec: DecoderSpec, *, permuted: bool) -> None:
        self._file, self._spec, self._permuted = file, spec, permuted
        self._names = {name: found for name, found in gguf_names(spec.n_layers).items() if found in file.tensors}

    def names(self) -> frozenset[str]:
        """See Weights."""
        return frozenset(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        """See Weights."""
        return self._file.tensors[self._theirs(name)].shape

    def tensor(self, name: str) -> NDArray[np.float32]:
        """See Weights."""
        info = self._file.tensors[self._theirs(name)]
        found = dequantize(self._file.raw(info.name), info.ggml_type, info.shape)
        part = name.rsplit(".", 1)[-1]
        if self._permuted and part in ("q", "k", "q_bias", "k_bias"):
            return _rotate_half_order(found, self._spec.n_heads if part[0] == "q" else self._spec.n_kv_heads)
        return found

    def grouped(self, name: str) -> Grouped:
        """See Weights."""
        info = self._file.tensors[self._theirs(name)]
        found = grouped(self._file.raw(info.name), info.ggml_type, (info.shape[0], info.shape[1]))
        part = name.rsplit(".", 1)[-1]
        if self._permuted and part in ("q", "k"):
            n_heads = self._spec.n_heads if part == "q" else self._spec.n_kv_heads
            return found.rows(_rotate_half_order(np.arange(info.shape[0]), n_heads))
        return found

    def release(self) -> None:
        """See Weights."""
        self._file.release()

    def _theirs(self, name: str) -> str:
        if name not in self._names:
            raise ModelFileError(f"the weight {name!r} is missing")
        return self._names[name]


def gguf_names(n_layers: int) -> dict[str, str]:
    """Neutral name to GGUF's, for a model of so many layers."""
    layers = {f"layers.{i}.{ours}": f"blk.{i}.{theirs}" for i in range(n_layers) for ours, theirs in GGUF_LAYER.items()}
    return {**GGUF_TOP, **layers}


def _rotate_half_order(rows: NDArray[Any], n_heads: int) -> NDArray[Any]:
    """Rows of each head from (0, D/2, 1, D/2+1, ...) back to (0, 1, ..., D-1): llama.cpp's converter interleaved them."""
    split = rows.reshape(n_heads, -1, 2, *rows.shape[1:])
    return np.ascontiguousarray(split.swapaxes(1, 2)).reshape(rows.shape)


def expected_shapes(spec: DecoderSpec) -> dict[str, tuple[int, ...]]:
    """Every weight that a model of this spec has, with its shape."""
    q, kv, hidden, wide = spec.n_heads * spec.head_dim, spec.n_kv_heads * spec.head_dim, spec.hidden, spec.intermediate
    layer: dict[str, tuple[int, ...]] = {
        "attn_norm": (hidden,),
        "q": (q, hidden),
        "k": (kv, hidden),
        "v": (kv, hidden),
        "o": (hidden, q),
        "mlp_norm": (hidden,),
        "gate": (wide, hidden),
        "up": (wide, hidden),
        "down": (hidden, wide),
    }
    if spec.qkv_bias:
        layer |= {"q_bias": (q,), "k_bias": (kv,), "v_bias": (kv,)}
    if spec.qk_norm:
        layer |= {"q_norm": (spec.head_dim,), "k_norm": (spec.head_dim,)}
    if spec.post_norms:
        layer |= {"post_attn_norm": (hidden,), "post_mlp_norm": (hidden,)}
    top: dict[str, tuple[int, ...]] = {"embed": (spec.vocab, hidden), "norm": (hidden,)}
    if not spec.tied:
        top["head"] = (spec.vocab, hidden)
    return top | {f"layers.{i}.{name}": shape for i in range(spec.n_layers) for name, shape in layer.items()}


def check_shapes(weights: Weights, spec: DecoderSpec) -> None:
    """Raise ModelFileError, naming the first weight that is missing or of another shape than the configuration says."""
    wanted: Mapping[str, tuple[int, ...]] = expected_shapes(spec)
    for name, shape in wanted.items():
        if (found := weights.shape(name)) != shape:
            raise ModelFileError(f"the weight {name!r} has the shape {list(found)}, the configuration says {list(shape)}")
