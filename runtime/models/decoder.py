"""One readable decoder for all families: they differ in DecoderSpec's data, and `forward` runs straight through.

    x = embed(tokens)
    for each layer:  x += attention(norm(x));  x += mlp(norm(x))
    logits = head(norm(x)) of the wanted rows

T = tokens of the step, H query heads, K key/value heads, D dimensions a head.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ...kernels.paged_attention import KvPool
from ...kernels.reference import Rope
from ...kernels.spec import DecoderSpec, LayerSpec, StepBatch
from ...kernels.torch_kernels import Kernels, choose
from .weights import Tensors

Linear = Any  # a [out, in] weight as `ops.linear` takes it: a tensor, where the operations are reference.py's

Pack = Callable[[tuple[str, ...]], Linear | None]  # weights by name, one under the other, as the file has them; None: dense


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer's weights; None where the family has no such part."""

    attn_norm: torch.Tensor  # [hidden]
    qkv: Linear  # [(H + 2K) * D, hidden]: q, k and v as one product
    qkv_bias: torch.Tensor | None  # [(H + 2K) * D]
    q_norm: torch.Tensor | None  # [D]
    k_norm: torch.Tensor | None  # [D]
    o: Linear  # [hidden, H * D]
    post_attn_norm: torch.Tensor | None  # [hidden]
    mlp_norm: torch.Tensor  # [hidden]
    gate_up: Linear  # [2 * intermediate, hidden]: gate and up as one product
    down: Linear  # [hidden, intermediate]
    post_mlp_norm: torch.Tensor | None  # [hidden]


@dataclass(frozen=True, slots=True)
class StepTables:
    """What all layers of a step share: slots, and angles and attention plans by what they depend on."""

    slots: torch.Tensor  # [T]
    ropes: dict[tuple[float, float], Rope]  # by (theta, factor)
    plans: dict[int, Any]  # by window, as `ops.plan_attention` makes them


class _Loader:
    """Takes weights by our neutral names, on the device and in the dtype of the kernels."""

    def __init__(self, spec: DecoderSpec, weights: Tensors, kernels: Kernels, pack: Pack | None) -> None:
        self._spec, self._weights, self._kernels, self._pack = spec, weights, kernels, pack

    def tensor(self, *names: str) -> torch.Tensor:
        """The named weights, one under the other."""
        # concatenate copies even a single part: it may be a read-only view of the file
        whole = np.concatenate([self._weights.tensor(name) for name in names])
        return torch.from_numpy(whole).to(self._kernels.device, self._kernels.dtype)

    def linear(self, *names: str) -> Linear:
        """The same for `ops.linear`, packed where it can be."""
        found = self._pack(names) if self._pack else None
        return self.tensor(*names) if found is None else found

    def norm(self, name: str) -> torch.Tensor:
        weight = self.tensor(name)
        return weight + self._spec.norm_offset if self._spec.norm_offset else weight

    def layer(self, i: int) -> Layer:
        spec, at = self._spec, f"layers.{i}."
        return Layer(
            attn_norm=self.norm(at + "attn_norm"),
            qkv=self.linear(at + "q", at + "k", at + "v"),
            qkv_bias=self.tensor(at + "q_bias", at + "k_bias", at + "v_bias") if spec.qkv_bias else None,
            q_norm=self.norm(at + "q_norm") if spec.qk_norm else None,
            k_norm=self.norm(at + "k_norm") if spec.qk_norm else None,
            o=self.linear(at + "o"),
            post_attn_norm=self.norm(at + "post_attn_norm") if spec.post_norms else None,
            mlp_norm=self.norm(at + "mlp_norm"),
            gate_up=self.linear(at + "gate", at + "up"),
            down=self.linear(at + "down"),
            post_mlp_norm=self.norm(at + "post_mlp_norm") if spec.post_norms else None,
        )


class Decoder:
    """A decoder-only transformer on torch tensors. Keeps no state between steps: that is in the KvPool.

    The weights must be those of `spec` (weights.check_shapes). Raises ValueError for a device or dtype that is not to be had.
    `triton`: on the GPU's kernels, whose `linear` takes what `pack` returns.
    """

    def __init__(
        self,
        spec: DecoderSpec,
        weights: Tensors,
        device: str = "cpu",
        dtype: str = "float32",
        *,
        triton: bool = False,
        pack: Pack | None = None,
    ) -> None:
        self.spec = spec
        self.kernels = choose(device, dtype, triton)
        self._ops = self.kernels.ops
        load = _Loader(spec, weights, self.kernels, pack)
        self._embed = load.tensor("embed")
        self._head: Linear = self._embed if spec.tied else load.linear("head")
        self._norm = load.norm("norm")
        self._layers = [load.layer(i) for i in range(spec.n_layers)]
        self._scale = spec.attn_scale or spec.head_dim**-0.5
        self._activation = {"silu": self._ops.silu_mul, "gelu_tanh": self._ops.gelu_tanh_mul}[spec.activation]

    @torch.inference_mode()
    def forward(self, batch: StepBatch, kv: KvPool) -> torch.Tensor:
        """Write the batch's keys and values into `kv` and return logits [L, vocab] float32 for its `logit_rows`."""
        return self.logits(self.states(batch, kv))

    @torch.inference_mode()
    def states(self, batch: StepBatch, kv: KvPool) -> torch.Tensor:
        """Write the batch's keys and values into `kv` and return [L, hidden], after the final norm, for its `logit_rows`."""
        windows = {of.window for of in self.spec.layers}
        plans = {window: self._ops.plan_attention(batch, window, kv.layers[0]) for window in windows}
        tables = self.tables(self._put(batch.positions), self._put(batch.slots), plans)
        return self._hidden(self._put(batch.tokens), tables, self._put(batch.logit_rows), kv)

    @torch.inference_mode()
    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """[L, vocab] float32 from [L, hidden]."""
        return self._ops.softcap(self._ops.linear(states, self._head).float(), self.spec.final_softcap)

    def tables(self, positions: torch.Tensor, slots: torch.Tensor, plans: dict[int, Any]) -> StepTables:
        """What all layers share: for tokens at `positions` [T] that write `slots` [T], with attention's plans by window."""
        spec, dtype = self.spec, self.kernels.dtype
        ropes = {
            key: self._ops.rope_tables(positions, spec.head_dim, *key, spec.rope_long_freqs, dtype)
            for key in {(of.rope_theta, of.rope_factor) for of in spec.layers}
        }
        return StepTables(slots, ropes, plans)

    def compute(self, tokens: torch.Tensor, tables: StepTables, rows: torch.Tensor | None, kv: KvPool) -> torch.Tensor:
        """The step on the device alone: tokens [T] to logits [L, vocab] float32 of `rows` [L]; None: of all."""
        return self.logits(self._hidden(tokens, tables, rows, kv))

    def _hidden(self, tokens: torch.Tensor, tables: StepTables, rows: torch.Tensor | None, kv: KvPool) -> torch.Tensor:
        ops, eps = self._ops, self.spec.norm_eps
        x = ops.embed(tokens, self._embed, self.spec.embed_scale)
        h = ops.rms_norm(x, self._layers[0].attn_norm, eps)
        for i, (layer, of, pool) in enumerate(zip(self._layers, self.spec.layers, kv.layers, strict=True)):
            h = ops.add_rms_norm(x, self._attention(h, layer, of, pool, tables), layer.mlp_norm, eps)
            following = self._layers[i + 1].attn_norm if i + 1 < len(self._layers) else self._norm
            h = ops.add_rms_norm(x, self._mlp(h, layer), following, eps)
        return h if rows is None else h.index_select(0, rows)

    def _attention(self, h: torch.Tensor, layer: Layer, of: LayerSpec, pool: torch.Tensor, tables: StepTables) -> torch.Tensor:
        """[T, hidden] to [T, hidden]; this step's keys and values are written before anybody reads."""
        ops, spec = self._ops, self.spec
        heads = ops.linear(h, layer.qkv, layer.qkv_bias).view(len(h), -1, spec.head_dim)
        norms = None if layer.q_norm is None or layer.k_norm is None else (layer.q_norm, layer.k_norm)
        rope = tables.ropes[of.rope_theta, of.rope_factor]
        q = ops.rotate_and_write(heads, norms, spec.norm_eps, rope, pool, tables.slots)
        mixed = ops.paged_attention(q, pool, tables.plans[of.window], self._scale, spec.attn_softcap)
        out = ops.linear(mixed, layer.o)
        return out if layer.post_attn_norm is None else ops.rms_norm(out, layer.post_attn_norm, spec.norm_eps)

    def _mlp(self, h: torch.Tensor, layer: Layer) -> torch.Tensor:
        """down(activation(gate(h)) * up(h)), [T, hidden] to [T, hidden]."""
        ops = self._ops
        out = ops.linear(self._activation(ops.linear(h, layer.gate_up)), layer.down)
        return out if layer.post_mlp_norm is None else ops.rms_norm(out, layer.post_mlp_norm, self.spec.norm_eps)

    def _put(self, table: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(table).to(self.kernels.device)
