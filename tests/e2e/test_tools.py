"""A tool loop with the real model through each protocol, as the vendors' own clients run it: forced call, result, answer."""

import json
from typing import Any

import anthropic
import jsonschema
import openai
import pytest

pytestmark = pytest.mark.slow

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
ABOUT = {"name": "get_weather", "description": "The weather of a city for some days"}
ASK = "What will the weather be in Paris in the next 3 days?"


def test_chat_completions(server: Any):
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="k", max_retries=0)
    tools: Any = [{"type": "function", "function": {**ABOUT, "parameters": SCHEMA}}]
    messages: Any = [{"role": "user", "content": ASK}]
    common: Any = {"model": "local", "tools": tools, "temperature": 0}
    first = client.chat.completions.create(
        model="local",
        messages=messages,
        tools=tools,
        tool_choice="required",
        parallel_tool_calls=False,
        temperature=0,
        max_tokens=80,
    )
    [call] = first.choices[0].message.tool_calls or []
    assert first.choices[0].finish_reason == "tool_calls" and call.type == "function" and call.function.name == "get_weather"
    jsonschema.validate(json.loads(call.function.arguments), SCHEMA)
    messages += [first.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "sunny, 21 degrees"}]
    last = client.chat.completions.create(messages=messages, tool_choice="none", max_tokens=30, **common)
    assert last.choices[0].message.content and not last.choices[0].message.tool_calls


def test_chat_completions_streamed(server: Any):
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="k", max_retries=0)
    tools: Any = [{"type": "function", "function": {**ABOUT, "parameters": SCHEMA}}]
    named: Any = {"type": "function", "function": {"name": "get_weather"}}
    name, arguments, finish, pieces = "", "", None, 0
    for chunk in client.chat.completions.create(
        model="local",
        messages=[{"role": "user", "content": ASK}],
        tools=tools,
        tool_choice=named,
        temperature=0,
        max_tokens=80,
        stream=True,
    ):
        for call in chunk.choices[0].delta.tool_calls or []:
            name += (call.function and call.function.name) or ""
            arguments += (call.function and call.function.arguments) or ""
            pieces += 1
        finish = chunk.choices[0].finish_reason or finish
    assert (name, finish) == ("get_weather", "tool_calls") and pieces > 3
    jsonschema.validate(json.loads(arguments), SCHEMA)


def test_responses(server: Any):
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="k", max_retries=0)
    tools: Any = [{"type": "function", **ABOUT, "parameters": SCHEMA, "strict": True}]
    common: Any = {"model": "local", "tools": tools, "temperature": 0}
    first = client.responses.create(
        input=ASK, tool_choice="required", parallel_tool_calls=False, max_output_tokens=80, **common
    )
    [call] = [item for item in first.output if item.type == "function_call"]
    jsonschema.validate(json.loads(call.arguments), SCHEMA)
    result: Any = [{"type": "function_call_output", "call_id": call.call_id, "output": "sunny, 21 degrees"}]
    last = client.responses.create(
        input=result, previous_response_id=first.id, tool_choice="none", max_output_tokens=30, **common
    )
    assert last.output_text


def test_messages(server: Any):
    client = anthropic.Anthropic(base_url=server.url, api_key="k", max_retries=0)
    tools: Any = [{**ABOUT, "input_schema": SCHEMA}]
    messages: Any = [{"role": "user", "content": ASK}]
    choice: Any = {"type": "any", "disable_parallel_tool_use": True}
    common: Any = {"model": "local", "tools": tools, "extra_body": {"temperature": 0}}
    first = client.messages.create(messages=messages, tool_choice=choice, max_tokens=80, **common)
    [call] = [block for block in first.content if block.type == "tool_use"]
    assert first.stop_reason == "tool_use"
    jsonschema.validate(call.input, SCHEMA)
    messages += [
        {"role": "assistant", "content": first.content},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "sunny, 21 degrees"}]},
    ]
    last = client.messages.create(messages=messages, tool_choice={"type": "none"}, max_tokens=30, **common)
    assert [block.type for block in last.content] == ["text"]


def test_a_schema_is_kept_to_within_the_last_token(server: Any):
    schema = {**SCHEMA, "properties": {**SCHEMA["properties"], "notes": {"type": "array", "items": {"type": "string"}}}}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    for most in (16, 30, 60):
        status, answer, _ = server.chat(
            "Describe a journey as JSON.", response_format=form, max_tokens=most, temperature=1.0, seed=5
        )
        assert status == 200 and answer["choices"][0]["finish_reason"] == "stop", answer
        jsonschema.validate(json.loads(answer["choices"][0]["message"]["content"]), schema)


def test_what_cannot_be_kept_to_is_named(server: Any):
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "array", "uniqueItems": True}}}
    status, answer, _ = server.chat("Hello", response_format=form)
    assert status == 400 and "uniqueItems" in answer["error"]["message"]
