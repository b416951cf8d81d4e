"""Google's routes as its own SDK uses them."""

from collections.abc import Sequence
from typing import Any

import httpx2
import numpy as np
import pytest
from google import genai
from google.genai import errors, types


class Letters:
    """A vector says whether a text begins with a."""

    longest = 16

    def of(self, tenant: str) -> "Letters":
        return self

    async def embed(self, inputs: Sequence[Any]) -> tuple[Any, int]:
        return np.array([[text[0] == "a", text[0] != "a"] for text in inputs], np.float32), len(inputs)


@pytest.fixture
def client(serve) -> genai.Client:
    return genai.Client(api_key="k", http_options=types.HttpOptions(base_url=serve().url))


def test_whole_streamed_and_counted(client):
    whole = client.models.generate_content(model="tiny", contents="one two")
    assert whole.text == "one two " and whole.usage_metadata and whole.usage_metadata.prompt_token_count == 3
    streamed = list(client.models.generate_content_stream(model="tiny", contents="one two"))
    assert "".join(chunk.text or "" for chunk in streamed) == "one two "
    assert streamed[-1].candidates and streamed[-1].candidates[0].finish_reason == types.FinishReason.STOP
    assert client.models.count_tokens(model="tiny", contents="one two three").total_tokens == 3


def test_models_and_errors(client):
    assert "models/tiny" in [model.name for model in client.models.list()]
    with pytest.raises(errors.ClientError) as caught:
        client.models.generate_content(model="none", contents="x")
    assert caught.value.code == 404 and caught.value.status == "NOT_FOUND"


def test_vectors_and_one_model(serve):
    server = serve()
    server.app.state.life.services.embedders["letters"] = Letters()
    client = genai.Client(api_key="k", http_options=types.HttpOptions(base_url=server.url))
    made = client.models.embed_content(model="letters", contents=["a", "bb"]).embeddings
    assert made and [one.values for one in made] == [[1.0, 0.0], [0.0, 1.0]]
    short = client.models.embed_content(model="letters", contents="a", config={"output_dimensionality": 1}).embeddings
    assert short and short[0].values == [1.0]
    assert client.models.get(model="tiny").name == "models/tiny"
    one = httpx2.post(f"{server.url}/v1beta/models/letters:embedContent", json={"content": {"parts": [{"text": "b"}]}})
    assert one.json() == {"embedding": {"values": [0.0, 1.0]}}


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({}, "requests"),
        ({"requests": [{}]}, "requests[0].content"),
        ({"requests": [{"content": {"parts": []}}]}, "requests[0].content"),
        (
            {"requests": [{"content": {"parts": [{"text": "a"}]}, "outputDimensionality": 0}]},
            "requests[0].outputDimensionality",
        ),
    ],
)
def test_a_bad_wish_for_vectors_is_named(serve, body, named):
    refused = httpx2.post(f"{serve().url}/v1beta/models/tiny:batchEmbedContents", json=body)
    assert refused.status_code == 400 and named in refused.json()["error"]["message"]


def test_a_bad_field_is_named(serve):
    url = f"{serve().url}/v1beta/models/tiny:generateContent"
    refused = httpx2.post(url, json={"contents": [{"parts": [{"text": 3}]}]}, headers={"x-goog-api-key": "k"})
    assert refused.status_code == 400 and refused.json()["error"]["status"] == "INVALID_ARGUMENT"
    assert httpx2.post(url.replace(":generateContent", ":sing"), json={}).status_code == 404
