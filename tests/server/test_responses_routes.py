"""Responses as their own SDK sees them: made, streamed, continued, fetched, forgotten; messages as Anthropic's sees them."""

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import anthropic
import httpx2
import openai
import pytest
from pydantic import BaseModel

from baseload.server import streaming
from baseload.server.responses import Shelf
from baseload.wire.chat import ChatRequest, Event, Failure, Finish, Image, Message, TextDelta, ToolCallDelta, Usage
from baseload.wire.errors import NotFound
from baseload.wire.openai_responses import PING


@pytest.fixture
def client(serve) -> Any:
    return sdk(serve().url)


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


def test_streamed_event_by_event(client):
    events = list(client.responses.create(model="tiny", input="one two", stream=True))
    assert [e.delta for e in events if e.type == "response.output_text.delta"] == ["one ", "two "]
    assert [e.sequence_number for e in events] == list(range(len(events)))


class Point(BaseModel):
    x: int


async def point(ask: ChatRequest) -> AsyncGenerator[Event, None]:
    assert ask.response_format.kind == "json_schema"
    yield TextDelta('{"x": 3}', tokens=4)
    yield Usage(3, 4)
    yield Finish("stop")


async def calls(ask: ChatRequest) -> AsyncGenerator[Event, None]:
    yield ToolCallDelta(0, "c0", ask.tools[0].name, '{"a": ')
    yield ToolCallDelta(0, arguments="1}")
    yield ToolCallDelta(1, "c1", ask.tools[0].name, "{}")
    yield Usage(3, 4)
    yield Finish("tool_calls")


async def breaks(ask: ChatRequest) -> AsyncGenerator[Event, None]:
    yield TextDelta("one ", tokens=1)
    yield Failure("The supplier is busy.", 429, "rate_limit_error", "rate_limit_exceeded", retryable=True)


async def fails(ask: ChatRequest) -> AsyncGenerator[Event, None]:
    yield Failure("The supplier is down.", 502, "server_error", "upstream_error", retryable=True)


def sdk(url: str) -> Any:
    """The SDK, without its unions of types."""
    return openai.OpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0)


def test_an_answer_by_a_schema(serve):
    parsed = sdk(serve(point).url).responses.parse(model="tiny", input="where", text_format=Point)
    assert parsed.output_parsed == Point(x=3)


def test_tools_called_side_by_side(serve):
    client = sdk(serve(calls).url)
    tools: list = [{"type": "function", "name": "add", "parameters": {"type": "object"}}, {"type": "web_search"}]
    made = client.responses.create(model="tiny", input="add", tools=tools)
    assert [(c.call_id, c.name, c.arguments) for c in made.output] == [("c0", "add", '{"a": 1}'), ("c1", "add", "{}")]
    assert [tool.type for tool in made.tools] == ["function"]
    with client.responses.stream(model="tiny", input="add", tools=tools) as stream:
        assert [c.arguments for c in stream.until_done().get_final_response().output] == ['{"a": 1}', "{}"]


def test_a_failure_before_and_after_the_first_byte(serve):
    with pytest.raises(openai.APIStatusError) as caught:
        sdk(serve(fails).url).responses.create(model="tiny", input="x", stream=True)
    assert caught.value.status_code == 502 and caught.value.code == "upstream_error"
    last = list(sdk(serve(breaks).url).responses.create(model="tiny", input="x", stream=True))[-1]
    assert last.type == "response.failed" and last.response.error.code == "rate_limit_exceeded"


def test_the_sdk_lives_through_a_ping(client, serve):
    streamed = serve().post("/v1/responses", model="tiny", input="one two", stream=True).content
    first, rest = streamed.split(b"\n\n", 1)
    said = (
        first + b"\n\n" + PING + rest.replace(b"event: response.output_text.done", PING + b"event: response.output_text.done")
    )

    def reply(_: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, content=said, headers={"content-type": "text/event-stream"})

    pinged = client.with_options(http_client=httpx2.Client(transport=httpx2.MockTransport(reply)))
    with pinged.responses.stream(model="tiny", input="one two") as stream:
        assert stream.until_done().get_final_response().output_text == "one two "
    assert [e.type for e in pinged.responses.create(model="tiny", input="x", stream=True)].count("ping") == 2


async def slow(ask: ChatRequest) -> AsyncGenerator[Event, None]:
    await asyncio.sleep(0.6)
    yield TextDelta("one ", tokens=1)
    yield Finish("stop")


def test_a_sign_of_life_comes_after_the_first_chunk(serve, monkeypatch):
    monkeypatch.setattr(streaming, "KEEP_ALIVE_S", 0.1)
    client = sdk(serve(slow).url)
    kinds = [e.type for e in client.responses.create(model="tiny", input="x", stream=True)]
    assert kinds[:3] == ["response.created", "response.in_progress", "ping"] and kinds.count("response.created") == 1
    with client.responses.stream(model="tiny", input="x") as stream:
        assert stream.until_done().get_final_response().output_text == "one "


def test_an_item_that_was_put_out_may_be_referred_to(client):
    first = client.responses.create(model="tiny", input="one")
    given: list = [{"role": "user", "content": "one"}, {"type": "item_reference", "id": first.output[0].id}]
    second = client.responses.create(model="tiny", input=[*given, {"role": "user", "content": "two"}])
    assert [i.role for i in client.responses.input_items.list(second.id).data] == ["user", "assistant", "user"]
    with pytest.raises(openai.BadRequestError):
        client.responses.create(model="tiny", input=[{"type": "item_reference", "id": "msg_none"}])


def test_instructions_do_not_carry_over(serve):
    server = serve()
    first = sdk(server.url).responses.create(model="tiny", input="one", instructions="be brief")
    sdk(server.url).responses.create(model="tiny", input="two", previous_response_id=first.id)
    assert [m.text for m in server.router.asked[-1][0].messages] == ["one", "one ", "two"]


def test_paths_and_ids_that_are_not_there(serve):
    server = serve()
    assert server.post("/v1/responses/compact", model="tiny", input="x").status_code == 404
    assert server.get("/v1/responses/none").status_code == 404
    assert server.get("/v1/responses/a%20b").status_code == 400
    gone = server.post("/v1/responses", model="tiny", input="x", previous_response_id="a b")
    assert gone.status_code == 400 and gone.json()["error"]["param"] == "previous_response_id"


def test_deleting_says_so(serve):
    server = serve()
    id = server.post("/v1/responses", model="tiny", input="x").json()["id"]
    said = httpx2.delete(f"{server.url}/v1/responses/{id}")
    assert json.loads(said.content) == {"id": id, "object": "response.deleted", "deleted": True}


def test_the_shelf_is_bounded_and_private():
    shelf = Shelf()
    for n in range(1001):
        shelf.keep("a", {"id": f"resp_{n}", "output": []}, ())
    with pytest.raises(NotFound):
        shelf.find("a", "resp_0")
    with pytest.raises(NotFound):
        shelf.find("b", "resp_1000")
    images = (Message("user", (Image("image/png", bytes(20 << 20)),)),)
    for n in range(4):
        shelf.keep("a", {"id": f"big_{n}", "output": []}, images)
    for _ in range(9):  # the same answer again takes no more room
        shelf.keep("a", {"id": "big_3", "output": []}, images)
    assert [n for n in range(4) if ("a", f"big_{n}") in shelf._kept] == [1, 2, 3]


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
