"""Embeddings and reranking as their clients see them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import openai
import pytest


class Letters:
    """A vector counts the letters a and b."""

    longest = 16

    def of(self, tenant: str) -> "Letters":
        return self

    async def embed(self, inputs: Sequence[Any]) -> tuple[Any, int]:
        rows = [[text.count("a"), text.count("b")] if isinstance(text, str) else [len(text), 0] for text in inputs]
        vectors = np.array(rows, np.float32)
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9), len(rows)

    async def rank(self, query: str, documents: Sequence[str]) -> tuple[list[float], str, int]:
        return [float(document.count(query)) for document in documents], "embeddings", 3


@pytest.fixture
def running(serve) -> Any:
    server = serve()
    server.app.state.life.services.embedders["letters"] = Letters()
    return server


def test_vectors_in_both_forms(running):
    client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="k", max_retries=0)
    plain = client.embeddings.create(model="letters", input=["aab", "b"], encoding_format="float")
    packed = client.embeddings.create(model="letters", input=["aab", "b"])  # asks for base64 by itself, and unpacks it
    for made in (plain, packed):
        assert np.allclose([d.embedding for d in made.data], [[0.8944, 0.4472], [0, 1]], atol=1e-3)
        assert [d.index for d in made.data] == [0, 1] and made.usage.prompt_tokens == 2
    assert client.embeddings.create(model="letters", input=[4, 5, 6]).data[0].embedding == [1, 0]
    short = client.embeddings.create(model="letters", input="aab", dimensions=1)
    assert short.data[0].embedding == [1]


def test_documents_in_their_order(running):
    asked = {"model": "letters", "query": "a", "documents": ["b", "aa", {"text": "a"}], "top_n": 2, "return_documents": True}
    answer = running.post("/v1/rerank", **asked).json()
    assert [(r["index"], r["relevance_score"], r["document"]["text"]) for r in answer["results"]] == [
        (1, 2.0, "aa"),
        (2, 1.0, "a"),
    ]
    assert answer["method"] == "embeddings" and answer["usage"]["total_tokens"] == 3


def test_models_are_listed_and_unknown_ones_refused(running):
    assert "letters" in [m["id"] for m in running.get("/v1/models").json()["data"]]
    refused = running.post("/v1/embeddings", model="tiny", input="x")
    assert refused.status_code == 404 and refused.json()["error"]["code"] == "model_not_found"


BAD = [
    ("/v1/embeddings", {"input": None}, "input"), ("/v1/embeddings", {"input": []}, "input"),
    ("/v1/embeddings", {"input": [[]]}, "input"), ("/v1/embeddings", {"input": ["a", 3]}, "input"),
    ("/v1/embeddings", {"input": ""}, "input"), ("/v1/embeddings", {"input": [-1]}, "input"),
    ("/v1/embeddings", {"input": "a", "encoding_format": "int8"}, "encoding_format"),
    ("/v1/embeddings", {"input": "a", "dimensions": 0}, "dimensions"), ("/v1/embeddings", {"input": "a", "user": 3}, "user"),
    ("/v1/rerank", {"query": "", "documents": ["a"]}, "query"), ("/v1/rerank", {"query": "a", "documents": []}, "documents"),
    ("/v1/rerank", {"query": "a", "documents": [3]}, "documents"),
    ("/v1/rerank", {"query": "a", "documents": ["a"], "top_n": 0}, "top_n"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "fields", "named"), BAD, ids=str)
def test_a_bad_field_is_named(running, path, fields, named):
    refused = running.post(path, model="letters", **fields)
    assert refused.status_code == 400 and named in refused.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body", "protocol"),
    [
        ("/v1/embeddings", {"input": ["aab", "b"]}, "openai_embeddings"),
        ("/v1/rerank", {"query": "a", "documents": ["ab", "b"]}, "rerank"),
        ("/api/embed", {"input": "aab"}, "ollama_embed"),
    ],
)
def test_each_stands_in_the_books(running, path, body, protocol):
    answer = running.post(path, model="letters", **body)
    assert answer.status_code == 200
    head, tried = running.ledger.rows
    assert (head.id, head.protocol, head.status) == (answer.headers["x-baseload-request-id"], protocol, "done")
    assert (tried.request_id, tried.model, tried.accepted) == (head.id, "letters", True) and tried.prompt_tokens > 0
    assert running.post(path, model="nobody", **body).status_code == 404
    assert [(row.status, row.error_code) for row in running.ledger.rows[2::2]] == [("failed", "model_not_found")]
