"""Google's routes as its own SDK uses them."""

import httpx2
import pytest
from google import genai
from google.genai import errors, types


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


def test_a_bad_field_is_named(serve):
    url = f"{serve().url}/v1beta/models/tiny:generateContent"
    refused = httpx2.post(url, json={"contents": [{"parts": [{"text": 3}]}]}, headers={"x-goog-api-key": "k"})
    assert refused.status_code == 400 and refused.json()["error"]["status"] == "INVALID_ARGUMENT"
    assert httpx2.post(url.replace(":generateContent", ":sing"), json={}).status_code == 404
