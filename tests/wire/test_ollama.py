"""Ollama's API: what its clients send, and the lines that they read."""

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baseload.wire.chat import (
    Failure,
    Finish,
    Message,
    Reasoning,
    ReasoningDelta,
    Text,
    TextDelta,
    ToolCall,
    ToolCallDelta,
    ToolResult,
    Usage,
)
from baseload.wire.errors import BadRequest
from baseload.wire.ollama import StreamRenderer, parse_chat, parse_generate, render_response

USER = [{"role": "user", "content": "hi"}]
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": "m:latest", "messages": USER, **fields}


def test_a_conversation_with_calls():
    messages = [
        {"role": "system", "content": "s"},
        *USER,
        {
            "role": "assistant",
            "content": "",
            "thinking": "hm",
            "tool_calls": [{"function": {"name": "add", "arguments": {"a": 1}}}],
        },
        {"role": "tool", "tool_name": "add", "content": "2"},
    ]
    asked = parse_chat(chat(messages=messages, tools=[TOOL]))
    assert asked.model == "m" and asked.stream and asked.tool_choice == "auto"
    assert asked.messages == (
        Message("system", (Text("s"),)),
        Message("user", (Text("hi"),)),
        Message("assistant", (Reasoning("hm"), ToolCall("call_0", "add", '{"a": 1}'))),
        Message("tool", (ToolResult("call_0", (Text("2"),)),)),
    )


def test_options_formats_and_thinking():
    options = {"temperature": 0, "num_predict": 5, "seed": 3, "stop": "x", "repeat_penalty": 1.2}
    asked = parse_chat(chat(options=options, format={"type": "object"}, think=False, stream=False))
    p = asked.sampling
    assert (p.temperature, p.max_tokens, p.seed, p.stop, p.repetition_penalty) == (0.0, 5, 3, ("x",), 1.2)
    assert asked.response_format.schema == {"type": "object"} and asked.effort == "none" and not asked.stream
    assert parse_chat(chat(options={"num_predict": -1})).sampling.max_tokens is None
    assert parse_chat(chat(format="json")).response_format.kind == "json_object"


def test_generate_with_and_without_a_template():
    asked = parse_generate({"model": "m", "prompt": "p", "system": "s"})
    assert [m.text for m in asked.messages] == ["s", "p"]
    assert parse_generate({"model": "m", "prompt": "p", "raw": True}).prompt == "p"


def test_lines_of_a_chat():
    renderer, lines = StreamRenderer(parse_chat(chat()), "", 0, "m", clock=iter(range(0, 90, 10)).__next__), []
    events = [
        Usage(3, 0), ReasoningDelta("hm"), TextDelta("a"), TextDelta("b"), ToolCallDelta(0, "c", "add"),
        ToolCallDelta(0, arguments="{"),
        ToolCallDelta(0, arguments='"a": 1}'), ToolCallDelta(1, "d", "add", "{}"), Usage(3, 4), Finish("tool_calls"),
    ]  # fmt: skip
    for event in events:
        plain = renderer.plain(event)
        lines += [json.loads(plain)] if plain is not None else renderer.events(event)
    said = [line["message"] for line in lines]
    assert [m.get("thinking", m["content"]) for m in said[:3]] == ["hm", "a", "b"]
    assert [c["function"] for m in said for c in m.get("tool_calls", ())] == [
        {"name": "add", "arguments": {"a": 1}}, {"name": "add", "arguments": {}},
    ]  # fmt: skip
    assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]
    last = lines[-1]
    assert (last["done_reason"], last["prompt_eval_count"], last["eval_count"]) == ("stop", 3, 4)
    assert (last["prompt_eval_duration"], last["eval_duration"], last["total_duration"]) == (10, 10, 20)


def test_a_whole_answer():
    events = [TextDelta("a"), TextDelta("b"), Usage(3, 2), Finish("length")]
    whole = render_response(parse_chat(chat()), events, "", 0, "m")
    assert (whole["message"]["content"], whole["done"], whole["done_reason"]) == ("ab", True, "length")
    assert render_response(parse_generate({"model": "m", "prompt": "p"}), events, "", 0, "m")["response"] == "ab"


def test_a_failure_is_an_error():
    assert StreamRenderer(parse_chat(chat()), "", 0, "m").events(Failure("busy")) == [{"error": "busy"}]


BAD = [
    ({"messages": []}, "messages"), ({"messages": [1]}, "messages[0]"), ({"messages": [{"role": "x"}]}, "role"),
    ({"messages": [{"role": "user", "content": 3}]}, "content"), ({"model": ""}, "model"), ({"options": []}, "options"),
    ({"options": {"temperature": 9}}, "temperature"), ({"options": {"num_predict": "x"}}, "num_predict"),
    ({"options": {"stop": [1]}}, "stop"), ({"format": "xml"}, "format"), ({"think": "much"}, "think"),
    ({"stream": 1}, "stream"),
    ({"tools": [1]}, "tools[0]"), ({"messages": [{"role": "user", "content": "", "images": ["%"]}]}, "images"),
    ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "tool_calls[0]"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "named"), BAD, ids=str)
def test_a_bad_field_is_named(fields, named):
    with pytest.raises(BadRequest) as caught:
        parse_chat(chat(**fields))
    assert named in (caught.value.param or "")


KEYS = st.sampled_from(["role", "content", "images", "stop", "name"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda i: (
        st.lists(i, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "images", "stop", "name"]), i, max_size=3)
    ),
    max_leaves=8,
)


@given(st.sampled_from(["messages", "tools", "options", "format", "think", "prompt", "images"]), JSON)
def test_no_value_does_more_than_be_refused(field, value):
    with suppress(BadRequest):
        parse_chat(chat(**{field: value}))
    with suppress(BadRequest):
        parse_generate({"model": "m", "prompt": "p", field: value})
