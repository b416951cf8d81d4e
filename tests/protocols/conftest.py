"""What stands in for models here: one says the last message back, one counts letters."""

from collections.abc import AsyncGenerator, Sequence
from typing import Any

import numpy as np

from baseload.wire.backend import ModelInfo
from baseload.wire.chat import ChatRequest, Event, Finish, TextDelta, Usage


class Echo:
    """A backend that says the last message back."""

    models = (ModelInfo("tiny", 4096, tools=True),)

    async def generate(self, request: ChatRequest) -> AsyncGenerator[Event, None]:
        text = request.messages[-1].text if request.messages else str(request.prompt)
        for index in range(request.sampling.n):
            yield TextDelta(text, index, 1)
        yield Usage(4, request.sampling.n)
        for index in range(request.sampling.n):
            yield Finish("stop", index)

    def count_tokens(self, request: ChatRequest) -> int:
        return 4

    def token_ids(self, request: ChatRequest, *, begun: bool = True, bare: bool = False) -> Sequence[int]:
        return [1, 2, 3, 4]

    def text_of(self, ids: Sequence[int]) -> str:
        return " ".join(map(str, ids))


class Letters:
    """A vector counts the letters a and b."""

    longest = 16

    def of(self, tenant: str) -> "Letters":
        return self

    async def embed(self, inputs: Sequence[Any]) -> tuple[Any, int]:
        return np.array([[str(text).count("a"), str(text).count("b")] for text in inputs], np.float32), len(inputs)

    async def rank(self, query: str, documents: Sequence[str]) -> tuple[list[float], str, int]:
        return [float(document.count(query)) for document in documents], "embeddings", 3
