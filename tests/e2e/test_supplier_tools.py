"""A tool loop (call, result, answer) through every supplier's protocol, by clients of every other."""

from collections.abc import Callable, Iterator
from typing import Any

import anthropic
import openai
import pytest

from .stand_in import ANSWER_TOKENS, KEY, KINDS, PROMPT_TOKENS, Asked, Reply, StandIn, stand_in

pytestmark = pytest.mark.slow

ASK, FOUND = "What will the weather be in Paris?", "sunny, 21 degrees"
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
ABOUT = {"name": "get_weather", "description": "The weather of a city"}


def brain(asked: Asked) -> Reply:
    """Asks its tool, and says what that found."""
    if not asked.results:
        return Reply("I look.", ("get_weather", {"city": "Paris"}))
    return Reply(f"It will be: {asked.results[-1][1]}")


@pytest.fixture(scope="module")
def house(start: Any) -> Iterator[tuple[Any, StandIn]]:
    with stand_in(brain) as supplier:
        config = f"[router]\nallowed_suppliers = {KINDS}\n" + "".join(supplier.section(kind, kind) for kind in KINDS)
        server = start(config=config.replace("'", '"'), env={"STAND_IN_KEY": KEY})
        yield server, supplier
        server.stop()


def chat(url: str, model: str) -> str:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0)
    tools: Any = [{"type": "function", "function": {**ABOUT, "parameters": SCHEMA}}]
    messages: Any = [{"role": "user", "content": ASK}]
    first = client.chat.completions.create(model=model, messages=messages, tools=tools)
    choice = first.choices[0]
    calls: Any = choice.message.tool_calls
    [call] = calls
    assert (choice.finish_reason, choice.message.content, call.type) == ("tool_calls", "I look.", "function")
    assert (call.function.name, call.function.arguments) == ("get_weather", '{"city": "Paris"}')
    assert first.usage and (first.usage.prompt_tokens, first.usage.completion_tokens) == (PROMPT_TOKENS, ANSWER_TOKENS)
    messages += [choice.message, {"role": "tool", "tool_call_id": call.id, "content": FOUND}]
    return client.chat.completions.create(model=model, messages=messages, tools=tools).choices[0].message.content or ""


def responses(url: str, model: str) -> str:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0)
    tools: Any = [{"type": "function", **ABOUT, "parameters": SCHEMA, "strict": False}]
    with client.responses.stream(model=model, input=ASK, tools=tools) as stream:
        first = stream.get_final_response()
    [call] = [item for item in first.output if item.type == "function_call"]
    assert (first.output_text, call.name, call.arguments) == ("I look.", "get_weather", '{"city": "Paris"}')
    result: Any = [{"type": "function_call_output", "call_id": call.call_id, "output": FOUND}]
    return client.responses.create(model=model, input=result, previous_response_id=first.id, tools=tools).output_text


def messages(url: str, model: str) -> str:
    client = anthropic.Anthropic(base_url=url, api_key="k", max_retries=0)
    tools: Any = [{**ABOUT, "input_schema": SCHEMA}]
    said: Any = [{"role": "user", "content": ASK}]
    with client.messages.stream(model=model, messages=said, tools=tools, max_tokens=99) as stream:
        first = stream.get_final_message()
    text, call = first.content
    assert (first.stop_reason, text.type, call.type) == ("tool_use", "text", "tool_use")
    assert call.type == "tool_use" and (call.name, call.input) == ("get_weather", {"city": "Paris"})
    result = {"type": "tool_result", "tool_use_id": call.id, "content": FOUND}
    said += [{"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
    last = client.messages.create(model=model, messages=said, tools=tools, max_tokens=99)
    return "".join(block.text for block in last.content if block.type == "text")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("client", [chat, responses, messages])
def test_a_tool_loop(house: tuple[Any, StandIn], client: Callable[[str, str], str], kind: str):
    server, supplier = house
    supplier.asked.clear()
    assert FOUND in client(server.url, f"{kind}/big")
    first, second = supplier.asked
    assert {first.kind, second.kind} == {kind}
    assert first.tools == second.tools == ["get_weather"] and ("user", ASK) in first.said
    [(to, text)] = second.results
    assert FOUND in text
    calls = {"google_generate": "get_weather"}  # which knows calls by their names alone
    assert to == calls.get(kind, to) and to in str(second.body).replace(text, "", 1)
