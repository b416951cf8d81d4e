"""Google's embedContent and batchEmbedContents, served; pure. Both are wire/embeddings.py's request in other words."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .embeddings import MAX_INPUTS, EmbeddingRequest, parse_embeddings, shortened
from .fields import bad, integer
from .google_content import given, listed, parse_contents, pick


def parse_batch(body: Mapping[str, Any], model: str) -> EmbeddingRequest:
    """The request of batchEmbedContents, all of whose parts ask for as many dimensions. Raises BadRequest, naming the field."""
    found = listed(body.get("requests"), "requests", MAX_INPUTS)
    if not found:
        raise bad("requests", "must be a list with at least one request")
    asked = [_text(value, f"requests[{i}]") for i, value in enumerate(found)]
    if len({dimensions for _, dimensions in asked}) > 1:
        raise bad("requests", "must all have the same outputDimensionality")
    return _request(model, [text for text, _ in asked], asked[0][1])


def parse_one(body: Mapping[str, Any], model: str) -> EmbeddingRequest:
    """The request of embedContent. Raises BadRequest, naming the field."""
    text, dimensions = _text(body, "")
    return _request(model, [text], dimensions)


def _request(model: str, texts: list[str], dimensions: int | None) -> EmbeddingRequest:
    return parse_embeddings({"model": model, "input": texts, "dimensions": dimensions})


def _text(value: Any, at: str) -> tuple[str, int | None]:
    """The text of one request, and how long its vector shall be."""
    if not isinstance(value, dict):
        raise bad(at, "must be an object")
    at = f"{at}." if at else ""
    content = given(value, "content", dict, at=at)
    if content is None:
        raise bad(f"{at}content", "is missing")
    text = "".join(message.text for message in parse_contents([content]))
    if not text:
        raise bad(f"{at}content", "has no text")
    given(value, "taskType", str, at=at)
    given(value, "title", str, at=at)
    name = f"{at}outputDimensionality"
    return text, integer({name: pick(value, "outputDimensionality")}, name, None, 1, 65_536)


def render_batch(request: EmbeddingRequest, vectors: NDArray[np.float32]) -> dict[str, Any]:
    """The answer of batchEmbedContents."""
    return {"embeddings": [{"values": vector} for vector in shortened(request, vectors).tolist()]}


def render_one(request: EmbeddingRequest, vectors: NDArray[np.float32]) -> dict[str, Any]:
    """The answer of embedContent."""
    return {"embedding": render_batch(request, vectors)["embeddings"][0]}
