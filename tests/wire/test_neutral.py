"""A request as it is kept: what comes back asks the same of a model."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baseload.wire import neutral
from baseload.wire.chat import (
    ChatRequest,
    Extras,
    Image,
    Message,
    Reasoning,
    ResponseFormat,
    SamplingParams,
    Text,
    ToolCall,
    ToolReference,
    ToolResult,
    ToolSpec,
)

words = st.text(max_size=12)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)
objects = st.dictionaries(words, json_values, max_size=3)
plain = st.builds(Text, words) | st.builds(Image, st.sampled_from(["image/png"]), st.binary(max_size=9))
blocks = (
    plain
    | st.builds(Reasoning, words, st.none() | words)
    | st.builds(ToolCall, words, words, words)
    | st.builds(ToolResult, words, st.lists(plain | st.builds(ToolReference, words), max_size=3).map(tuple), st.booleans())
)
roles = st.sampled_from(["system", "user", "assistant", "tool"])
messages = st.lists(st.builds(Message, roles, st.lists(blocks, max_size=3).map(tuple), st.none() | words), max_size=4).map(
    tuple
)
sampling = st.builds(
    SamplingParams,
    temperature=st.floats(0, 2),
    seed=st.none() | st.integers(-(2**63), 2**63 - 1),
    max_tokens=st.none() | st.integers(1, 99),
    stop=st.lists(words, max_size=2).map(tuple),
    logit_bias=st.lists(st.tuples(st.integers(0, 9), st.floats(-100, 100)), max_size=2).map(tuple),
    n=st.integers(1, 4),
)
requests = st.builds(
    ChatRequest,
    model=words,
    messages=messages,
    prompt=st.none() | words | st.lists(st.integers(0, 999), max_size=4).map(tuple),
    sampling=sampling,
    tools=st.lists(st.builds(ToolSpec, words, words, objects), max_size=2).map(tuple),
    tool_choice=st.just("auto") | st.builds(lambda name: {"name": name}, words),
    response_format=st.builds(
        ResponseFormat, kind=st.just("choice"), schema=st.none() | objects, choices=st.lists(words, max_size=2).map(tuple)
    ),
    extras=st.builds(
        Extras, checks=st.lists(objects, max_size=2).map(tuple), task=words, budget_usd=st.none() | st.floats(0, 9)
    ),
    effort=st.sampled_from([None, "none", "high"]),
    body=st.fixed_dictionaries({}, optional={"temperature": st.floats(0, 2), "chat_template_kwargs": objects}),
)


@given(requests)
def test_a_request_comes_back_as_it_was(request: ChatRequest):
    assert neutral.decode(json.loads(json.dumps(neutral.encode(request)))) == request


def test_of_the_body_only_what_the_answer_depends_on_is_kept():
    request = ChatRequest("local", body={"temperature": 0.5, "metadata": {"patient": "Ada"}, "user": "x"})
    assert "Ada" not in json.dumps(neutral.encode(request))
    assert neutral.decode(neutral.encode(request)) == replace(request, body={"temperature": 0.5})


@pytest.mark.parametrize("kept", [{}, {"model": "x"}, {**neutral.encode(ChatRequest("x")), "messages": [{"role": "user"}]}])
def test_what_is_no_kept_request_is_said_to_be_none(kept: Any):
    with pytest.raises(ValueError, match="no request"):
        neutral.decode(kept)
