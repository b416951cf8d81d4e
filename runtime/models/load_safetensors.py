"""Weights of a Hugging Face folder: one model.safetensors, or several named by model.safetensors.index.json.

The safetensors library checks the files' headers; nothing else in the folder is opened, and no format that can hold code.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from ...kernels.cpu.pack import Grouped, bf16
from ...kernels.spec import DecoderSpec
from ...wire.errors import ModelFileError

TOP = {"embed": "embed_tokens.weight", "norm": "norm.weight"}
LAYER = {
    "attn_norm": "input_layernorm.weight",
    "q": "self_attn.q_proj.weight",
    "k": "self_attn.k_proj.weight",
    "v": "self_attn.v_proj.weight",
    "o": "self_attn.o_proj.weight",
    "q_bias": "self_attn.q_proj.bias",
    "k_bias": "self_attn.k_proj.bias",
    "v_bias": "self_attn.v_proj.bias",
    "q_norm": "self_attn.q_norm.weight",
    "k_norm": "self_attn.k_norm.weight",
    "mlp_norm": "post_attention_layernorm.weight",
    "gate": "mlp.gate_proj.weight",
    "up": "mlp.up_proj.weight",
    "down": "mlp.down_proj.weight",
}
WITH_POST_NORMS = LAYER | {
    "post_attn_norm": "post_attention_layernorm.weight",
    "mlp_norm": "pre_feedforward_layernorm.weight",
    "post_mlp_norm": "post_feedforward_layernorm.weight",
}
PREFIXES = ("model.", "language_model.model.", "model.language_model.", "")  # the last two: models that also see
DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}
NORM_LESS_ONE = ("norm",)  # Gemma's files hold w - 1 in every norm


class SafetensorsWeights:
    """The weights of a folder. `norm_plus_one` (Gemma): the files hold w - 1 of each norm's weight."""

    def __init__(self, folder: Path, spec: DecoderSpec, *, norm_plus_one: bool) -> None:
        self._plus_one = norm_plus_one
        self._files = {name: path for path in _files(folder) for name in _opened(path).keys()}  # noqa: SIM118
        self._names = {ours: theirs for ours, theirs in _names(spec, self._files).items() if theirs in self._files}

    def names(self) -> frozenset[str]:
        """See Weights."""
        return frozenset(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        """See Weights."""
        return tuple(self._slice(name).get_shape())

    def tensor(self, name: str) -> NDArray[np.float32]:
        """See Weights."""
        part = self._slice(name)
        kind = part.get_dtype()
        if kind not in DTYPES:
            raise ModelFileError(f"the weight {name!r} has the unsupported type {kind}")
        found = _float32(self._files[self._theirs(name)], self._theirs(name), kind)
        return found + np.float32(1) if self._plus_one and name.endswith(NORM_LESS_ONE) else found

    def grouped(self, name: str) -> Grouped:
        """See Weights."""
        return bf16(self.tensor(name))

    def release(self) -> None:
        """See Weights. Nothing is kept."""

    def _theirs(self, name: str) -> str:
        if name not in self._names:
            raise ModelFileError(f"the weight {name!r} is missing")
        return self._names[name]

    def _slice(self, name: str) -> Any:
        theirs = self._theirs(name)
        return _opened(self._files[theirs]).get_slice(theirs)


def _names(spec: DecoderSpec, found: dict[str, Path]) -> dict[str, str]:
    prefix = next((p for p in PREFIXES if p + TOP["embed"] in found), PREFIXES[0])
    layer = WITH_POST_NORMS if spec.post_norms else LAYER
    names = {ours: prefix + theirs for ours, theirs in TOP.items()}
    names["head"] = "language_model.lm_head.weight" if "language_model.lm_head.weight" in found else "lm_head.weight"
    return names | {
        f"layers.{i}.{ours}": f"{prefix}layers.{i}.{theirs}" for i in range(spec.n_layers) for ours, theirs in layer.items()
    }


def _files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return [folder / "model.safetensors"]
    try:
        named = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelFileError("model.safetensors.index.json cannot be read") from error
    if not all(isinstance(name, str) and Path(name).name == name for name in named):
        raise ModelFileError("model.safetensors.index.json names a file outside its folder")
    return [folder / name for name in sorted(named)]


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="np")
    except (OSError, SafetensorError) as error:
        raise ModelFileError(f"{path.name} cannot be read: {str(error)[:200]}") from error


def _float32(path: Path, name: str, kind: str) -> NDArray[np.float32]:
    """numpy has no bfloat16, so the bytes are read by their place in the file, which safe_open has already checked."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(size))[name]
        begin, end = entry["data_offsets"]
        file.seek(8 + size + begin)
        data = np.frombuffer(file.read(end - begin), DTYPES[kind]).reshape(entry["shape"])
    return (data.astype(np.uint32) << 16).view(np.float32) if kind == "BF16" else data.astype(np.float32)
