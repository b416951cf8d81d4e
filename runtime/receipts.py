"""What an answer's bits depend on, as digests: whoever has the same model, template, kernels, settings and seed, and the same
request, gets the same tokens on any load. All digests are sha256 in hexadecimal.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.lib.introspect import opt_func_info

from ..wire.chat import Receipt, SamplingParams
from .models.model_file import LoadedModel

HERE = Path(__file__).parent
# Python that has a say in which token comes after given logits.
CHOOSING = (
    *(
        f"engine/{name}.py"
        for name in ("sampler", "grammar", "thought", "core", "batch", "request", "speculative", "detokenize")
    ),
    "grammars.py",
)
# And in which tokens a conversation becomes.
WRITING = tuple(
    f"models/{name}.py" for name in ("chat_template", "chat_messages", "template_worker", "tokenizer", "gguf_vocab")
)
SETTINGS = tuple(f.name for f in fields(SamplingParams) if f.name not in ("seed", "max_tokens"))


@dataclass(frozen=True, slots=True)
class Identity:
    """A loaded model, as receipts name it."""

    model: str  # the weights' bytes
    template: str  # what makes token ids of a conversation
    kernels: str  # what makes the next token of token ids


def identity_of(model: LoadedModel, layout: str) -> Identity:
    """`layout`: the runner's own word on what its bits depend on beside the weights. Reads the whole file the first time."""
    return Identity(model.digest, template_digest(model), kernels_digest(layout))


def template_digest(model: LoadedModel) -> str:
    """The chat template with its named tokens, the tokenizer's files where they lie beside the weights, and our own code."""
    files = sorted(model.path.glob("token*.json")) if model.path.is_dir() else []
    dialects = sorted((HERE / "models/tool_dialects").glob("*.py"))
    code = _files([*(HERE / name for name in WRITING), *dialects, *files])
    return _digest([model.template.described(), version("minijinja"), version("tokenizers"), code])


def kernels_digest(layout: str) -> str:
    """The step's code and instruction set, and what draws a token from its logits: numpy's exp differs in its last bit between
    instruction sets."""
    exp = opt_func_info(func_name="^exp$", signature="float32")["exp"]
    drawn_by = [np.__version__, {kind: found.get("current") for kind, found in exp.items()}, version("llguidance")]
    return _digest([layout, drawn_by, _files(HERE / name for name in CHOOSING)])


def settings_digest(sampling: SamplingParams, room: int) -> str:
    """What holds for one answer once the server's settings have had their say, without its seed; `room`: tokens it may have."""
    return _digest([*(getattr(sampling, name) for name in SETTINGS), room])


def tokens_digest(prompt: Sequence[int], answers: Sequence[Sequence[int]]) -> str:
    """Prompt and answers in one: of an answer alone, a short one could be guessed."""
    whole = hashlib.sha256()
    for ids in (prompt, *answers):
        whole.update(len(ids).to_bytes(8, "little") + array("q", ids).tobytes())
    return whole.hexdigest()


def receipt(identity: Identity | None, sampling: SamplingParams, room: int) -> Receipt:
    """Of an answer that is about to begin; without the digests of a model that nobody has identified."""
    known = (identity.model, identity.template, identity.kernels) if identity else (None, None, None)
    return Receipt(*known, settings_digest(sampling, room), sampling.seed)


def _files(paths: Iterable[Path]) -> str:
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in paths)).hexdigest()


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
