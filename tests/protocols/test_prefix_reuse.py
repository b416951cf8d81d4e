"""What coding agents send again and again must be the same tokens: most of a prompt is then in the cache already.

The shapes are those that the real clients send (which fields, which blocks, which order, how large); the words are made up.
They are longer than the embedded model's context, so only their ids are compared.
"""

import random
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from baseload.runtime.models.chat_template import ChatTemplate, template_from_gguf
from baseload.runtime.models.load_gguf import open_gguf
from baseload.runtime.models.tokenizer import Tokenizer, tokenizer_from_gguf
from baseload.wire import anthropic_messages, openai_chat, openai_responses
from baseload.wire.chat import ChatRequest

KNOWS_TOOLS = (  # as the templates of the Qwen and Hermes families put it
    "{% if tools %}<|im_start|>system\n{{ messages[0].content }}\n<tools>{% for t in tools %}\n{{ t | tojson }}{% endfor %}\n"
    "</tools><|im_end|>\n{% endif %}{% for m in messages %}{% if not (loop.first and tools) %}<|im_start|>{{ m.role }}\n"
    "{{ m.content }}{% for c in m.tool_calls or [] %}\n<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}<|im_end|>\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer(smollm2: Path) -> Tokenizer:
    return tokenizer_from_gguf(open_gguf(smollm2).metadata)


@pytest.fixture(scope="module", params=["explained to it", "known to its template"])
def ids_of(request: pytest.FixtureRequest, smollm2: Path, tokenizer: Tokenizer) -> Any:
    known = request.param.startswith("known")
    template = ChatTemplate(KNOWS_TOOLS) if known else template_from_gguf(open_gguf(smollm2).metadata)
    yield lambda ask: template.encode(ask, tokenizer)
    template.close()


def words(seed: str, characters: int) -> str:
    rng, made, size = random.Random(seed), [], 0
    while size < characters:
        made.append("".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))))
        size += len(made[-1]) + 1
    return " ".join(made)[:characters]


def schema(seed: str, characters: int) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"path": {"type": "string", "description": words(seed, characters)}},
        "required": ["path"],
    }


def common(first: list[int], second: list[int]) -> int:
    return next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second)))


Parse = Callable[[dict[str, Any]], ChatRequest]

# ------------------------------------------------------------------------------------------------------ Claude Code

CACHED = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}


def claude(prompt: str, stamp: str) -> dict[str, Any]:
    """A first turn. `stamp` is what differs from one conversation to the next at the very head."""
    tools = [
        {"name": f"Tool{n}", "description": words(f"tool {n}", 2200), "input_schema": schema(f"t{n}", 300)} for n in range(11)
    ]
    deferred = {
        "name": "DeferredToolPlaceholder",
        "description": "-",
        "input_schema": {"type": "object"},
        "defer_loading": True,
    }
    reminder = {"type": "text", "text": words("reminder", 800)}
    system = [
        {"type": "text", "text": f"x-anthropic-billing-header: cc_version=2.1.330.{stamp}; cc_entrypoint=sdk-cli;"},
        {"type": "text", "text": "You are an agent.", **CACHED},
        {"type": "text", "text": words("system", 6000), **CACHED},
    ]
    return {
        "model": "local", "max_tokens": 32000, "stream": True, "system": system, "tools": [*tools, deferred],
        "metadata": {"user_id": f'{{"session_id":"{stamp}"}}'}, "thinking": {"type": "adaptive"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015"}]}, "output_config": {"effort": "high"},
        "messages": [
            {"role": "user", "content": [reminder, {"type": "text", "text": prompt, **CACHED}]},
            {"role": "system", "content": [{"type": "text", "text": words("environment", 5000), **CACHED}]},
        ],
    }  # fmt: skip


def claude_goes_on(first: dict[str, Any], found: bool) -> dict[str, Any]:
    """The next turn: marks move on, the environment has become a plain string, and a tool may have been found."""
    turn = deepcopy(first)
    turn["messages"][0]["content"][1].pop("cache_control")
    turn["messages"][1]["content"] = turn["messages"][1]["content"][0]["text"]
    name = "ToolSearch" if found else "Tool3"
    call = {"type": "tool_use", "id": "toolu_1", "name": name, "input": {"path": "hello.txt"}}
    result: Any = [{"type": "tool_reference", "tool_name": "WebFetch"}] if found else "hello, file"
    turn["messages"] += [
        {"role": "assistant", "content": [{"type": "text", "text": "I look."}, call]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": result, **CACHED}]},
    ]
    if found:
        fetch = {
            "name": "WebFetch",
            "description": words("fetch", 1500),
            "input_schema": schema("f", 300),
            "defer_loading": True,
        }
        turn["tools"].insert(5, fetch)
    return turn


# ------------------------------------------------------------------------------------------------------ Codex


def codex_says(role: str, text: str) -> dict[str, Any]:
    return {"type": "message", "role": role, "content": [{"type": "input_text", "text": text}]}


def codex(prompt: str, session: str) -> dict[str, Any]:
    functions = [
        {
            "type": "function",
            "name": f"tool_{n}",
            "description": words(f"codex {n}", 1500),
            "strict": False,
            "parameters": schema(f"c{n}", 200),
        }
        for n in range(7)
    ]
    space = {"type": "namespace", "name": "multi_agent_v1", "tools": deepcopy(functions[:5])}
    return {
        "model": "local", "stream": True, "store": False, "tool_choice": "auto", "parallel_tool_calls": True,
        "tools": [*functions, space, {"type": "web_search", "external_web_access": True}], "reasoning": {"summary": "auto"},
        "include": ["reasoning.encrypted_content"], "prompt_cache_key": session, "client_metadata": {"session": session},
        "input": [
            codex_says("developer", words("codex", 17_300)),
            codex_says("developer", words("skills", 2000)),
            codex_says("user", "<environment_context>\n<cwd>/w</cwd>"),
            {"type": "message", "role": "user", "id": f"msg_{session}", "content": [{"type": "input_text", "text": prompt}]},
        ],
    }  # fmt: skip


def codex_goes_on(first: dict[str, Any]) -> dict[str, Any]:
    turn = deepcopy(first)
    turn["input"] += [
        {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x" * 400},
        {
            "type": "function_call",
            "id": "fc_1",
            "call_id": "call_1",
            "name": "tool_1",
            "arguments": '{"path":"a"}',
            "status": "completed",
        },
        {"type": "function_call_output", "id": "fco_1", "call_id": "call_1", "output": "hello, file"},
    ]
    return turn


# ------------------------------------------------------------------------------------------------------ a chat client


def chat(prompt: str, session: str) -> dict[str, Any]:
    tools = [
        {
            "type": "function",
            "function": {"name": f"t{n}", "description": words(f"chat {n}", 1500), "parameters": schema("s", 99)},
        }
        for n in range(10)
    ]
    messages = [{"role": "system", "content": words("opencode", 9500)}, {"role": "user", "content": prompt}]
    return {"model": "local", "stream": True, "tools": tools, "messages": messages, "user": session}


def chat_goes_on(first: dict[str, Any]) -> dict[str, Any]:
    turn = deepcopy(first)
    call = {"id": "c1", "type": "function", "function": {"name": "t1", "arguments": '{"path": "a"}'}}
    turn["messages"] += [
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "hi"},
    ]
    return turn


CLIENTS: list[Any] = [
    pytest.param(anthropic_messages.parse_request, claude, lambda first: claude_goes_on(first, False), id="Claude Code"),
    pytest.param(
        anthropic_messages.parse_request, claude, lambda first: claude_goes_on(first, True), id="Claude Code, a tool found"
    ),
    pytest.param(openai_responses.parse_request, codex, codex_goes_on, id="Codex"),
    pytest.param(openai_chat.parse_request, chat, chat_goes_on, id="opencode"),
]


@pytest.mark.parametrize(("parse", "begin", "go_on"), CLIENTS)
def test_a_second_turn_begins_with_the_first_ones_tokens(ids_of, parse: Parse, begin: Any, go_on: Any):
    first = begin("Say what hello.txt holds.", "440")
    before, after = ids_of(parse(first)), ids_of(parse(go_on(first)))
    assert len(before) > 5000 and len(after) > len(before)
    assert common(before, after) >= len(before) - 8  # all but the head of the turn that the model had begun


@pytest.mark.parametrize(("parse", "begin", "go_on"), CLIENTS)
def test_another_conversation_shares_four_fifths_of_its_prompt(ids_of, parse: Parse, begin: Any, go_on: Any):
    one, other = ids_of(parse(begin("Say hello.", "440"))), ids_of(parse(begin("Fix the failing test, please.", "c4f")))
    assert common(one, other) >= 0.8 * len(other)
