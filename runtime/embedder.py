"""Encoders as a service: texts to vectors, documents to scores, computed outside of the event loop."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..wire.errors import BadRequest
from .models.encoder import Encoder, Tokens

T = TypeVar("T")
Method = Literal["cross-encoder", "embeddings"]


class Embedder:
    """One encoder. `close` it."""

    def __init__(self, name: str, folder: Path) -> None:
        """Load it. Raises ModelFileError."""
        self.name, self._encoder = name, Encoder(folder)
        self._thread = ThreadPoolExecutor(1, "embed")  # one at a time: numpy itself uses all cores

    @property
    def longest(self) -> int:
        """Tokens of a text."""
        return self._encoder.longest

    @property
    def dim(self) -> int:
        """Numbers of a vector."""
        return self._encoder.dim

    def of(self, tenant: str) -> "Embedder":
        """Itself: it keeps nothing of one text for another."""
        return self

    async def embed(self, inputs: Sequence[str | tuple[int, ...]]) -> tuple[NDArray[np.float32], int]:
        """Vectors [N, dim] of length 1, and how many tokens were read. Raises BadRequest, ContextLengthExceeded."""
        return await self._off_loop(self._embed, inputs)

    async def rank(self, query: str, documents: Sequence[str]) -> tuple[list[float], Method, int]:
        """Each document's score for a query, what made it, and how many tokens were read."""
        return await self._off_loop(self._rank, query, documents)

    def close(self) -> None:
        """Let the thread go."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _off_loop(self, work: Callable[..., T], *given: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *given)

    def _embed(self, inputs: Sequence[str | tuple[int, ...]]) -> tuple[NDArray[np.float32], int]:
        if self._encoder.is_cross:
            raise BadRequest("This model scores pairs of texts; it makes no vectors.", param="model")
        texts = [self._encoder.tokens(given) for given in inputs]
        return self._encoder.embed(texts), _count(texts)

    def _rank(self, query: str, documents: Sequence[str]) -> tuple[list[float], Method, int]:
        if self._encoder.is_cross:
            pairs = [self._encoder.tokens(query, document) for document in documents]
            return [float(1 / (1 + np.exp(-score))) for score in self._encoder.score(pairs)], "cross-encoder", _count(pairs)
        texts = [self._encoder.tokens(text) for text in (query, *documents)]
        vectors = self._encoder.embed(texts)
        return [float(score) for score in vectors[1:] @ vectors[0]], "embeddings", _count(texts)


def _count(texts: Sequence[Tokens]) -> int:
    return sum(len(text.ids) for text in texts)
