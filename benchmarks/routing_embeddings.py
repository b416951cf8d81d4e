"""Prompts to vectors for the routing benchmark, kept on disk: the same prompts are never computed twice.

A part of 512 texts is one `.npy`, named by the sha256 of the model, the cut and the texts themselves, so that a run that was
stopped goes on where it was and an edited file computes only what changed.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..runtime.models.encoder import Encoder, Tokens
from ..runtime.store import Store, default_root

PART = 512  # texts of one file
CUT = 128  # tokens of a prompt that are read; what a question is about stands at its start
LONGEST = 20_000  # characters of a prompt that are tokenised


class TextEncoder:
    """An encoder that cuts long texts. `embed` is what a predictor asks for."""

    def __init__(self, name: str, cut: int = CUT) -> None:
        """A model's name or folder. Raises ModelFileError, ModelNotFound."""
        folder = Store(default_root()).ensure(name)
        self._encoder = Encoder(folder)
        self.name, self.cut = name, min(cut, self._encoder.longest)
        self.digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """[N, dim] of length 1."""
        return self._encoder.embed([self._tokens(text) for text in texts])

    def _tokens(self, text: str) -> Tokens:
        found = self._encoder._core.encode(text[:LONGEST].encode("utf-8", "replace").decode("utf-8"))
        return Tokens(found.ids[: self.cut], found.type_ids[: self.cut])


def embed_cached(encoder: TextEncoder, texts: Sequence[str], stop_after_s: float = float("inf")) -> NDArray[np.float32] | None:
    """[N, dim]; None when the time was up before all were there (those that are stay on disk)."""
    folder = default_root() / "embeddings"
    folder.mkdir(parents=True, exist_ok=True)
    started, parts = time.monotonic(), []
    for part, path in _parts(encoder, texts, folder):
        if not path.exists():
            if time.monotonic() - started > stop_after_s:
                return None
            beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
            with beside.open("wb") as file:
                np.save(file, encoder.embed(part), allow_pickle=False)
            beside.replace(path)
        parts.append(np.load(path, allow_pickle=False))
    return np.concatenate(parts)


def _parts(encoder: TextEncoder, texts: Sequence[str], folder: Path) -> Iterator[tuple[Sequence[str], Path]]:
    for start in range(0, len(texts), PART):
        part = texts[start : start + PART]
        digest = hashlib.sha256(f"{encoder.digest}/{encoder.cut}/{len(part)}".encode())
        for text in part:
            digest.update(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest())
        yield part, folder / f"{digest.hexdigest()}.npy"
