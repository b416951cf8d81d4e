"""Anthropic's messages: what clients send is understood, what they get is what their SDK expects, and back again."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baseload.wire.anthropic_messages import (
    StreamParser,
    StreamRenderer,
    parse_count_request,
    parse_request,
    parse_response,
    render_error,
    render_request,
    render_response,
)
from baseload.wire.chat import (
    ChatRequest,
    Event,
    Failure,
    Finish,
    Message,
    Reasoning,
    ReasoningDelta,
    Text,
    TextDelta,
    ToolCall,
    ToolCallDelta,
    ToolReference,
    ToolResult,
    ToolSpec,
    Usage,
)
from baseload.wire.errors import BadRequest, ContextLengthExceeded
from baseload.wire.openai_chat import PROTOCOL as OPENAI

USER = [{"role": "user", "content": "hi"}]
TOOL = {"name": "add", "description": "Adds", "input_schema": {"type": "object", "properties": {"a": {"type": "integer"}}}}


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "m", "max_tokens": 9, "messages": USER, **fields}


def rendered(events: Sequence[Event], request: ChatRequest | None = None) -> list[Mapping[str, Any]]:
    """The chunks of a stream, the fast way where there is one, as a client reads them."""
    renderer, chunks = StreamRenderer(request or parse_request(body()), "msg_1", 1, "m"), []
    for event in events:
        plain = renderer.plain(event)
        if plain is None:
            chunks += [json.loads(json.dumps(chunk)) for chunk in renderer.events(event)]
        else:
            name, data = plain.decode().strip().split("\n")
            chunks.append(json.loads(data.removeprefix("data: ")))
            assert name == f"event: {chunks[-1]['type']}"
    return chunks


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
    signature = "".join(e.signature or "" for e in events if isinstance(e, ReasoningDelta))
    ends = [e for e in events if isinstance(e, Finish | Failure)]
    usage = [e for e in events if isinstance(e, Usage)][-1:]
    return text, thought, signature, [calls[i] for i in sorted(calls)], ends, usage


def test_the_order_of_a_text():
    events = [Usage(5, 0, 2), TextDelta("He", tokens=1), TextDelta("llo", tokens=1), Usage(5, 2, 2), Finish("stop")]
    chunks = rendered(events)
    assert [c["type"] for c in chunks] == [
        "message_start", "content_block_start", "content_block_delta", "content_block_delta", "content_block_stop",
        "message_delta", "message_stop",
    ]  # fmt: skip
    assert chunks[0]["message"]["usage"] | {"output_tokens": 0} == {
        "input_tokens": 3, "cache_read_input_tokens": 2, "cache_creation_input_tokens": 0, "output_tokens": 0,
    }  # fmt: skip
    assert chunks[-2]["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert chunks[-2]["usage"]["output_tokens"] == 2


def test_the_order_of_thought_and_two_calls():
    events = [
        ReasoningDelta("hm"), TextDelta("so"), ToolCallDelta(0, "c0", "add"), ToolCallDelta(0, None, None, '{"a":'),
        ToolCallDelta(0, None, None, "1}"), ToolCallDelta(1, "c1", "add", "{}"), Finish("tool_calls"),
    ]  # fmt: skip
    chunks = rendered(events)
    blocks = [c["content_block"]["type"] for c in chunks if c["type"] == "content_block_start"]
    assert blocks == ["thinking", "text", "tool_use", "tool_use"]
    assert [c["index"] for c in chunks if c["type"] == "content_block_stop"] == [0, 1, 2, 3]
    assert chunks[-2]["delta"]["stop_reason"] == "tool_use"


def test_a_failure_is_an_error_event_and_the_last():
    chunks = rendered([TextDelta("a"), Failure("busy", 503, retryable=True)])
    assert chunks[-1] == {"type": "error", "error": {"type": "overloaded_error", "message": "busy"}}
    assert isinstance(read(chunks)[-1], Failure)


TEXTS = st.text('ab é"\\\n', min_size=1, max_size=5)
EVENTS = st.lists(
    st.one_of(
        st.builds(TextDelta, TEXTS, tokens=st.just(1)),
        st.builds(ReasoningDelta, TEXTS, tokens=st.just(1)),
        st.builds(lambda n, parts: [ToolCallDelta(n, f"c{n}", "add"), *(ToolCallDelta(n, arguments=p) for p in parts)],
                  st.just(0), st.lists(TEXTS, max_size=3)),
    ),
    max_size=8,
)  # fmt: skip


@given(EVENTS, st.sampled_from(["stop", "length", "tool_calls", "content_filter"]), st.integers(0, 9), st.integers(0, 9))
def test_a_stream_keeps_its_meaning(parts, reason, prompt, spoken):
    events: list[Event] = []
    calls = 0
    for part in parts:
        if isinstance(part, list):
            events += [replace(delta, call=calls, id=delta.id and f"c{calls}") for delta in part]
            calls += 1
        else:
            events.append(part)
    events = [*events, Usage(prompt + 3, spoken, prompt, 0, 2), Finish(reason)]
    assert meaning(read(rendered(events))) == meaning(events)


@given(st.binary(max_size=40), st.integers(0, 300))
def test_whatever_a_supplier_sends_ends_once(noise, cut):
    text = "".join(json.dumps(c) + "\n" for c in rendered([Usage(3, 0), TextDelta("hello"), Usage(3, 1), Finish("stop")]))
    parser, events = StreamParser(1), []
    for line in (text[:cut] + noise.decode("latin-1") + text[cut:]).split("\n"):
        events += parser.feed(line) if line else []
    events += parser.close()
    assert sum(isinstance(e, Finish | Failure) for e in events) == 1 and isinstance(events[-1], Finish | Failure)
    assert parser.ended and parser.feed("{}") == []


INTERLEAVED = [
    ReasoningDelta("one"), ReasoningDelta("", signature="s1"), ReasoningDelta("two"), ReasoningDelta("", signature="s2"),
    TextDelta("so"), ReasoningDelta("", signature="s3"), ToolCallDelta(0, "c", "add", "{}"), Finish("tool_calls"),
]  # fmt: skip
THOUGHTS = [
    {"type": "thinking", "thinking": "one", "signature": "s1"}, {"type": "thinking", "thinking": "two", "signature": "s2"},
    {"type": "text", "text": "so"}, {"type": "thinking", "thinking": "", "signature": "s3"},
    {"type": "tool_use", "id": "c", "name": "add", "input": {}},
]  # fmt: skip


def test_each_thought_keeps_its_own_signature_and_place():
    assert render_response(parse_request(body()), INTERLEAVED, "m", 1, "m")["content"] == THOUGHTS
    assert render_response(parse_request(body()), read(rendered(INTERLEAVED)), "m", 1, "m")["content"] == THOUGHTS


def test_a_signature_in_pieces_is_one():
    deltas = [{"type": "signature_delta", "signature": piece} for piece in ("ab", "cd")]
    block = {"type": "thinking", "thinking": "hm"}
    chunks = [{"type": "content_block_start", "index": 0, "content_block": block},
              *({"type": "content_block_delta", "index": 0, "delta": delta} for delta in deltas),
              {"type": "content_block_stop", "index": 0}]  # fmt: skip
    assert [e.signature for e in read(chunks) if isinstance(e, ReasoningDelta)] == [None, "abcd"]


def test_what_only_this_protocol_knows_goes_through():
    cited = {"type": "text", "text": "so", "citations": [{"type": "char_location", "cited_text": "x"}]}
    content = [{"type": "redacted_thinking", "data": "AA"}, {"type": "server_tool_use", "id": "s", "name": "web_search",
               "input": {"query": "x"}}, cited, {"type": "tool_use", "id": "c", "name": "add", "input": {"a": 1}}]  # fmt: skip
    whole = {"type": "message", "content": content, "stop_reason": "tool_use", "usage": {"input_tokens": 1}}
    events = parse_response(whole, 1)
    assert render_response(parse_request(body()), events, "m", 1, "m")["content"] == content
    again = read(rendered(events))
    assert render_response(parse_request(body()), again, "m", 1, "m")["content"] == content


def test_another_suppliers_signature_is_not_sent():
    history = (Message("user", (Text("q"),)), Message("assistant", (Reasoning("hm", "google_generate:s"), Text("a"))))
    sent = render_request(ChatRequest("m", history, protocol=OPENAI), "claude")["messages"]
    assert sent[1]["content"] == [{"type": "text", "text": "a"}]


def test_tools_stay_where_none_may_be_called():
    asked = ChatRequest("m", (Message("user", (Text("q"),)),), tools=(ToolSpec("add"),), tool_choice="none", protocol=OPENAI)
    sent = render_request(replace(asked, parallel_tool_calls=False), "claude")
    assert sent["tools"][0]["name"] == "add" and sent["tool_choice"] == {"type": "none"}


@pytest.mark.parametrize("text", ['{"a": "\\ud800"}', "[" * 200 + "]" * 200, "{", "[1]"])
def test_arguments_that_are_no_object_are_still_delivered(text):
    events = [ToolCallDelta(0, "c", "add", text), Finish("tool_calls")]
    [block] = render_response(parse_request(body()), events, "m", 1, "m")["content"]
    assert block["input"] == {"input": text}


def test_a_whole_answer_keeps_its_meaning():
    events = [
        ReasoningDelta("hm", signature="s"), TextDelta("hello"), ToolCallDelta(0, "c", "add", '{"a": 1}'), Usage(9, 4, 5, 0, 2),
        Finish("tool_calls"),
    ]  # fmt: skip
    whole = render_response(parse_request(body()), events, "msg_1", 1, "m")
    assert meaning(parse_response(whole, 1)) == meaning(events)


def test_a_conversation_with_tools():
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "1+1", "cache_control": {"type": "ephemeral"}}]},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "hm", "signature": "sig"},
            {"type": "tool_use", "id": "t1", "name": "add", "input": {"a": 1}}]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "t1", "is_error": True,
             "content": [{"type": "text", "text": "no"}, {"type": "tool_reference", "tool_name": "web"}]},
            {"type": "text", "text": "so?"}]},
    ]  # fmt: skip
    asked = parse_request(body(messages=messages, system=[{"type": "text", "text": "x-anthropic-billing-header: a=1;"},
                                                          {"type": "text", "text": "Be brief."}]))  # fmt: skip
    assert asked.messages == (
        Message("system", (Text("Be brief."),)),
        Message("user", (Text("1+1"),)),
        Message("assistant", (Reasoning("hm", "sig"), ToolCall("t1", "add", '{"a": 1}'))),
        Message("tool", (ToolResult("t1", (Text("no"), ToolReference("web")), is_error=True),)),
        Message("user", (Text("so?"),)),
    )


def test_two_ways_to_write_the_same_are_the_same():
    one = body(messages=[{"role": "system", "content": "env"}, *USER], system="s")
    other = body(
        messages=[
            {"role": "system", "content": [{"type": "text", "text": "env", "cache_control": {"type": "ephemeral"}}]},
            {"role": "user", "content": [{"type": "text", "text": "hi"}]},
        ],
        system=[{"type": "text", "text": "s"}],
    )
    assert parse_request(one).messages == parse_request(other).messages


def test_tools_of_three_kinds():
    hosted = {"type": "web_search_20260101", "name": "web_search"}
    asked = parse_request(body(tools=[TOOL, {**TOOL, "name": "late", "defer_loading": True}, hosted]))
    assert [(t.name, t.deferred) for t in asked.tools] == [("add", False), ("late", True)]
    assert parse_request(body(tools=[TOOL], tool_choice={"type": "any"})).tool_choice == "required"
    named = parse_request(body(tools=[TOOL], tool_choice={"type": "tool", "name": "add", "disable_parallel_tool_use": True}))
    assert named.tool_choice == {"name": "add"} and not named.parallel_tool_calls


def test_efforts_and_formats():
    assert parse_request(body(thinking={"type": "disabled"})).effort == "none"
    assert parse_request(body(thinking={"type": "adaptive"}, output_config={"effort": "high"})).effort == "high"
    asked = ChatRequest("m", (Message("user", (Text("hi"),)),), effort="high", protocol="openai_chat")
    assert render_request(asked, "m")["output_config"] == {"effort": "high"}
    assert parse_request(render_request(asked, "m")).effort == "high"
    assert "output_config" not in render_request(replace(asked, effort="none"), "m")
    form = {"type": "json_schema", "schema": {"type": "object"}}
    assert parse_request(body(output_config={"format": form})).response_format.schema == {"type": "object"}


def test_a_request_of_this_protocol_keeps_its_fields():
    sent = body(system=[{"type": "text", "text": "x-anthropic-billing-header: a;"}], context_management={"edits": []}, new=1)
    out = render_request(parse_request(sent), "claude", drop=("context_management",))
    assert out == {**{k: v for k, v in sent.items() if k != "context_management"}, "model": "claude", "stream": True}


def test_an_added_message_follows_the_own():
    asked = parse_request(body())
    more = replace(asked, messages=(*asked.messages, Message("assistant", (Text("no"),)), Message("user", (Text("again"),))))
    assert [m["role"] for m in render_request(more, "c")["messages"]] == ["user", "assistant", "user"]


def test_another_protocols_request_keeps_its_meaning():
    asked = ChatRequest(
        "m",
        (
            Message("system", (Text("s"),)),
            Message("user", (Text("q"),)),
            Message("assistant", (ToolCall("c", "add", '{"a": 1}'),)),
            Message("tool", (ToolResult("c", (Text("2"),)),)),
        ),
        tools=(ToolSpec("add", "Adds", {"type": "object"}),),
        tool_choice="required",
        protocol=OPENAI,
    )
    again = parse_request(render_request(asked, "m"))
    assert again.messages == asked.messages and again.tools == asked.tools and again.tool_choice == "required"


def test_what_we_send_is_what_the_sdk_sends():
    import anthropic
    import httpx2

    seen: list[Any] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        seen.append(json.loads(request.content))
        return httpx2.Response(500)

    client = anthropic.Anthropic(api_key="k", max_retries=0, http_client=httpx2.Client(transport=httpx2.MockTransport(answer)))
    call = {
        "model": "claude",
        "max_tokens": 9,
        "messages": USER,
        "system": "s",
        "tools": [TOOL],
        "tool_choice": {"type": "any"},
    }
    with pytest.raises(anthropic.InternalServerError):
        client.messages.create(**call, stream=True)
    assert render_request(parse_request(call), "claude") == seen[0]


def test_an_overflow_is_told_in_the_clients_words():
    error = ContextLengthExceeded(
        "This model's maximum context length is 8192 tokens. However, your prompt has 9000 tokens. Please shorten it."
    )
    assert render_error(error)["error"]["message"] == "prompt is too long: 9000 tokens > 8192 maximum"


def test_a_thread_is_refused_as_its_client_expects():
    with pytest.raises(BadRequest) as caught:
        parse_request(body(thread={"type": "create"}))
    assert render_error(caught.value)["error"]["details"] == {
        "error_code": "thread_unsupported_request", "unsupported": ["thread"],
    }  # fmt: skip


BAD = [
    ({"messages": [{"role": "user", "content": [{"type": "hologram"}]}]}, "type"),
    ({"max_tokens": None}, "max_tokens"), ({"max_tokens": 0}, "max_tokens"), ({"max_tokens": "9"}, "max_tokens"),
    ({"messages": []}, "messages"), ({"messages": "hi"}, "messages"), ({"messages": [1]}, "messages[0]"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "role"), ({"messages": [{"role": "user", "content": 3}]}, "content"),
    ({"messages": [{"role": "user", "content": [{"type": 3}]}]}, "content[0]"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "text"),
    ({"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "http://a"}}]}]}, "source"),
    ({"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "base64", "media_type": "image/png",
                                                                           "data": "%%"}}]}]}, "source"),
    ({"messages": [{"role": "user", "content": [{"type": "document", "source": {"type": "url", "url": "x"}}]}]}, "source"),
    ({"messages": [{"role": "assistant", "content": [{"type": "tool_use", "name": "a"}]}]}, "id"),
    ({"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "a", "input": "x"}]}]}, "input"),
    ({"messages": [{"role": "user", "content": [{"type": "tool_result", "content": "x"}]}]}, "tool_use_id"),
    ({"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "x", "content": 4}]}]}, "content"),
    ({"system": 3}, "system"), ({"system": [{"type": "tool_use", "id": "a", "name": "b"}]}, "system"),
    ({"model": None}, "model"), ({"model": ""}, "model"), ({"temperature": 1.5}, "temperature"), ({"top_p": 0}, "top_p"),
    ({"top_k": -1}, "top_k"), ({"stop_sequences": "x"}, "stop_sequences"), ({"stop_sequences": [""]}, "stop_sequences"),
    ({"stream": 1}, "stream"), ({"tools": {}}, "tools"), ({"tools": [1]}, "tools[0]"),
    ({"tools": [{"input_schema": {}}]}, "name"), ({"tools": [{**TOOL, "name": "a b"}]}, "name"),
    ({"tools": [{**TOOL, "input_schema": []}]}, "input_schema"), ({"tools": [{**TOOL, "defer_loading": 1}]}, "defer_loading"),
    ({"tools": [{**TOOL, "input_schema": {"$ref": "http://x"}}]}, "input_schema"),
    ({"tool_choice": "auto"}, "tool_choice"), ({"tool_choice": {"type": "x"}}, "tool_choice"),
    ({"tool_choice": {"type": "any"}}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "b"}}, "name"),
    ({"metadata": "u"}, "metadata"), ({"metadata": {"user_id": 4}}, "user_id"), ({"thinking": True}, "thinking"),
    ({"thinking": {"type": "x"}}, "thinking"), ({"thinking": {"type": "enabled", "budget_tokens": -1}}, "budget_tokens"),
    ({"output_config": {"format": {"type": "xml"}}}, "format"),
    ({"output_config": {"format": {"type": "json_schema"}}}, "schema"),
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
            st.sampled_from(["type", "role", "content", "text", "source", "name", "id", "input"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@given(st.sampled_from(["messages", "system", "tools", "tool_choice", "thinking", "output_config", "metadata"]), JSON)
def test_no_value_does_more_than_be_refused(field, value):
    with suppress(BadRequest):
        parse_request(body(**{field: value}))
    with suppress(BadRequest):
        parse_count_request(body(**{field: value}))
