"""OpenAI's embeddings, and reranking as Cohere's and Jina's clients (and vLLM) have it; pure."""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .fields import bad, integer, is_token_id, items, read
from .openai_chat import model_name

MAX_INPUTS, MAX_TEXT = 2048, 1 << 20
Input = str | tuple[int, ...]


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    """Texts, or token ids, to become vectors."""

    model: str
    inputs: tuple[Input, ...]
    as_base64: bool = False
    dimensions: int | None = None  # None: all that the model has


@dataclass(frozen=True, slots=True)
class RerankRequest:
    """Documents to be put in the order of their use for a query."""

    model: str
    query: str
    documents: tuple[str, ...]
    top_n: int
    return_documents: bool = False


def parse_embeddings(body: Mapping[str, Any]) -> EmbeddingRequest:
    """The request in a JSON object. Raises BadRequest, naming the field."""
    form = read(body, "encoding_format", str, "float")
    if form not in ("float", "base64"):
        raise bad("encoding_format", "must be float or base64")
    read(body, "user", str)
    return EmbeddingRequest(
        model_name(body), _inputs(body.get("input")), form == "base64", integer(body, "dimensions", None, 1, 65_536)
    )


def _inputs(value: Any) -> tuple[Input, ...]:
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list) or not value:
        raise bad("input", "must be a text, a list of texts, or token ids")
    if all(is_token_id(v) for v in value):
        return (tuple(value),)
    if len(value) > MAX_INPUTS:
        raise bad("input", f"has {len(value)} items, at most {MAX_INPUTS} are taken")
    return tuple(_input(v, f"input[{i}]") for i, v in enumerate(value))


def _input(value: Any, at: str) -> Input:
    if isinstance(value, str):
        if not 0 < len(value) <= MAX_TEXT:
            raise bad(at, f"must have 1 to {MAX_TEXT} characters")
        return value
    if not isinstance(value, list) or not value or not all(is_token_id(v) for v in value):
        raise bad(at, "must be a text or a list of token ids")
    return tuple(value)


def render_embeddings(request: EmbeddingRequest, vectors: NDArray[np.float32], tokens: int) -> dict[str, Any]:
    """The answer."""
    little = np.ascontiguousarray(shortened(request, vectors), "<f4")
    shown = [b64encode(v.tobytes()).decode() for v in little] if request.as_base64 else little.tolist()
    data = [{"object": "embedding", "index": i, "embedding": value} for i, value in enumerate(shown)]
    return {"object": "list", "data": data, "model": request.model, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}


def shortened(request: EmbeddingRequest, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """The vectors as long as was asked; those that are cut are brought back to length 1."""
    if request.dimensions is None:
        return vectors
    vectors = vectors[:, : request.dimensions]
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def parse_rerank(body: Mapping[str, Any]) -> RerankRequest:
    """The request in a JSON object. Raises BadRequest, naming the field."""
    query = read(body, "query", str)
    if not query or len(query) > MAX_TEXT:
        raise bad("query", f"must have 1 to {MAX_TEXT} characters")
    found = items(body, "documents", MAX_INPUTS)
    if not found:
        raise bad("documents", "must be a list with at least one document")
    texts = tuple(_document(d, f"documents[{i}]") for i, d in enumerate(found))
    top = integer(body, "top_n", len(texts), 1, 1 << 31)
    return RerankRequest(model_name(body), query, texts, min(top, len(texts)), read(body, "return_documents", bool, False))


def _document(value: Any, at: str) -> str:
    text = value.get("text") if isinstance(value, dict) else value
    if not isinstance(text, str) or not 0 < len(text) <= MAX_TEXT:
        raise bad(at, f"must be a text of 1 to {MAX_TEXT} characters, or an object with one")
    return text


def render_rerank(request: RerankRequest, scores: Sequence[float], method: str, id: str, tokens: int) -> dict[str, Any]:
    """The best documents first. `method` says what the scores are."""
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))[: request.top_n]
    texts = [{"document": {"text": text}} if request.return_documents else {} for text in request.documents]
    results = [{"index": i, "relevance_score": scores[i], **texts[i]} for i in order]
    head = {"id": id, "object": "rerank", "model": request.model, "method": method}
    return {**head, "results": results, "usage": {"total_tokens": tokens}}
