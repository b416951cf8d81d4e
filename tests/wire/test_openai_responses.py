"""OpenAI's Responses: what clients send is understood, and what they get is in the order that their SDK and Codex expect."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baseload.wire.chat import (
    ChatRequest,
    Event,
    Failure,
    Finish,
    Message,
    ReasoningDelta,
    Text,
    TextDelta,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
    ToolResult,
    ToolSpec,
    Usage,
)
from baseload.wire.errors import BadRequest
from baseload.wire.openai_chat import PROTOCOL as CHAT
from baseload.wire.openai_responses import (
    StreamParser,
    StreamRenderer,
    parse_request,
    parse_response,
    render_request,
    render_response,
)

TOOL = {"type": "function", "name": "add", "parameters": {"type": "object"}}
CUSTOM = {"type": "custom", "name": "patch", "format": {"type": "text"}}
SPACE = {"type": "namespace", "name": "agents", "tools": [{"type": "function", "name": "spawn", "parameters": {}}]}
TOOLS = [TOOL, CUSTOM, SPACE, {"type": "web_search"}]


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "m", "input": "hi", **fields}


def rendered(events: Sequence[Event], **fields: Any) -> list[Mapping[str, Any]]:
    """The chunks of a stream, the fast way where there is one, as a client reads them."""
    renderer, chunks = StreamRenderer(parse_request(body(**fields)), "resp_1", 1, "m"), []
    for event in events:
        plain = renderer.plain(event)
        if plain is None:
            chunks += [json.loads(json.dumps(chunk)) for chunk in renderer.events(event)]
        else:
            name, data = plain.decode().strip().split("\n")
            chunks.append(json.loads(data.removeprefix("data: ")))
            assert name == f"event: {chunks[-1]['type']}"
    assert [c["sequence_number"] for c in chunks] == list(range(len(chunks)))
    return chunks


def kinds(chunks: Sequence[Mapping[str, Any]]) -> list[str]:
    return [c["type"].removeprefix("response.") for c in chunks]


def read(chunks: Sequence[Mapping[str, Any]]) -> list[Event]:
    parser = StreamParser(1)
    return [event for chunk in chunks for event in parser.feed(json.dumps(chunk))] + parser.close()


def meaning(events: Sequence[Event]) -> tuple[Any, ...]:
    """What a stream says, however it is cut."""
    calls: dict[int, list[str]] = {}
    for e in events:
        if isinstance(e, ToolCallDelta):
            call = calls.setdefault(e.call, ["", "", ""])
            call[0], call[1], call[2] = call[0] or e.id or "", call[1] or e.name or "", call[2] + e.arguments
    text = "".join(e.text for e in events if isinstance(e, TextDelta))
    thought = "".join(e.text for e in events if isinstance(e, ReasoningDelta))
    ends = [e for e in events if isinstance(e, Finish | Failure)]
    called = [[id, name, arguments or "{}"] for id, name, arguments in (calls[i] for i in sorted(calls))]
    return text, thought, called, ends, [e for e in events if isinstance(e, Usage)][-1:]


def test_the_order_of_a_text():
    chunks = rendered([Usage(5, 0, 2), TextDelta("He"), TextDelta("llo"), Usage(5, 2, 2), Finish("stop")])
    assert kinds(chunks) == [
        "created", "in_progress", "output_item.added", "content_part.added", "output_text.delta", "output_text.delta",
        "output_text.done", "content_part.done", "output_item.done", "completed",
    ]  # fmt: skip
    last = chunks[-1]["response"]
    assert last["status"] == "completed" and last["output"][0]["content"][0]["text"] == "Hello"
    assert last["usage"] == {
        "input_tokens": 5, "input_tokens_details": {"cached_tokens": 2}, "output_tokens": 2,
        "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 7,
    }  # fmt: skip


def test_the_order_of_thought_and_calls():
    events = [
        ReasoningDelta("hm"), ToolCallDelta(0, "c0", "add"), ToolCallDelta(0, arguments='{"a":'),
        ToolCallDelta(0, arguments="1}"),
        ToolCallDelta(1, "c1", "patch", '{"input": "x'), ToolCallDelta(1, arguments='y"}'),
        ToolCallDelta(2, "c2", "agents__spawn", "{}"), Finish("tool_calls"),
    ]  # fmt: skip
    chunks = rendered(events, tools=TOOLS)
    assert kinds(chunks)[2:] == [
        "output_item.added", "reasoning_summary_part.added", "reasoning_summary_text.delta", "reasoning_summary_text.done",
        "reasoning_summary_part.done", "output_item.done",
        "output_item.added", "function_call_arguments.delta", "function_call_arguments.delta", "function_call_arguments.done",
        "output_item.done",
        "output_item.added", "custom_tool_call_input.delta", "custom_tool_call_input.done", "output_item.done",
        "output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done",
        "completed",
    ]  # fmt: skip
    _, add, patch, spawn = chunks[-1]["response"]["output"]
    assert (add["type"], add["call_id"], add["arguments"]) == ("function_call", "c0", '{"a":1}')
    assert (patch["type"], patch["input"]) == ("custom_tool_call", "xy")
    assert (spawn["namespace"], spawn["name"]) == ("agents", "spawn")


def test_probabilities_of_tokens_come_where_they_were_asked_for():
    entry = TokenLogprob("He", -0.5, b"He", 7, (TokenLogprob("He", -0.5, b"He", 7),))
    events = [TextDelta("He", tokens=1, logprobs=(entry,)), Usage(1, 1), Finish("stop")]
    whole = render_response(parse_request(body(top_logprobs=1)), events, "resp_1", 1, "m")
    wanted = {"token": "He", "logprob": -0.5, "bytes": [72, 101]}
    assert whole["output"][0]["content"][0]["logprobs"] == [{**wanted, "top_logprobs": [wanted]}]


def test_a_cut_answer_is_incomplete():
    last = rendered([TextDelta("a"), Finish("length")])[-1]
    assert last["type"] == "response.incomplete"
    assert last["response"]["incomplete_details"] == {"reason": "max_output_tokens"}


def test_a_failure_is_the_last_word():
    last = rendered([TextDelta("a"), Failure("busy", 429, retryable=True)])[-1]
    assert last["type"] == "response.failed" and last["response"]["error"]["code"] == "rate_limit_exceeded"


TEXTS = st.text('ab é"\\\n', min_size=1, max_size=5)
PARTS = st.lists(st.builds(TextDelta, TEXTS) | st.builds(ReasoningDelta, TEXTS) | st.lists(TEXTS, max_size=3), max_size=8)


@given(PARTS, st.sampled_from(["stop", "length", "content_filter"]), st.integers(0, 9), st.integers(0, 9))
def test_a_stream_keeps_its_meaning(parts, reason, prompt, spoken):
    events: list[Event] = []
    calls = 0
    for part in parts:
        if isinstance(part, list):
            events += [ToolCallDelta(calls, f"c{calls}", "add"), *(ToolCallDelta(calls, arguments=text) for text in part)]
            calls += 1
        else:
            events.append(part)
    end = Finish("tool_calls" if calls and reason == "stop" else reason)
    events = [*events, Usage(prompt + 1, spoken, prompt, 0), end]
    assert meaning(read(rendered(events, tools=[TOOL]))) == meaning(events)
    whole = render_response(parse_request(body(tools=[TOOL])), events, "resp_1", 1, "m")
    assert meaning(parse_response(whole, 1)) == meaning(events)


@given(st.binary(max_size=40), st.integers(0, 900))
def test_whatever_a_supplier_sends_ends_once(noise, cut):
    chunks = rendered([Usage(3, 0), TextDelta("hello"), Usage(3, 1), Finish("stop")])
    text = "".join(json.dumps(c) + "\n" for c in chunks)
    parser, events = StreamParser(1), []
    for line in (text[:cut] + noise.decode("latin-1") + text[cut:]).split("\n"):
        events += parser.feed(line) if line else []
    events += parser.close()
    assert sum(isinstance(e, Finish | Failure) for e in events) == 1 and isinstance(events[-1], Finish | Failure)


HISTORY = [
    {"role": "developer", "content": "rules"},
    {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "1+1"}]},
    {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}], "encrypted_content": "e"},
    {"type": "function_call", "call_id": "c0", "name": "add", "arguments": '{"a": 1}', "id": "fc_1", "status": "completed"},
    {"type": "custom_tool_call", "call_id": "c1", "name": "patch", "input": "xy"},
    {"type": "function_call", "call_id": "c2", "name": "spawn", "namespace": "agents", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "c0", "output": "2"},
    {"type": "custom_tool_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "done"}]},
    {"type": "web_search_call", "id": "ws_1", "status": "completed"},
]


def test_a_history_of_codex():
    asked = parse_request(body(input=HISTORY, tools=TOOLS))
    assert [m.role for m in asked.messages] == ["developer", "user", "assistant", "tool", "tool"]
    calls = [b for b in asked.messages[2].content if isinstance(b, ToolCall)]
    assert calls == [
        ToolCall("c0", "add", '{"a": 1}'), ToolCall("c1", "patch", '{"input": "xy"}'), ToolCall("c2", "agents__spawn", "{}"),
    ]  # fmt: skip
    assert asked.messages[4].content == (ToolResult("c1", (Text("done"),)),)
    assert [(t.name, t.freeform, t.namespace) for t in asked.tools] == [
        ("add", False, ""), ("patch", True, ""), ("agents__spawn", False, "agents"),
    ]  # fmt: skip


def test_a_request_of_this_protocol_keeps_its_fields():
    sent = body(input=HISTORY, tools=TOOLS, include=["reasoning.encrypted_content"], new=1, prompt_cache_key="k")
    out = render_request(parse_request(sent), "gpt", drop=("prompt_cache_key",))
    kept = {k: v for k, v in sent.items() if k != "prompt_cache_key"}
    assert out == {**kept, "model": "gpt", "stream": True, "store": False}


def test_what_was_said_before_goes_along():
    earlier = (Message("user", (Text("I am Bob"),)), Message("assistant", (Text("Hello"),)))
    asked = parse_request(body(previous_response_id="resp_0", instructions="brief"), earlier)
    assert [m.text for m in asked.messages] == ["brief", "I am Bob", "Hello", "hi"]
    out = render_request(asked, "gpt")
    assert "previous_response_id" not in out
    assert parse_request(out).messages == asked.messages


def test_another_protocols_request_keeps_its_meaning():
    asked = ChatRequest(
        "m",
        (
            Message("system", (Text("s"),)),
            Message("user", (Text("q"),)),
            Message("assistant", (Text("so"), ToolCall("c", "add", '{"a": 1}'))),
            Message("tool", (ToolResult("c", (Text("2"),)),)),
        ),
        tools=(ToolSpec("add", "Adds", {"type": "object"}, strict=True),),
        tool_choice={"name": "add"},
        effort="max",
        protocol=CHAT,
    )
    again = parse_request(render_request(asked, "m"))
    assert again == replace(again, messages=asked.messages, tools=asked.tools, tool_choice=asked.tool_choice, effort="max")


def test_what_we_send_is_what_the_sdk_sends():
    import httpx2
    import openai

    seen: list[Any] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        seen.append(json.loads(request.content))
        return httpx2.Response(500)

    client = openai.OpenAI(api_key="k", max_retries=0, http_client=httpx2.Client(transport=httpx2.MockTransport(answer)))
    call: dict[str, Any] = {"model": "gpt", "input": "hi", "instructions": "s", "tools": [TOOL], "store": False}
    with pytest.raises(openai.InternalServerError):
        client.responses.create(**call, stream=True)
    assert render_request(parse_request(call), "gpt") == seen[0]


BAD = [
    ({"conversation": "conv_1"}, "conversation"), ({"input": [{"type": "hologram"}]}, "type"),
    ({"input": None}, "input"), ({"input": []}, "input"), ({"input": [1]}, "input[0]"), ({"input": [{"type": 3}]}, "type"),
    ({"input": [{"role": "robot", "content": "x"}]}, "role"), ({"input": [{"role": "user", "content": 3}]}, "content"),
    ({"input": [{"role": "user", "content": [{"type": "video"}]}]}, "content[0]"),
    ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "text"),
    ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "http://a/b.png"}]}]}, "image_url"),
    ({"input": [{"type": "function_call", "name": "a"}]}, "call_id"),
    ({"input": [{"type": "function_call", "call_id": "a"}]}, "name"),
    ({"input": [{"type": "function_call", "call_id": "a", "name": "b", "arguments": {}}]}, "arguments"),
    ({"input": [{"type": "function_call_output", "output": "x"}]}, "call_id"),
    ({"input": [{"type": "function_call_output", "call_id": "c", "output": 3}]}, "output"),
    ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]"),
    ({"input": [{"type": "reasoning", "summary": 1}]}, "summary"),
    ({"model": 3}, "model"), ({"instructions": 3}, "instructions"), ({"background": True}, "background"),
    ({"temperature": 3}, "temperature"), ({"top_p": 2}, "top_p"), ({"max_output_tokens": 0}, "max_output_tokens"),
    ({"top_logprobs": 21}, "top_logprobs"), ({"stream": "yes"}, "stream"), ({"store": 1}, "store"),
    ({"include": "x"}, "include"),
    ({"metadata": []}, "metadata"), ({"metadata": {"a": 1}}, "metadata"),
    ({"metadata": {str(i): "" for i in range(17)}}, "metadata"),
    ({"reasoning": "high"}, "reasoning"), ({"reasoning": {"effort": 3}}, "effort"), ({"text": "x"}, "text"),
    ({"text": {"format": {"type": "xml"}}}, "type"), ({"text": {"format": {"type": "json_schema", "schema": 1}}}, "schema"),
    ({"tools": {}}, "tools"), ({"tools": [1]}, "tools[0]"), ({"tools": [{"type": "function"}]}, "name"),
    ({"tools": [{**TOOL, "parameters": []}]}, "parameters"), ({"tools": [{**TOOL, "name": "a b"}]}, "name"),
    ({"tools": [{"type": "namespace", "name": "x", "tools": [1]}]}, "tools[0]"), ({"tool_choice": "some"}, "tool_choice"),
    ({"tool_choice": "required"}, "tool_choice"), ({"tool_choice": 3}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "b"}}, "tool_choice"), ({"user": 1}, "user"),
    ({"truncation": 1}, "truncation"), ({"parallel_tool_calls": "no"}, "parallel_tool_calls"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "named"), BAD, ids=lambda v: json.dumps(v)[:60])
def test_a_bad_field_is_named(fields, named):
    with pytest.raises(BadRequest) as caught:
        parse_request(body(**fields))
    assert named in (caught.value.param or "") and named in caught.value.message


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "role", "content", "text", "name", "output", "summary", "tools", "format"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(st.sampled_from(["input", "tools", "tool_choice", "text", "reasoning", "metadata", "include"]), JSON)
def test_no_value_does_more_than_be_refused(field, value):
    with suppress(BadRequest):
        parse_request(body(**{field: value}))
