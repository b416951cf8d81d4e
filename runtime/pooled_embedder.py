"""A decoder as an encoder: a text's vector is what the model makes of its last token, which has seen all others."""

import asyncio
import uuid
from collections.abc import Sequence
from contextlib import aclosing
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..wire.chat import SamplingParams
from ..wire.errors import ContextLengthExceeded, InternalError, Unavailable
from .engine import Engine, GenerationRequest
from .local_backend import Lend
from .models.model_file import LoadedModel

AT_ONCE = 32  # texts of one request in the engine: others are to be let in too
NO_ANSWER = SamplingParams(temperature=0, max_tokens=1)


class PooledEmbedder:
    """A served decoder's vectors: its last layer's state at the last token (vLLM's default for decoders), of length 1."""

    def __init__(self, model: LoadedModel, lend: Lend, longest: int, tenant: str = "") -> None:
        """`lend` gives the engine that runs `model`; `longest`: tokens of a text; `tenant`: whose prefix pages are used."""
        self._model, self._lend, self.longest, self._tenant = model, lend, longest, tenant
        self.dim = model.config.decoder.hidden

    def of(self, tenant: str) -> "PooledEmbedder":
        """The same on that tenant's pages."""
        return PooledEmbedder(self._model, self._lend, self.longest, tenant)

    async def embed(self, inputs: Sequence[str | tuple[int, ...]]) -> tuple[NDArray[np.float32], int]:
        """Vectors [N, dim] of length 1, and how many tokens were read. Raises BadRequest, ContextLengthExceeded, RateLimited,
        Unavailable."""
        for given in inputs:
            self._bearable(given)
        texts = await asyncio.to_thread(lambda: [self._tokens(given) for given in inputs])
        gate = asyncio.Semaphore(AT_ONCE)
        async with self._lend() as engine:
            tasks = [asyncio.ensure_future(self._state(engine, ids, gate)) for ids in texts]
            try:
                states = np.stack(await asyncio.gather(*tasks))
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        lengths = np.linalg.norm(states, axis=1, keepdims=True)
        return states / np.maximum(lengths, 1e-12), sum(map(len, texts))

    async def rank(self, query: str, documents: Sequence[str]) -> tuple[list[float], Literal["embeddings"], int]:
        """Each document's likeness to a query, what made it, and how many tokens were read."""
        vectors, tokens = await self.embed([query, *documents])
        return [float(score) for score in vectors[1:] @ vectors[0]], "embeddings", tokens

    def _bearable(self, text: str | tuple[int, ...]) -> None:
        """Refuse what is too long without a look at its tokens."""
        most = (
            len(text.encode("utf-8", "replace")) // self._model.tokenizer.longest_token if isinstance(text, str) else len(text)
        )
        if most >= self.longest:
            raise ContextLengthExceeded(
                f"This model's maximum context length is {self.longest} tokens. However, your input has at least {most} "
                "tokens. Please shorten it.",
                param="input",
            )

    def _tokens(self, text: str | tuple[int, ...]) -> Sequence[int]:
        if not isinstance(text, str):
            return text
        bos = self._model.tokenizer.bos_id if self._model.config.add_bos else None
        return [*([] if bos is None else [bos]), *self._model.tokenizer.encode(text, specials=False)]

    async def _state(self, engine: Engine, ids: Sequence[int], gate: asyncio.Semaphore) -> NDArray[np.float32]:
        wanted = GenerationRequest(uuid.uuid4().hex, ids, NO_ANSWER, cache_salt=self._tenant, wants_state=True)
        async with gate, aclosing(engine.submit(wanted)) as stream:
            async for output in stream:
                if (failed := output.failure) is not None:
                    unwell = failed.status == 503
                    raise Unavailable(failed.message, code=failed.code) if unwell else InternalError(failed.message)
                if output.state is not None:
                    return output.state
        raise InternalError("The engine ended a text without its vector.")
