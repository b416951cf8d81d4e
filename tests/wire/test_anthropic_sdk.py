"""Anthropic's own SDK as the judge of what we send as a server, and of what we ask as a client."""

import json
from dataclasses import replace
from typing import Any

import anthropic
import httpx2
import pytest
from pydantic import BaseModel

from baseload.wire.anthropic_messages import (
    PING,
    StreamRenderer,
    headers,
    parse_count_request,
    parse_request,
    path,
    render_count,
    render_error,
    render_request,
    render_response,
)
from baseload.wire.chat import Event, Failure, Finish, ReasoningDelta, TextDelta, ToolCallDelta, Usage
from baseload.wire.errors import BaseloadError, RateLimited
from baseload.wire.sse import named_event

USER: list[Any] = [{"role": "user", "content": "q"}]
TOOL: Any = {
    "name": "weather",
    "description": "W",
    "input_schema": {"type": "object", "properties": {"at": {"type": "string"}}},
}
TALK = [Usage(9, 0, 4, 0, 2), *(TextDelta(c, tokens=1) for c in "It's\u2028warm."), Usage(9, 6, 4, 0, 2), Finish("stop")]
CALLS = [
    ReasoningDelta("hm"), ReasoningDelta("", signature="c2ln"), TextDelta("so"), ToolCallDelta(0, "c0", "weather"),
    ToolCallDelta(0, arguments='{"at":'), ToolCallDelta(0, arguments='"Rome"}'),
    ToolCallDelta(1, "c1", "weather", '{"at": "Oslo"}'), Usage(9, 6), Finish("tool_calls"),
]  # fmt: skip


class Server:
    """Answers the SDK with `events` by this protocol, over no network; the last answer again and again."""

    def __init__(self, *answers: list[Event], error: BaseloadError | None = None) -> None:
        self.answers, self.error = list(answers), error
        self.requests: list[httpx2.Request] = []
        http = httpx2.Client(transport=httpx2.MockTransport(self._answer))
        self.client = anthropic.Anthropic(api_key="k", max_retries=0, http_client=http)

    def _answer(self, request: httpx2.Request) -> httpx2.Response:
        self.requests.append(request)
        try:
            return self._said(request)
        except BaseloadError as error:
            return httpx2.Response(error.status, json=render_error(error))

    def _said(self, request: httpx2.Request) -> httpx2.Response:
        if self.error:
            raise self.error
        body = json.loads(request.content)
        if request.url.path.endswith("count_tokens"):
            parse_count_request(body)
            return httpx2.Response(200, json=render_count(7))
        asked = parse_request(body)
        events = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if not asked.stream:
            return httpx2.Response(200, json=render_response(asked, events, "msg_1", 1, "m"))
        renderer = StreamRenderer(asked, "msg_1", 1, "m")
        said = [renderer.plain(e) or b"".join(named_event(c) for c in renderer.events(e)) for e in events]
        return httpx2.Response(200, content=PING.join(said), headers={"content-type": "text/event-stream"})


def ask(server: Server, how: str, **fields: Any) -> Any:
    """The message that the SDK makes of the answer, asked in one of its three ways."""
    call: Any = {"model": "m", "max_tokens": 9, "messages": USER, **fields}
    if how == "whole":
        return server.client.messages.create(**call)
    if how == "raw":
        kinds = [event.type for event in server.client.messages.create(**call, stream=True)]
        assert kinds[0] == "message_start" and kinds[-1] == "message_stop"
    with server.client.messages.stream(**call) as stream:
        return stream.get_final_message()


@pytest.mark.parametrize("how", ["whole", "raw", "helper"])
def test_it_reads_a_text(how: str):
    message = ask(Server(TALK), how)
    assert [(b.type, b.text) for b in message.content] == [("text", "It's\u2028warm.")]
    assert (message.id, message.stop_reason, message.stop_sequence) == ("msg_1", "end_turn", None)
    used = message.usage
    assert (used.input_tokens, used.cache_read_input_tokens, used.cache_creation_input_tokens) == (3, 4, 2)
    assert used.output_tokens == 6


@pytest.mark.parametrize("how", ["whole", "raw", "helper"])
def test_it_reads_thoughts_and_calls(how: str):
    thought, text, *calls = ask(Server(CALLS), how, tools=[TOOL]).content
    assert (thought.thinking, thought.signature, text.text) == ("hm", "c2ln", "so")
    assert [(c.id, c.name, c.input) for c in calls] == [("c0", "weather", {"at": "Rome"}), ("c1", "weather", {"at": "Oslo"})]


def test_it_reads_where_an_answer_was_stopped():
    message = ask(Server([TextDelta("a"), Finish("stop", 0, "END")]), "helper", stop_sequences=["END"])
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "END")


def test_its_answer_comes_back_as_it_went():
    message = ask(Server(CALLS), "helper", tools=[TOOL])
    results: Any = [{"type": "tool_result", "tool_use_id": id, "content": "warm"} for id in ("c0", "c1")]
    server = Server(TALK)
    ask(server, "whole", tools=[TOOL],
        messages=[*USER, {"role": "assistant", "content": message.content}, {"role": "user", "content": results}])  # fmt: skip
    asked = parse_request(json.loads(server.requests[0].content))
    assert [m.role for m in asked.messages] == ["user", "assistant", "tool", "tool"]
    assert [type(b).__name__ for b in asked.messages[1].content] == ["Reasoning", "Text", "ToolCall", "ToolCall"]


class Answer(BaseModel):
    warm: bool


def test_it_parses_what_it_asked_a_form_for():
    server = Server([TextDelta('{"warm": true}'), Finish("stop")])
    found = server.client.messages.parse(model="m", max_tokens=9, messages=USER, output_format=Answer)
    assert found.parsed_output == Answer(warm=True)
    form = parse_request(json.loads(server.requests[0].content)).response_format
    assert form.kind == "json_schema" and form.schema and form.schema["required"] == ["warm"]


def test_it_counts():
    assert Server().client.messages.count_tokens(model="m", messages=USER, system="s", tools=[TOOL]).input_tokens == 7


def test_its_tool_runner_sends_everything_again_where_threads_are_unknown():
    @anthropic.beta_tool
    def weather(at: str) -> str:
        """The weather."""
        return f"warm in {at}"

    server = Server(CALLS, TALK)
    runner = server.client.beta.messages.tool_runner(model="m", max_tokens=9, messages=USER, tools=[weather])
    assert runner.until_done().content[0].text == "It's\u2028warm."  # pyright: ignore
    asked = parse_request(json.loads(server.requests[-1].content))
    assert [m.role for m in asked.messages] == ["user", "assistant", "tool", "tool"]
    assert [m.content[0].content[0].text for m in asked.messages[2:]] == ["warm in Rome", "warm in Oslo"]  # pyright: ignore


def test_it_knows_our_errors():
    with pytest.raises(anthropic.RateLimitError) as caught:
        ask(Server(error=RateLimited("later")), "whole")
    assert caught.value.body == {"type": "error", "error": {"type": "rate_limit_error", "message": "later"}}
    with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
        ask(Server(TALK), "whole", max_tokens=0)


def test_it_knows_a_failure_amid_a_stream():
    with pytest.raises(anthropic.APIStatusError, match="gone"):
        ask(Server([TextDelta("a"), Failure("gone", 503)]), "helper")


def test_what_we_ask_is_what_it_asks():
    """The same call, once by the SDK and once in the neutral language: the request and where it goes to."""
    server = Server(TALK)
    call: Any = {
        "model": "claude", "max_tokens": 9, "system": [{"type": "text", "text": "s"}], "tools": [TOOL],
        "messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}], "stop_sequences": ["x"],
        "tool_choice": {"type": "tool", "name": "weather", "disable_parallel_tool_use": True}, "metadata": {"user_id": "u"},
        "output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}},
        "extra_body": {"temperature": 0.5, "top_k": 4},
    }  # fmt: skip
    list(server.client.messages.create(**call, stream=True))
    [request] = server.requests
    sent = json.loads(request.content)
    asked = parse_request(sent)
    assert render_request(asked, "claude") == sent
    assert render_request(replace(asked, protocol="openai_chat", body={}), "claude") == sent
    assert request.url.path == path("claude")
    assert headers("k") == {"x-api-key": "k", "anthropic-version": "2023-06-01"}
