"""The decoder step as one native call: a DecoderSpec's weights in the kernels' layout, a paged KV pool, and `run`.

What it computes is kernels/reference.py's with these roundings: activations to 8 bits with a scale and a zero for each 32 (some
to 16 bits: `fine_inputs`; to bfloat16 before a bfloat16 weight); queries, keys, values and attention's weights to bfloat16; all
sums in float32 or exact integers. Where the machine multiplies tiles, activations become 16 bits (some 8: `byte_inputs`) with
one scale a row, and weights 8 bits (some 16: `fine_inputs`) with one scale an output. A row's result depends, to the bit, on
that row alone.
"""

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..spec import DecoderSpec, StepBatch, StepOutput
from . import library as native
from .pack import GROUP, Layout, Packed

Array = NDArray[Any]
ACTIVATIONS = {"silu": 0, "gelu_tanh": 1}
PARTS = ("embed", "qkv", "attention", "o", "gate_up", "down", "head")  # step.h's Part
QKV_INPUTS, OUT_INPUTS = 1, 2
ALL_INPUTS = 15
FIRST_LAYERS = 3
PAGE_QUANTUM = 16  # keys lie in blocks of so many
LARGEST_HEAD = 512  # ops.h's MAX_DIM
LONGEST_SUM = 1 << 16  # with tiles: of 2 * 127 * 128 each, in 32 bits


@dataclass(frozen=True, slots=True)
class NativeWeights:
    """What the step computes with: linear weights packed, vectors float32, by the names of runtime/models/weights.py."""

    linears: Mapping[str, Packed]  # embed, head (absent where tied), layers.{i}.q ... down
    vectors: Mapping[str, Array]  # norm, layers.{i}.attn_norm ...; norms as they multiply

    @property
    def layout(self) -> Layout:
        """That of all linear weights."""
        return self.linears["embed"].layout

    @property
    def nbytes(self) -> int:
        """Of all of them."""
        return sum(w.nbytes for w in self.linears.values()) + sum(v.nbytes for v in self.vectors.values())


def unsupported(spec: DecoderSpec, page_size: int) -> str | None:
    """Why the native step cannot run this decoder, in one line; None if it can."""
    odd = [n for n in ("hidden", "head_dim", "intermediate") if getattr(spec, n) % GROUP]
    if odd:
        return f"{odd[0]} {getattr(spec, odd[0])} is not a multiple of {GROUP}"
    if spec.head_dim > LARGEST_HEAD:
        return f"heads of {spec.head_dim} dimensions; at most {LARGEST_HEAD}"
    if (longest := max(spec.hidden, spec.intermediate, spec.n_heads * spec.head_dim)) > LONGEST_SUM:
        return f"a product sums up {longest} inputs; at most {LONGEST_SUM}"
    if page_size % PAGE_QUANTUM:
        return f"page size {page_size} is not a multiple of {PAGE_QUANTUM}"
    return None


def page_bytes(spec: DecoderSpec, page_size: int) -> int:
    """Memory of one page over all layers: bfloat16 keys and values."""
    return 4 * spec.n_layers * page_size * spec.n_kv_heads * spec.head_dim


def layout_of(isa: str) -> Layout:
    """How an instruction set ("": this machine's best) wants its weights."""
    return Layout.TILES if (isa or native.instruction_sets()[0]) == "amx" else Layout.DOTS


def fine_inputs(layer: int, n_layers: int) -> int:
    """Which linears of a layer take activations of 16 bits (step.h's LayerDesc.fine); all others take 8. With tiles, which take
    weights of 16 bits.

    Rounding hurts most where attention's scores come from, in the first layers, whose errors all others build on, and in the
    last, after which nothing averages them out. On SmolLM2-135M this takes two thirds off the divergence from unrounded
    activations, for a fifth more products; with tiles, a third off that from rounded weights and activations, for a quarter
    more.
    """
    return QKV_INPUTS if is_inner(layer, n_layers) else ALL_INPUTS


def byte_inputs(layer: int, n_layers: int, layout: Layout) -> int:
    """Which linears of a layer take activations of 8 bits with one scale a row, where tiles multiply them (LayerDesc.bytes):
    for half the products of 16 bits.

    What o sums over has no values so large that they drown others. What down does has, and what q, k and v do decides scores:
    rounded so, these cost SmolLM2-135M over 1 in 100 of perplexity each. Gate and up cost it little (1.0014 times float32's),
    and yet, beside o, the capital of France.
    """
    return OUT_INPUTS if layout == Layout.TILES and is_inner(layer, n_layers) else 0


def is_inner(layer: int, n_layers: int) -> bool:
    """Neither one of the first layers nor the last."""
    return FIRST_LAYERS <= layer < n_layers - 1


class NativeStep:
    """Runs steps against a paged KV pool that it owns; one caller at a time.

    The weights must lie as `layout_of(isa)` says.
    `pages` [n_pages, page bytes] is that pool, uint8: a page is one run of bytes over all layers, and holds nothing that
    depends on its place, so it may be copied, written to a file and put back anywhere. `n_positions`: the longest sequence.
    """

    def __init__(
        self,
        spec: DecoderSpec,
        weights: NativeWeights,
        n_pages: int,
        page_size: int,
        n_positions: int,
        pool: native.Pool,
        isa: str = "",
    ) -> None:
        if (reason := unsupported(spec, page_size)) is not None:
            raise native.NativeUnavailable(f"the native step does not run this model: {reason}")
        self._library, self._pool, self.spec = native.library(), pool, spec
        self.isa = isa or native.instruction_sets()[0]
        assert all(weight.layout == layout_of(isa) for weight in weights.linears.values())
        self.pages = np.zeros((n_pages, page_bytes(spec, page_size)), np.uint8)  # memory that is never used is never touched
        self._kept: list[Any] = [weights]  # what the C side points to
        self._last_norm = weights.vectors["norm"]
        self._logits = np.empty((0, spec.vocab), np.float32)
        ropes = _Ropes(spec, n_positions)
        self._kept.append(ropes)
        layers = (native.Layer * spec.n_layers)(*(self._layer(i, weights, ropes) for i in range(spec.n_layers)))
        embed = _weight(weights.linears["embed"])
        desc = native.Model(
            *(getattr(spec, n) for n in ("n_layers", "hidden", "n_heads", "n_kv_heads", "head_dim", "intermediate", "vocab")),
            activation=ACTIVATIONS[spec.activation],
            norm_eps=spec.norm_eps,
            embed_scale=spec.embed_scale,
            attn_scale=spec.attn_scale or spec.head_dim**-0.5,
            attn_softcap=spec.attn_softcap,
            final_softcap=spec.final_softcap,
            page_size=page_size,
            layers=layers,
            embed=embed,
            head=embed if spec.tied else _weight(weights.linears["head"]),
            norm=weights.vectors["norm"].ctypes.data,
            pool=self.pages.ctypes.data,
        )
        self._model = self._library.bl_model_create(ctypes.byref(desc), pool.handle, self.isa.encode())
        if not self._model:
            raise native.NativeUnavailable(f"this machine does not run the instruction set {self.isa!r}")
        pool.n_models += 1

    def run(self, batch: StepBatch) -> StepOutput:
        """Write the batch's keys and values; the best token of each of `batch.logit_rows`, and logits where asked, which
        hold until the next run. Raises MemoryError where there is none."""
        n = len(batch.logit_rows)
        best, finite = np.empty(n, np.int32), np.empty(n, np.bool_)
        if n > len(self._logits):
            self._logits = np.empty((n, self.spec.vocab), np.float32)  # rows that nobody asks for are never touched
        logits = self._logits[:n]
        states = np.empty((n, self.spec.hidden), np.float32) if batch.wants_states else None
        desc = native.Batch(
            len(batch.tokens),
            len(batch.context_lens),
            n,
            batch.page_tables.shape[1],
            *(_at(getattr(batch, name)) for name in ("tokens", "positions", "row_starts", "page_tables")),
            *(_at(part) for part in (batch.logit_rows, batch.slots, batch.full_logits, best, finite, logits)),
            None if states is None else _at(states),
        )
        if self._library.bl_step(self._model, ctypes.byref(desc)):
            raise MemoryError("no memory for a step of the model")
        return StepOutput(best, finite, logits, None if states is None else self._normed(states))

    def _normed(self, states: Array) -> Array:
        """The final norm, in float32."""
        return states / np.sqrt(np.mean(states * states, 1, keepdims=True) + self.spec.norm_eps) * self._last_norm

    def times(self) -> dict[str, float]:
        """Seconds that each part of a step has taken so far; a part includes the norm and quantisation after it."""
        found = np.empty(len(PARTS), np.int64)
        self._library.bl_times(self._model, found.ctypes.data)
        return dict(zip(PARTS, (found / 1e9).tolist(), strict=True))

    def close(self) -> None:
        """Let the model go; nothing may run in it."""
        if self._model:
            self._library.bl_model_free(self._model)
            self._model = None
            self._pool.n_models -= 1

    def _layer(self, i: int, weights: NativeWeights, ropes: "_Ropes") -> native.Layer:
        at = f"layers.{i}."
        fine, small = fine_inputs(i, self.spec.n_layers), byte_inputs(i, self.spec.n_layers, weights.layout)
        layer = native.Layer(window=self.spec.layers[i].window, fine=fine, bytes=small)
        for name in native.LINEARS:
            setattr(layer, name, _weight(weights.linears[at + name]))
        layer.cos, layer.sin = (_at(table) for table in ropes.of(i))
        for name in native.VECTORS:
            if (vector := weights.vectors.get(at + name)) is not None:
                setattr(layer, name, _at(vector))
        return layer


class _Ropes:
    """cos and sin [positions, D / 2] float32 of each layer; layers of the same angles share them."""

    def __init__(self, spec: DecoderSpec, n_positions: int) -> None:
        self._spec, self._n = spec, n_positions
        self._made: dict[tuple[float, float], tuple[Array, Array]] = {}

    def of(self, i: int) -> tuple[Array, Array]:
        layer = self._spec.layers[i]
        key = (layer.rope_theta, layer.rope_factor)
        if key not in self._made:
            self._made[key] = self._make(*key)
        return self._made[key]

    def _make(self, theta: float, factor: float) -> tuple[Array, Array]:
        """As kernels/reference.py's rope_tables, in float32."""
        dim = self._spec.head_dim
        inverse = np.float32(theta) ** -(np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)) / np.float32(factor)
        if self._spec.rope_long_freqs:
            inverse /= np.array(self._spec.rope_long_freqs, np.float32)
        angles = np.outer(np.arange(self._n, dtype=np.float32), inverse.astype(np.float32))
        return np.cos(angles), np.sin(angles)


def _weight(packed: Packed) -> native.Weight:
    return native.Weight(_at(packed.codes), _at(packed.scales), int(packed.format), packed.rows, packed.cols)


def _at(array: Array) -> int:
    assert array.flags.c_contiguous
    return array.ctypes.data
