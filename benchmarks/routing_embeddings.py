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

from ..router.prompt_encoder import TextEncoder
from ..runtime.store import default_root

PART = 512  # texts of one file


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
