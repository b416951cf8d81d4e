"""Every field of every request with every kind of wrong value: an error of the client's, in words that name the field."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import pytest

from baseload.wire import (
    anthropic_messages,
    embeddings,
    google_generate,
    ollama,
    openai_chat,
    openai_completions,
    openai_responses,
    tokens,
)
from baseload.wire.errors import BadRequest

Json = dict[str, Any]
WRONG: dict[str, list[Any]] = {
    "text": [7, 1.5, True, [], {}, ["x"]],
    "flag": ["true", 1, 0, [], {}],
    "count": [0, -1, 1.5, "7", True, [], 1 << 60],
    "integer": [1.5, "7", True, [], {}, 1 << 70],
    "temperature": [-0.1, 2.1, "1", True, [], float("nan"), float("inf")],
    "share": [-0.1, 0, 1.1, "1", True, {}, float("nan")],
    "penalty": [-2.5, 2.5, "0", False, [], float("inf")],
    "list": ["x", 7, True, {"a": 1}],
    "object": ["x", 7, True, [1]],
    "stops": [7, True, {}, [7], [""], ["x"] * 65, ["x" * 2000]],
    "messages": [None, "x", 7, {}, [], [7], ["x"], [{}], [[]], [{"role": "x", "content": "y"}],
                 [{"role": "user", "content": 7}]],
    "model": [None, "", 7, True, [], {}, "x" * 300],
    "tools": ["x", 7, {"a": 1}, [7], ["x"], [{"type": "function"}], [{"type": "function", "function": {"name": ""}}]],
}  # fmt: skip
USER = [{"role": "user", "content": "hi"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
SAMPLED = {
    "temperature": "temperature", "top_p": "share", "presence_penalty": "penalty", "frequency_penalty": "penalty",
    "seed": "integer", "n": "count", "stop": "stops", "max_tokens": "count", "logit_bias": "object", "min_tokens": "integer",
    "ignore_eos": "flag", "stop_token_ids": "list", "stream": "flag", "stream_options": "object", "user": "text",
    "baseload": "object",
}  # fmt: skip
OPTIONS = {"temperature": "temperature", "top_p": "share", "seed": "integer", "stop": "stops", "presence_penalty": "penalty"}
GOOGLES = {"temperature": "temperature", "topP": "share", "seed": "integer", "stopSequences": "stops",
           "maxOutputTokens": "count", "candidateCount": "count", "responseSchema": "object"}  # fmt: skip

Parse = Callable[[Json], Any]
REQUESTS: dict[str, tuple[Parse, Json, dict[str, str]]] = {
    "chat": (
        openai_chat.parse_request,
        {"model": "m", "messages": USER},
        SAMPLED | {"model": "model", "messages": "messages", "tools": "tools", "max_completion_tokens": "count",
                   "logprobs": "flag", "parallel_tool_calls": "flag", "response_format": "object"},
    ),
    "completions": (
        openai_completions.parse_completion_request,
        {"model": "m", "prompt": "x"},
        SAMPLED | {"model": "model", "echo": "flag"},
    ),
    "responses": (
        openai_responses.parse_request,
        {"model": "m", "input": "x"},
        {"model": "model", "temperature": "temperature", "top_p": "share", "max_output_tokens": "count", "stream": "flag",
         "store": "flag", "instructions": "text", "parallel_tool_calls": "flag", "reasoning": "object", "text": "object",
         "tools": "list", "metadata": "object", "include": "list"},
    ),
    "messages": (
        anthropic_messages.parse_request,
        {"model": "m", "max_tokens": 9, "messages": USER},
        {"model": "model", "messages": "messages", "max_tokens": "count", "top_p": "share", "stop_sequences": "stops",
         "stream": "flag", "metadata": "object", "tools": "list", "tool_choice": "object", "output_config": "object"},
    ),
    "generate": (
        lambda body: google_generate.parse_request(body, "m", False),
        {"contents": [{"role": "user", "parts": [{"text": "hi"}]}], "generationConfig": {}},
        {f"generationConfig.{name}": kind for name, kind in GOOGLES.items()} | {"generationConfig": "object"},
    ),
    "ollama chat": (
        ollama.parse_chat,
        {"model": "m", "messages": USER, "options": {}},
        {f"options.{name}": kind for name, kind in OPTIONS.items()}
        | {"messages": "messages", "stream": "flag", "options": "object"},
    ),
    "ollama generate": (
        ollama.parse_generate,
        {"model": "m", "prompt": "x", "options": {}},
        {f"options.{name}": kind for name, kind in OPTIONS.items()} | {"system": "text", "raw": "flag", "prompt": "text"},
    ),
    "embeddings": (
        embeddings.parse_embeddings,
        {"model": "m", "input": "x"},
        {"model": "model", "dimensions": "count", "user": "text"},
    ),
    "rerank": (
        embeddings.parse_rerank,
        {"model": "m", "query": "q", "documents": ["d"]},
        {"model": "model", "query": "text", "documents": "list", "top_n": "count", "return_documents": "flag"},
    ),
    "tokenize": (
        tokens.parse_tokenize,
        {"model": "m", "prompt": "x"},
        {"model": "model", "prompt": "text", "add_special_tokens": "flag", "return_token_strs": "flag"},
    ),
    "detokenize": (tokens.parse_detokenize, {"model": "m", "tokens": [1]}, {"model": "model", "tokens": "list"}),
}  # fmt: skip


def cases() -> Iterator[Any]:
    for name, (_, _, fields) in REQUESTS.items():
        for field, kind in fields.items():
            for n, wrong in enumerate(WRONG[kind]):
                yield pytest.param(name, field, wrong, id=f"{name}: {field}, {kind} {n}")


def with_field(body: Json, path: str, value: Any) -> Json:
    changed = deepcopy(body)
    *folders, last = path.split(".")
    inner = changed
    for folder in folders:
        inner = inner[folder]
    inner[last] = value
    return changed


@pytest.mark.parametrize("name", REQUESTS)
def test_the_bodies_are_right_before(name: str):
    parse, body, _ = REQUESTS[name]
    parse(deepcopy(body))


@pytest.mark.parametrize(("name", "field", "wrong"), list(cases()))
def test_a_wrong_value_is_named(name: str, field: str, wrong: Any):
    parse, body, _ = REQUESTS[name]
    with pytest.raises(BadRequest) as error:
        parse(with_field(body, field, wrong))
    assert field.rpartition(".")[2] in f"{error.value.param} {error.value.message}"
    assert len(error.value.message) < 400 and "x" * 40 not in error.value.message
