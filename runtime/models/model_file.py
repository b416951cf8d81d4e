"""A model file or folder, opened: configuration, weights, tokenizer and chat template, each checked against the others."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ...wire.errors import ModelFileError
from .chat_template import ChatTemplate, template_from_gguf, template_from_json
from .config import ModelConfig, config_from_gguf, config_from_hf
from .load_gguf import open_gguf
from .load_safetensors import SafetensorsWeights
from .tokenizer import Tokenizer, tokenizer_from_gguf, tokenizer_from_json
from .weights import GgufWeights, Weights, check_shapes

PERMUTED = ("llama", "mistral")  # families whose GGUF converter reorders the rows of q and k


@dataclass(frozen=True)
class LoadedModel:
    """A sound model, ready to be put on a device. Its weights are still in the file."""

    path: Path
    config: ModelConfig
    weights: Weights
    tokenizer: Tokenizer
    template: ChatTemplate

    @cached_property
    def digest(self) -> str:
        """sha256 of the weights' bytes, in hex; reads the whole file the first time."""
        whole = hashlib.sha256()
        for path in sorted(self.path.glob("*.safetensors")) if self.path.is_dir() else [self.path]:
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    whole.update(block)
        return whole.hexdigest()


def load_model(path: Path) -> LoadedModel:
    """Open a .gguf file or a Hugging Face folder. Raises ModelFileError, in one line, for anything that does not fit."""
    model = _from_folder(path) if path.is_dir() else _from_gguf(path)
    spec = model.config.decoder
    check_shapes(model.weights, spec)
    # More rows than tokens is usual (padding); the other way round an id would have no row.
    if model.tokenizer.vocab_size > spec.vocab:
        raise ModelFileError(f"{model.tokenizer.vocab_size} tokens in the vocabulary, but {spec.vocab} rows to embed them")
    if spec.vocab - model.tokenizer.vocab_size > max(1024, spec.vocab // 8):
        raise ModelFileError(f"{spec.vocab} rows to embed tokens, but only {model.tokenizer.vocab_size} in the vocabulary")
    if any(not 0 <= token < spec.vocab for token in model.tokenizer.eos_ids):
        raise ModelFileError("the end-of-sequence token is not in the vocabulary")
    return model


def check_model(path: Path) -> str:
    """What can be said of a sound model in one line, its chat template tried once. Raises ModelFileError, in one line."""
    if not path.exists():
        raise ModelFileError(f"there is no model file {path.name!r}")
    model = load_model(path)
    try:
        model.template.check()
    finally:
        model.template.close()
    spec = model.config.decoder
    size = f"{spec.n_layers} layers, {spec.hidden} wide, {spec.vocab} tokens, context {spec.context_length}"
    return f"{model.config.name}: sound ({model.config.family}, {size})"


def _from_gguf(path: Path) -> LoadedModel:
    file = open_gguf(path)
    config = config_from_gguf(file)
    weights = GgufWeights(file, config.decoder, permuted=config.family in PERMUTED)
    tokenizer, template = tokenizer_from_gguf(file.metadata), template_from_gguf(file.metadata)
    return LoadedModel(path, config, weights, tokenizer, template)


def _from_folder(path: Path) -> LoadedModel:
    config = config_from_hf(path)
    weights = SafetensorsWeights(path, config.decoder, norm_plus_one=config.family == "gemma3")
    return LoadedModel(path, config, weights, tokenizer_from_json(path), template_from_json(path))
