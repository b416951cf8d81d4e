"""What a model is, as data: GGUF metadata or a Hugging Face config.json to a `DecoderSpec`.

The families differ here and in weights.py's tables, nowhere else. Every value is checked before anything is sized by it; an
error names the field.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...kernels.spec import DecoderSpec, LayerSpec
from ...wire.errors import ModelFileError
from .load_gguf import GgufFile
from .quants import dequantize

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma3")
GGUF_FAMILY = {"llama": "llama", "mistral3": "mistral", "qwen2": "qwen2", "qwen3": "qwen3", "gemma3": "gemma3"}
HF_FAMILY = {"gemma3_text": "gemma3", **{name: name for name in FAMILIES}}
GEMMA_LOCAL_THETA, GEMMA_PATTERN = 10_000.0, 6  # five sliding layers, then one that sees all
GEMMA_27B_LAYERS = 62  # the one size whose queries are scaled by hidden / heads instead of head_dim
LIMITS = {  # what no public model comes near; a larger number is a broken file
    "n_layers": 1024,
    "hidden": 1 << 17,
    "n_heads": 4096,
    "n_kv_heads": 4096,
    "head_dim": 4096,
    "intermediate": 1 << 20,
    "vocab": 1 << 22,
    "context_length": 1 << 31,
}


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A model's name, family and shape. `default_sampling` is generation_config.json's, as it stands there."""

    name: str
    family: str
    decoder: DecoderSpec
    add_bos: bool = False
    default_sampling: Mapping[str, Any] = field(default_factory=dict)


class _Fields:
    """Typed reading of a table under the names that its format uses."""

    def __init__(self, table: Mapping[str, Any], prefix: str = "") -> None:
        self._table, self._prefix = table, prefix

    def get(self, name: str, kind: type, default: Any = None) -> Any:
        """The value, of `kind` (int, float, bool or str); `default` where it is absent or null; ModelFileError otherwise."""
        value = self._table.get(self._prefix + name)
        if value is None:
            return default
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise ModelFileError(f"{self._prefix}{name} is not a {kind.__name__}")
        return value

    def need(self, name: str, kind: type) -> Any:
        """As `get`, but absent is an error too."""
        value = self.get(name, kind)
        if value is None:
            raise ModelFileError(f"{self._prefix}{name} is missing")
        return value

    def size(self, name: str, default: int | None = None) -> int:
        """A positive int."""
        value = self.need(name, int) if default is None else self.get(name, int, default)
        if value <= 0:
            raise ModelFileError(f"{self._prefix}{name} is {value}")
        return value


def config_from_gguf(file: GgufFile) -> ModelConfig:
    """The configuration in a GGUF file. Raises ModelFileError."""
    general = _Fields(file.metadata)
    arch = general.need("general.architecture", str)
    if arch not in GGUF_FAMILY:
        raise ModelFileError(f"the architecture {arch[:40]!r} is not supported ({', '.join(sorted(GGUF_FAMILY))} are)")
    family, of = GGUF_FAMILY[arch], _Fields(file.metadata, f"{arch}.")
    embed = file.tensors.get("token_embd.weight")
    if embed is None or len(embed.shape) != 2:
        raise ModelFileError("the tensor 'token_embd.weight' is missing or not a matrix")
    heads, hidden = of.size("attention.head_count"), of.size("embedding_length")
    n_layers = _bounded("n_layers", of.size("block_count"))
    spec = DecoderSpec(
        n_layers=n_layers,
        hidden=hidden,
        n_heads=heads,
        n_kv_heads=of.size("attention.head_count_kv", heads),
        head_dim=of.size("attention.key_length", max(1, hidden // heads)),
        intermediate=of.size("feed_forward_length"),
        vocab=embed.shape[0],
        context_length=of.size("context_length"),
        norm_eps=of.need("attention.layer_norm_rms_epsilon", float),
        layers=_gguf_layers(of, family, n_layers),
        qkv_bias="blk.0.attn_q.bias" in file.tensors,
        qk_norm="blk.0.attn_q_norm.weight" in file.tensors,
        tied="output.weight" not in file.tensors,
        rope_long_freqs=_gguf_frequency_factors(file),
        **_gemma(family, hidden, heads, n_layers),
        attn_softcap=of.get("attn_logit_softcapping", float, 0.0),
        final_softcap=of.get("final_logit_softcapping", float, 0.0),
    )
    add_bos = general.get("tokenizer.ggml.add_bos_token", bool, file.metadata.get("tokenizer.ggml.model") == "llama")
    return ModelConfig(general.get("general.name", str, arch), family, _sound(spec), add_bos)


def config_from_hf(folder: Path) -> ModelConfig:
    """The configuration of a Hugging Face folder. Raises ModelFileError."""
    raw = _json(folder / "config.json")
    top = _Fields(raw)
    if isinstance(raw.get("text_config"), dict):  # a model that also sees: its text part
        raw = {"model_type": f"{top.get('model_type', str, '')}_text", **raw["text_config"]}
    of = _Fields(raw)
    kind = of.need("model_type", str)
    if kind not in HF_FAMILY:
        raise ModelFileError(f"the model type {kind[:40]!r} is not supported ({', '.join(sorted(HF_FAMILY))} are)")
    family = HF_FAMILY[kind]
    heads, hidden = of.size("num_attention_heads"), of.size("hidden_size")
    n_layers = _bounded("n_layers", of.size("num_hidden_layers"))
    spec = DecoderSpec(
        n_layers=n_layers,
        hidden=hidden,
        n_heads=heads,
        n_kv_heads=of.size("num_key_value_heads", heads),
        head_dim=of.size("head_dim", max(1, hidden // heads)),
        intermediate=of.size("intermediate_size"),
        vocab=of.size("vocab_size"),
        context_length=of.size("max_position_embeddings"),
        norm_eps=of.get("rms_norm_eps", float, 1e-6),
        layers=_hf_layers(of, raw, family, n_layers),
        qkv_bias=family == "qwen2" or bool(raw.get("attention_bias")),
        qk_norm=family in ("qwen3", "gemma3"),
        tied=of.get("tie_word_embeddings", bool, family == "gemma3"),
        rope_long_freqs=_llama3_factors(_rope(raw, "full_attention"), of.size("head_dim", max(1, hidden // heads))),
        **{**_gemma(family, hidden, heads, n_layers), **_query_scale(of)},
        attn_softcap=of.get("attn_logit_softcapping", float, 0.0),
        final_softcap=of.get("final_logit_softcapping", float, 0.0),
    )
    generation = _json(folder / "generation_config.json") if (folder / "generation_config.json").is_file() else {}
    return ModelConfig(of.get("_name_or_path", str) or folder.name, family, _sound(spec), family == "gemma3", generation)


# ------------------------------------------------------------------------------------------------ what families differ in


def _gemma(family: str, hidden: int, heads: int, n_layers: int) -> dict[str, Any]:
    if family != "gemma3":
        return {}
    scale = (hidden / heads) ** -0.5 if n_layers == GEMMA_27B_LAYERS else 0.0
    return {"activation": "gelu_tanh", "post_norms": True, "embed_scale": math.sqrt(hidden), "attn_scale": scale}


def _query_scale(of: _Fields) -> dict[str, float]:
    scalar = of.get("query_pre_attn_scalar", float)
    return {"attn_scale": scalar**-0.5} if scalar else {}


def _gguf_layers(of: _Fields, family: str, n: int) -> tuple[LayerSpec, ...]:
    kind = of.get("rope.scaling.type", str, "none")
    if kind not in ("none", "linear"):
        raise ModelFileError(f"rope scaling of the kind {kind[:40]!r} is not supported")
    theta, window = of.get("rope.freq_base", float, 10_000.0), of.get("attention.sliding_window", int, 0)
    factor = of.get("rope.scaling.factor", float, 1.0) if kind == "linear" else 1.0
    if family != "gemma3":
        return (LayerSpec(window, theta, factor),) * n
    local = LayerSpec(window, of.get("rope.freq_base_swa", float, GEMMA_LOCAL_THETA))
    return tuple(LayerSpec(0, theta, factor) if (i + 1) % GEMMA_PATTERN == 0 else local for i in range(n))


def _gguf_frequency_factors(file: GgufFile) -> tuple[float, ...]:
    """Llama 3's scaling: GGUF files carry the factor of each frequency as a tensor."""
    if (info := file.tensors.get("rope_freqs.weight")) is None:
        return ()
    if info.nbytes > 1 << 16:
        raise ModelFileError("the tensor 'rope_freqs.weight' is too large")
    return tuple(dequantize(file.raw(info.name), info.ggml_type, info.shape).ravel().tolist())


def _rope(raw: Mapping[str, Any], layer_type: str) -> dict[str, Any]:
    """The rope settings of one kind of layer: `rope_parameters` (maybe one table per kind), or the older two fields."""
    found = raw.get("rope_parameters")
    if isinstance(found, dict):
        found = found.get(layer_type, found)
    else:
        found = {**(raw.get("rope_scaling") or {})}
    theta = raw.get("rope_local_base_freq") if layer_type == "sliding_attention" else raw.get("rope_theta")
    if theta is not None:
        found = {"rope_theta": theta, **found}
    kind = found.get("rope_type", found.get("type", "default"))
    if kind not in ("default", "linear", "llama3"):
        raise ModelFileError(f"rope scaling of the kind {str(kind)[:40]!r} is not supported")
    return {**found, "rope_type": kind}


def _layer(raw: Mapping[str, Any], layer_type: str, window: int, theta: float) -> LayerSpec:
    rope = _Fields(_rope(raw, layer_type))
    factor = rope.get("factor", float, 1.0) if rope.get("rope_type", str) == "linear" else 1.0
    return LayerSpec(window if layer_type == "sliding_attention" else 0, rope.get("rope_theta", float, theta), factor)


def _hf_layers(of: _Fields, raw: Mapping[str, Any], family: str, n: int) -> tuple[LayerSpec, ...]:
    window = of.get("sliding_window", int, 0)
    pattern = of.get("sliding_window_pattern", int, GEMMA_PATTERN)
    types = raw.get("layer_types")
    if types is None:
        if family == "gemma3":
            types = ["full_attention" if (i + 1) % max(1, pattern) == 0 else "sliding_attention" for i in range(n)]
        else:  # Mistral slides in every layer, Qwen only where it says so
            slides = window > 0 and (family == "mistral" or of.get("use_sliding_window", bool, False))
            types = ["sliding_attention" if slides else "full_attention"] * n
    if not isinstance(types, list) or len(types) != n or not {"full_attention", "sliding_attention"}.issuperset(types):
        raise ModelFileError("layer_types does not name full_attention or sliding_attention once for each layer")
    local_theta = GEMMA_LOCAL_THETA if family == "gemma3" else 10_000.0
    kinds = {
        "full_attention": _layer(raw, "full_attention", 0, 1_000_000.0 if family == "gemma3" else 10_000.0),
        "sliding_attention": _layer(raw, "sliding_attention", window, local_theta) if window else None,
    }
    if window == 0 and "sliding_attention" in types:
        raise ModelFileError("layers slide, but sliding_window is missing")
    return tuple(kind for t in types if (kind := kinds[t]) is not None)


def _llama3_factors(rope: dict[str, Any], head_dim: int) -> tuple[float, ...]:
    """What each rope frequency is divided by in Llama 3.1's scaling (transformers: modeling_rope_utils)."""
    if rope["rope_type"] != "llama3":
        return ()
    of = _Fields(rope)
    theta, factor = of.get("rope_theta", float, 10_000.0), of.need("factor", float)
    low, high = of.need("low_freq_factor", float), of.need("high_freq_factor", float)
    before = of.need("original_max_position_embeddings", int)

    def divisor(i: int) -> float:
        turns = before / (2 * math.pi * theta ** (2 * i / head_dim))  # of this frequency over the original context
        if turns < low:
            return factor
        if turns > high:
            return 1.0
        smooth = (turns - low) / (high - low)
        return 1 / ((1 - smooth) / factor + smooth)

    return tuple(divisor(i) for i in range(head_dim // 2))


# ------------------------------------------------------------------------------------------------ soundness


def _bounded(name: str, value: int) -> int:
    if value > LIMITS[name]:
        raise ModelFileError(f"{name} is {value}, which no model has")
    return value


def _sound(spec: DecoderSpec) -> DecoderSpec:
    """`spec`, if its numbers fit each other. What the tensors say is checked in weights.py."""
    for name in LIMITS:
        _bounded(name, getattr(spec, name))
    if spec.n_heads % spec.n_kv_heads:
        raise ModelFileError(f"{spec.n_heads} heads cannot share {spec.n_kv_heads} key/value heads")
    if spec.head_dim % 2:
        raise ModelFileError(f"head_dim {spec.head_dim} is odd, which rope cannot rotate")
    if not 0 < spec.norm_eps < 1:
        raise ModelFileError(f"the norms' epsilon is {spec.norm_eps}")
    for layer in set(spec.layers):
        if layer.window < 0 or not (1 <= layer.rope_theta < 1e12 and 0 < layer.rope_factor < 1e6):
            raise ModelFileError("rope or sliding window settings are out of range")
    if spec.rope_long_freqs and len(spec.rope_long_freqs) != spec.head_dim // 2:
        raise ModelFileError(f"{len(spec.rope_long_freqs)} rope factors for {spec.head_dim // 2} frequencies")
    if not all(0 < f < 1e6 for f in spec.rope_long_freqs):
        raise ModelFileError("a rope factor is out of range")
    return spec


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelFileError(f"{path.name} cannot be read: {type(error).__name__}") from error
    if not isinstance(found, dict):
        raise ModelFileError(f"{path.name} is not a JSON object")
    return found
