"""Responses as their own SDK sees them: made, streamed, continued, fetched, forgotten; messages as Anthropic's sees them."""

import anthropic
import openai
import pytest


@pytest.fixture
def client(serve) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{serve().url}/v1", api_key="k", max_retries=0)


def test_made_fetched_and_forgotten(client):
    made = client.responses.create(model="tiny", input="one two", instructions="x")
    assert made.output_text == "one two " and made.status == "completed" and made.id.startswith("resp_")
    assert client.responses.retrieve(made.id).output_text == "one two "
    items = client.responses.input_items.list(made.id)
    assert [item.content[0].text for item in items.data] == ["one two"]
    client.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(made.id)


def test_streamed(client):
    with client.responses.stream(model="tiny", input="one two") as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert kinds[0] == "response.created" and kinds[-1] == "response.completed"
    assert final.output_text == "one two "
    assert client.responses.retrieve(final.id).output_text == "one two "


def test_continued(client):
    first = client.responses.create(model="tiny", input="one")
    second = client.responses.create(model="tiny", input="two", previous_response_id=first.id)
    assert [i.role for i in client.responses.input_items.list(second.id).data] == ["user", "assistant", "user"]
    with pytest.raises(openai.NotFoundError) as caught:
        client.responses.create(model="tiny", input="two", previous_response_id="resp_none")
    assert caught.value.code == "previous_response_not_found"


def test_what_is_not_to_be_stored_is_not(client):
    made = client.responses.create(model="tiny", input="one", store=False)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(made.id)


def test_counted(client):
    assert client.responses.input_tokens.count(model="tiny", input="one two three").input_tokens == 3


def test_an_unknown_model(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.responses.create(model="none", input="x")
    assert caught.value.code == "model_not_found"


def test_anthropics_messages(serve):
    client = anthropic.Anthropic(base_url=serve().url, api_key="k", max_retries=0)
    asked = {"model": "tiny", "max_tokens": 9, "messages": [{"role": "user", "content": "one two"}]}
    whole = client.messages.create(**asked)
    assert whole.content[0].text == "one two " and whole.stop_reason == "end_turn" and whole.usage.input_tokens == 3
    with client.messages.stream(**asked) as stream:
        assert "".join(stream.text_stream) == "one two "
    assert client.messages.count_tokens(model="tiny", messages=asked["messages"]).input_tokens == 2
    with pytest.raises(anthropic.NotFoundError) as caught:
        client.messages.create(**{**asked, "model": "none"})
    assert "not_found_error" in str(caught.value.body)
    with pytest.raises(anthropic.BadRequestError):
        client.messages.create(**{**asked, "max_tokens": 0})
