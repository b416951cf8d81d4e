"""What a kernel is told: plain ints, floats and arrays. The runtime fills these in; kernels know no more of a model."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Activation = Literal["silu", "gelu_tanh"]


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """What may differ from layer to layer. `window` 0 = full attention, else a query at position p sees (p - window, p]."""

    window: int = 0
    rope_theta: float = 10000.0
    rope_factor: float = 1.0  # linear scaling: position / factor


@dataclass(frozen=True, slots=True)
class DecoderSpec:
    """A decoder-only transformer as data; the families differ in these values alone."""

    n_layers: int
    hidden: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    context_length: int
    norm_eps: float
    layers: tuple[LayerSpec, ...]
    activation: Activation = "silu"
    qkv_bias: bool = False  # Qwen2.5
    qk_norm: bool = False  # Qwen3, Gemma 3: RMS norm over head_dim before rope
    post_norms: bool = False  # Gemma: norms after attention and after the MLP, before the residual is added
    norm_offset: float = 0.0  # Gemma's safetensors hold w - 1: the norm multiplies by (w + offset); 0 for GGUF files
    embed_scale: float = 1.0  # Gemma: sqrt(hidden)
    attn_scale: float = 0.0  # 0 = head_dim ** -0.5
    attn_softcap: float = 0.0  # 0 = off
    final_softcap: float = 0.0  # 0 = off
    tied: bool = True  # the output head is the embedding
    rope_long_freqs: tuple[float, ...] = ()  # Llama 3.1's scaling: a factor per rope frequency, () = none


@dataclass(frozen=True, slots=True)
class Draws:
    """How tokens are drawn from a batch's logit rows, where the device does that. What is drawn depends on the row's logits,
    its key and its position alone."""

    wanted: NDArray[np.bool_]  # [L] whether a token is to be drawn; else the host takes the best, or reads the logits
    temperature: NDArray[np.float32]  # [L] above 0 where wanted
    top_k: NDArray[np.int32]  # [L] 0: all
    top_p: NDArray[np.float32]  # [L] 1: all
    min_p: NDArray[np.float32]  # [L] 0: all
    keys: NDArray[np.int64]  # [L] of the random numbers
    positions: NDArray[np.int32]  # [L] of the tokens drawn, in their sequences


@dataclass(frozen=True, slots=True)
class StepBatch:
    """One ragged step: R rows (sequences) of q_len tokens each, laid end to end as T tokens; no padding, no modes.

    A row is a decode (q_len 1), a prefill chunk, or anything between. The KV of token t goes to flat slot
    `page * page_size + offset`; a row attends to its own pages, of which the first `context_lens[r]` positions are filled
    once this step's tokens are written.
    """

    tokens: NDArray[np.int32]  # [T] token ids
    positions: NDArray[np.int32]  # [T] position of each token in its sequence
    slots: NDArray[np.int64]  # [T] flat KV slot that each token writes
    row_starts: NDArray[np.int32]  # [R + 1] row r's tokens are row_starts[r] : row_starts[r + 1]
    context_lens: NDArray[np.int32]  # [R] tokens in the sequence after this step
    page_tables: NDArray[np.int32]  # [R, P] page numbers, rows padded at the end with 0
    logit_rows: NDArray[np.int32]  # [L] indices into T whose logits are wanted
    full_logits: NDArray[np.bool_]  # [L] whether the whole row of logits is wanted; else its largest only
    page_size: int
    wants_states: bool = False  # what goes into the output head, of all of them
    draws: Draws | None = None  # None: no row's token is drawn on the device


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What a step says of each of the batch's `logit_rows`. A greedy row needs `best` alone: its logits need not be kept."""

    best: NDArray[np.int32]  # [L] index of each row's largest logit, the lowest index among equals; any, if not finite
    finite: NDArray[np.bool_]  # [L] whether that largest is finite and the row has no NaN
    logits: NDArray[np.float32]  # [L, vocab]; a row is filled only where batch.full_logits
    states: NDArray[np.float32] | None = None  # [L, hidden] after the final norm, where batch.wants_states
    drawn: NDArray[np.int32] | None = None  # [L] tokens, -1 where batch.draws wants none

    @classmethod
    def of(cls, logits: NDArray[np.float32], states: NDArray[np.float32] | None = None) -> "StepOutput":
        """From all logits [L, vocab]."""
        best = logits.argmax(1)  # a NaN counts as the largest, so it is found here too
        finite = np.isfinite(logits[np.arange(len(best)), best])
        return cls(best.astype(np.int32), finite, logits, states)
