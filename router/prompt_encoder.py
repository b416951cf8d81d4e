"""Prompts to vectors for a predictor, by a small encoder in this process; long prompts are cut."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..runtime.blas import one_thread
from ..runtime.models.encoder import Encoder
from ..runtime.store import Store, default_root

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
        readable = [text[:LONGEST].encode("utf-8", "replace").decode("utf-8") for text in texts]
        with one_thread():
            return self._encoder.embed([self._encoder.tokens(text, cut=self.cut) for text in readable])
