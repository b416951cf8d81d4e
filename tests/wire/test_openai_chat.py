"""OpenAI's chat protocol, both directions: what is read, what is refused, what is written."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baseload.wire.chat import (
    ChatRequest,
    Event,
    Failure,
    Finish,
    Image,
    ReasoningDelta,
    Text,
    TextDelta,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
    ToolResult,
    Usage,
)
from baseload.wire.errors import BadRequest
from baseload.wire.openai_chat import (
    StreamParser,
    StreamRenderer,
    parse_request,
    parse_response,
    render_request,
    render_response,
)


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}


TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def test_every_sampling_field_arrives():
    asked = parse_request(
        body(
            temperature=0.5,
            top_p=0.9,
            top_k=5,
            min_p=0.1,
            repetition_penalty=1.1,
            presence_penalty=1,
            frequency_penalty=-1,
            logit_bias={"7": -100},
            seed=3,
            stop="x",
            stop_token_ids=[2],
            max_completion_tokens=9,
            max_tokens=5,
            min_tokens=1,
            ignore_eos=True,
            logprobs=True,
            top_logprobs=4,
            n=2,
            stream=True,
            stream_options={"continuous_usage_stats": True},
        )
    )
    p = asked.sampling
    assert (p.temperature, p.top_p, p.top_k, p.min_p, p.repetition_penalty) == (0.5, 0.9, 5, 0.1, 1.1)
    assert (p.presence_penalty, p.frequency_penalty, p.logit_bias, p.seed) == (1, -1, ((7, -100.0),), 3)
    assert (p.stop, p.stop_token_ids, p.max_tokens, p.min_tokens) == (("x",), (2,), 9, 1)
    assert (p.ignore_eos, p.logprobs, p.n) == (True, 4, 2)
    assert asked.stream and asked.include_usage and asked.continuous_usage


def test_null_is_absent():
    names = [
        "temperature",
        "top_p",
        "n",
        "stop",
        "seed",
        "tools",
        "response_format",
        "logit_bias",
        "user",
        "stream",
        "max_tokens",
    ]
    assert parse_request(body(**dict.fromkeys(names))).sampling == parse_request(body()).sampling


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", None),
        ("model", 5),
        ("model", ""),
        ("messages", None),
        ("messages", []),
        ("messages", {}),
        ("messages", [None]),
        ("messages", ["hi"]),
        ("messages", [{"role": "king", "content": "x"}]),
        ("messages", [{"role": "user"}]),
        ("messages", [{"role": "user", "content": 5}]),
        ("messages", [{"role": "user", "content": []}]),
        ("messages", [{"role": "user", "content": [{"type": "audio"}]}]),
        ("messages", [{"role": "user", "content": [{"type": "text"}]}]),
        ("messages", [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1/x.png"}}]}]),
        ("messages", [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}]),
        ("messages", [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,?"}}]}]),
        ("messages", [{"role": "tool", "content": "x"}]),
        ("messages", [{"role": "assistant", "tool_calls": [{"id": "", "function": {"name": "f"}}]}]),
        ("temperature", "hot"),
        ("temperature", True),
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", float("nan")),
        ("top_p", 0),
        ("top_p", 1.1),
        ("n", 0),
        ("n", 129),
        ("n", 1.0),
        ("max_tokens", 0),
        ("max_tokens", -1),
        ("max_tokens", "5"),
        ("max_completion_tokens", 0),
        ("top_logprobs", 3),
        ("logprobs", 3),
        ("stop", ["a"] * 17),
        ("stop", [""]),
        ("stop", [1]),
        ("logit_bias", {"a": 1}),
        ("logit_bias", {"1": 101}),
        ("logit_bias", {"1": None}),
        ("logit_bias", {str(i): 1 for i in range(1025)}),
        ("stop_token_ids", [-1]),
        ("seed", 1.5),
        ("stream", "yes"),
        ("stream_options", []),
        ("tools", [{}]),
        ("tools", [{"type": "function"}]),
        ("tools", [{"type": "function", "function": {"name": 5}}]),
        ("tools", [{"type": "function", "function": {"name": "f", "description": "d" * 70_000}}]),
        ("tools", [TOOL] * 513),
        ("tool_choice", "required"),
        ("tool_choice", {"type": "function", "function": {"name": "g"}}),
        ("response_format", {"type": "json_schema"}),
        ("response_format", {"type": "json_schema", "json_schema": {"name": "x", "schema": "{}"}}),
        ("response_format", {"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}}),
        ("response_format", {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "http://x/y"}}}),
        ("response_format", {"type": "yaml"}),
        ("metadata", "x"),
        ("prediction", "x"),
        ("baseload", {"checks": [{"no": "type"}]}),
        ("baseload", {"chekcs": []}),
    ],
)
def test_a_bad_field_is_refused_by_name_and_not_echoed(field: str, value: Any):
    with pytest.raises(BadRequest) as refused:
        parse_request(body(**{field: value}))
    assert (refused.value.param or "").startswith(field)
    assert len(refused.value.message) < 300


def test_a_deep_schema_is_refused():
    schema: dict[str, Any] = {}
    for _ in range(80):
        schema = {"type": "array", "items": schema}
    with pytest.raises(BadRequest, match="nested"):
        parse_request(body(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}))


def test_a_tool_conversation_is_understood():
    asked = parse_request(
        body(
            tools=[TOOL],
            messages=[
                {"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
                {"role": "assistant", "content": None, "tool_calls": [_call("c1", '{"x":1}')]},
                {"role": "tool", "tool_call_id": "c1", "content": "2"},
            ],
        )
    )
    assert asked.messages[0].text == "ab"
    assert asked.messages[1].content == (ToolCall("c1", "f", '{"x":1}'),)
    assert asked.messages[2].content == (ToolResult("c1", (Text("2"),)),)
    assert asked.tool_choice == "auto"


def test_an_image_comes_out_of_its_data_url():
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAEC"}}
    asked = parse_request(body(messages=[{"role": "user", "content": [part]}]))
    assert asked.messages[0].content == (Image("image/png", b"\0\1\2"),)


def _call(id: str, arguments: str) -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": "f", "arguments": arguments}}


# ------------------------------------------------------------------------------------------------- our request, written

words = st.text(max_size=20)
messages = st.lists(
    st.one_of(
        st.fixed_dictionaries({"role": st.sampled_from(["system", "user"]), "content": words}),
        st.fixed_dictionaries({"role": st.just("assistant"), "content": words.filter(bool)}),
        st.fixed_dictionaries({"role": st.just("tool"), "tool_call_id": st.just("c"), "content": words}),
    ),
    min_size=1,
    max_size=5,
)


@given(messages, st.floats(0, 2), st.integers(1, 99) | st.none(), st.booleans(), st.booleans())
def test_parse_of_render_keeps_the_meaning(turns: list[Any], temperature: float, top: int | None, tools: bool, own: bool):
    fields: dict[str, Any] = {"temperature": temperature, "max_tokens": top, "tools": [TOOL] if tools else None}
    first = parse_request(body(**fields) | {"messages": turns})
    if not own:  # as if it had come in by another protocol: only its meaning travels
        first = ChatRequest(
            first.model, first.messages, sampling=first.sampling, tools=first.tools, tool_choice=first.tool_choice
        )
    again = parse_request(json.loads(json.dumps(render_request(first, "other"))))
    assert (again.messages, again.sampling, again.tools, again.tool_choice) == (
        first.messages,
        first.sampling,
        first.tools,
        first.tool_choice,
    )
    assert again.model == "other" and again.stream and again.include_usage


def test_a_supplier_of_the_same_protocol_gets_every_field_but_those_it_refuses_and_ours():
    asked = parse_request(body(top_k=3, unknown_new_field={"a": 1}, baseload={"allow_suppliers": True}))
    sent = render_request(asked, "big", drop=["top_k"])
    assert sent["unknown_new_field"] == {"a": 1}
    assert "top_k" not in sent and "baseload" not in sent


# ------------------------------------------------------------------------------------------------- events, both ways

SAID = TokenLogprob("a", -0.5, b"a", 7, (TokenLogprob("b", -1.0, b"b", 8),))
deltas = st.lists(
    st.one_of(
        st.builds(TextDelta, st.text(min_size=1, max_size=5), st.integers(0, 1), st.just(1)),
        st.builds(ReasoningDelta, st.text(min_size=1, max_size=5), st.integers(0, 1), st.just(1)),
    ),
    max_size=8,
)


def stream(request: ChatRequest, events: list[Event]) -> list[Any]:
    renderer = StreamRenderer(request, "id", 1, "m")
    return [chunk for event in events for chunk in renderer.events(event)]


@given(deltas)
def test_a_stream_survives_the_wire(said: list[Event]):
    request = parse_request(body(n=2, stream=True, stream_options={"include_usage": True}))
    events: list[Event] = [*said, Usage(3, 5, 1), Finish("stop", 0), Finish("length", 1)]
    parser = StreamParser(2)
    back = [e for chunk in stream(request, events) for e in parser.feed(chunk if isinstance(chunk, str) else json.dumps(chunk))]
    assert back == events
    assert parser.ended


def test_the_chunks_are_openais():
    request = parse_request(body(stream=True, stream_options={"include_usage": True}, logprobs=True, top_logprobs=1))
    chunks = stream(request, [TextDelta("a", tokens=1, logprobs=(SAID,)), Usage(3, 1), Finish("stop")])
    assert [c if isinstance(c, str) else c["object"] for c in chunks] == ["chat.completion.chunk"] * 4 + ["[DONE]"]
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert chunks[1]["choices"][0]["logprobs"]["content"][0]["top_logprobs"][0]["token"] == "b"
    assert chunks[2]["choices"][0]["finish_reason"] == "stop"
    assert chunks[3]["choices"] == [] and chunks[3]["usage"]["total_tokens"] == 4


def test_continuous_usage_counts_up():
    request = parse_request(body(stream=True, stream_options={"continuous_usage_stats": True}))
    chunks = stream(request, [Usage(3, 0), TextDelta("a", tokens=1), TextDelta("b", tokens=1), Usage(3, 2), Finish("stop")])
    counts = [c["usage"]["completion_tokens"] for c in chunks if not isinstance(c, str)]
    assert counts == sorted(counts) and counts[-1] == 2


def test_a_failure_after_the_first_byte_is_an_error_chunk_and_the_end():
    chunks = stream(parse_request(body(stream=True)), [TextDelta("a"), Failure("broken", 502)])
    assert chunks[-2]["error"]["message"] == "broken" and chunks[-1] == "[DONE]"


def test_a_whole_answer_and_back():
    request = parse_request(body())
    call = ToolCallDelta(0, "c1", "f", '{"x":1}')
    events: list[Event] = [TextDelta("hi"), call, Usage(3, 5, 2), Finish("tool_calls")]
    answer = render_response(request, events, "id", 1, "m")
    assert answer["choices"][0]["message"]["tool_calls"] == [_call("c1", '{"x":1}')]
    assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 2}
    back = parse_response(answer, 1)
    assert [type(e) for e in back] == [TextDelta, ToolCallDelta, Usage, Finish]


@pytest.mark.parametrize(
    "lines",
    [
        [],
        ["[DONE]"],
        ["{"],
        ["5"],
        ["[]"],
        ['{"choices":[{"index":0,"delta":{"content":5}}]}'],
        ['{"choices":[{"index":9,"delta":{"content":"x"}}]}'],
        ['{"error":{"message":"overloaded"}}'],
        ['{"choices":[],"usage":{"prompt_tokens":-5}}'],
        ['{"choices":[{"index":0,"delta":{"content":"cut"}}]}'],
        ["[" * 100_000],
    ],
)
def test_a_bad_stream_ends_in_one_failure(lines: list[str]):
    parser = StreamParser(1)
    events = [e for line in lines for e in parser.feed(line)] + parser.close() + parser.close()
    assert [type(e) for e in events if isinstance(e, Failure | Finish)] == [Failure]


def test_a_second_finish_and_what_follows_are_dropped():
    parser = StreamParser(1)
    end = '{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}'
    late = '{"choices":[{"index":0,"delta":{"content":"late"},"finish_reason":"length"}]}'
    events = [*parser.feed(end), *parser.feed(late), *parser.feed("[DONE]"), *parser.feed(late)]
    assert events == [Finish("stop")]
