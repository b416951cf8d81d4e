"""Ollama's API, which many tools speak and no other: https://github.com/ollama/ollama/blob/main/docs/api.md. Served only; pure.

Answers are lines of JSON. Calls come whole; arguments are objects; a stream is what a client gets that says nothing.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import orjson

from . import fields
from .anthropic_content import arguments
from .chat import (
    Block,
    ChatRequest,
    Effort,
    Event,
    Failure,
    Finish,
    Message,
    Reasoning,
    ReasoningDelta,
    ResponseFormat,
    SamplingParams,
    Text,
    TextDelta,
    ToolCall,
    ToolCallDelta,
    ToolResult,
    Usage,
)
from .errors import BaseloadError
from .fields import bad, integer, items, number, read
from .openai_chat import join_tool_calls, model_name
from .sse import TextChunks

CHAT, GENERATE = "ollama_chat", "ollama_generate"
VERSION = "0.13.0"  # of the API that is spoken: clients ask for a least one
EFFORTS: dict[str, Effort] = {"low": "low", "medium": "medium", "high": "high"}


def line(chunk: Mapping[str, Any] | str) -> bytes:
    """A chunk as a line."""
    return (chunk.encode() if isinstance(chunk, str) else orjson.dumps(chunk)) + b"\n"


# --------------------------------------------------------------------------------------------- a client's request, read


def name_of(body: Mapping[str, Any], field: str = "model") -> str:
    """The model's name without the tag that stands for its only version. Raises BadRequest."""
    return model_name({"model": body.get(field) or body.get("name")}).removesuffix(":latest")


def parse_chat(body: Mapping[str, Any]) -> ChatRequest:
    """The request of /api/chat. Raises BadRequest, naming the field."""
    found = items(body, "messages", 10_000)
    if not found:
        raise bad("messages", "must be a list with at least one message")
    names: list[str] = []
    messages = tuple(_message(m, f"messages[{i}]", names) for i, m in enumerate(found))
    return _request(body, messages, CHAT)


def parse_generate(body: Mapping[str, Any]) -> ChatRequest:
    """The request of /api/generate. Raises BadRequest, naming the field."""
    prompt = read(body, "prompt", str, "")
    if not prompt:
        raise bad("prompt", "must be a text")
    if read(body, "suffix", str):
        raise bad("suffix", "is not served")
    if read(body, "raw", bool, False):
        return _request(body, (), GENERATE, prompt)
    system = read(body, "system", str)
    head = (Message("system", (Text(system),)),) if system else ()
    return _request(body, (*head, Message("user", (Text(prompt), *_images(body, "")))), GENERATE)


def _request(body: Mapping[str, Any], messages: tuple[Message, ...], protocol: str, prompt: str | None = None) -> ChatRequest:
    options = read(body, "options", dict, {})
    specs = fields.tools(body)
    predict = integer(options, "num_predict", -1, -2, 1 << 31)
    stop = options.get("stop")
    said = {"repetition_penalty": options.get("repeat_penalty")} | {k: v for k, v in options.items() if v is not None}
    return ChatRequest(
        model=name_of(body),
        messages=messages,
        prompt=prompt,
        sampling=SamplingParams(
            temperature=number(options, "temperature", 0.8, 0, 2),
            top_p=number(options, "top_p", 0.9, 0, 1, above=True),
            top_k=integer(options, "top_k", 40, 0, 1 << 31),
            min_p=number(options, "min_p", 0.0, 0, 1),
            repetition_penalty=number(options, "repeat_penalty", 1.0, 0, 10, above=True),
            presence_penalty=number(options, "presence_penalty", 0.0, -2, 2),
            frequency_penalty=number(options, "frequency_penalty", 0.0, -2, 2),
            seed=integer(options, "seed", None, -(2**63), 2**63 - 1),
            max_tokens=predict if predict > 0 else None,
            stop=_stop(stop),
        ),
        tools=specs,
        tool_choice="auto" if specs else "none",
        response_format=_format(body),
        effort=_effort(body),
        stream=read(body, "stream", bool, True),
        include_usage=True,
        extras=fields.extras(body),
        protocol=protocol,
        body={**body, **said},  # a model's own wish holds for what options don't say
    )


def _stop(value: Any) -> tuple[str, ...]:
    found = [value] if isinstance(value, str) else items({"stop": value}, "stop", 64)
    if not all(isinstance(s, str) and 0 < len(s) <= 1024 for s in found):
        raise bad("options.stop", "must be a string, or a list of them")
    return tuple(found)


def _format(body: Mapping[str, Any]) -> ResponseFormat:
    found = body.get("format")
    if found in (None, ""):
        return ResponseFormat()
    if found == "json":
        return ResponseFormat("json_object")
    if not isinstance(found, dict):
        raise bad("format", "must be json or a JSON schema")
    return ResponseFormat("json_schema", schema=fields.schema(found, "format"))


def _effort(body: Mapping[str, Any]) -> Effort | None:
    found = body.get("think")
    if found is None or found is True:
        return None if found is None else "medium"
    if found is False:
        return "none"
    if not isinstance(found, str) or found not in EFFORTS:
        raise bad("think", "must be true, false, low, medium or high")
    return EFFORTS[found]


def _message(message: Any, at: str, names: list[str]) -> Message:
    """`names`: of the calls so far, whose answers name a tool and not a call."""
    if not isinstance(message, dict):
        raise bad(at, "must be an object")
    role, content = message.get("role"), read(message, "content", str, "", at=f"{at}.")
    if role == "tool":
        name = read(message, "tool_name", str, at=f"{at}.") or read(message, "name", str, "", at=f"{at}.")
        index = next((i for i in range(len(names) - 1, -1, -1) if names[i] == name), len(names) - 1)
        return Message("tool", (ToolResult(f"call_{max(index, 0)}", (Text(content),)),))
    if role not in ("system", "user", "assistant"):
        raise bad(f"{at}.role", "must be system, user, assistant or tool")
    blocks: list[Block] = []
    if role == "assistant" and (thought := read(message, "thinking", str, at=f"{at}.")):
        blocks.append(Reasoning(thought))
    blocks += [Text(content)] if content or not message.get("tool_calls") else []
    blocks += _images(message, f"{at}.")
    for i, call in enumerate(items(message, "tool_calls", 512)):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise bad(f"{at}.tool_calls[{i}]", "must be an object with a function that has a name")
        given = read(function, "arguments", dict, {}, at=f"{at}.tool_calls[{i}].function.")
        blocks.append(ToolCall(f"call_{len(names)}", function["name"], json.dumps(given, ensure_ascii=False)))
        names.append(function["name"])
    return Message(role, tuple(blocks))


def _images(table: Mapping[str, Any], at: str) -> list[Block]:
    found = items(table, "images", 64)
    if not all(isinstance(image, str) for image in found):
        raise bad(f"{at}images", "must be a list of base64 texts")
    return [fields.image(f"data:image/png;base64,{image}", f"{at}images") for image in found]


# --------------------------------------------------------------------------------------------- our answer, written


class StreamRenderer:
    """Events to lines. A call is told when it is whole."""

    def __init__(
        self, request: ChatRequest, id: str, created: int, model: str, clock: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self._is_chat, self._clock = request.protocol == CHAT, clock
        self._head = {"model": model, "created_at": datetime.fromtimestamp(created, UTC).isoformat().replace("+00:00", "Z")}
        self._began, self._first = clock(), 0
        self._usage = Usage(0, 0)
        self._calls: list[ToolCallDelta] = []
        self._ended = False
        self._plain = TextChunks(lambda index: self._said({"content": TextChunks.MARK}), line)

    def plain(self, event: Event) -> bytes | None:
        """The line of one that is mere text; None for any other: ask `events`."""
        if type(event) is not TextDelta or not self._first or self._calls:
            return None
        return self._plain.write(0, event.text)

    def events(self, event: Event) -> list[dict[str, Any]]:
        """The chunks that `event` brings."""
        if isinstance(event, TextDelta | ReasoningDelta | ToolCallDelta):
            self._first = self._first or self._clock()
        match event:
            case Usage():
                self._usage = event
                return []
            case TextDelta():
                return [*self._told(), *([self._said({"content": event.text})] if event.text else [])]
            case ReasoningDelta():
                return [self._said({"thinking": event.text})] if event.text else []
            case ToolCallDelta():
                told = self._told() if event.name and self._calls else []
                self._calls.append(event)
                return told
            case Finish() if not self._ended:
                self._ended = True
                return [*self._told(), self._last(event)]
            case Failure():
                return [render_failure(event)]
            case _:
                return []

    def _told(self) -> list[dict[str, Any]]:
        calls, self._calls = join_tool_calls(self._calls), []
        shown = [{"function": {"name": c.name, "arguments": arguments(c.arguments)}} for c in calls]
        return [self._said({"tool_calls": shown})] if shown and self._is_chat else []

    def _said(self, what: Mapping[str, Any]) -> dict[str, Any]:
        if self._is_chat:
            return {**self._head, "message": {"role": "assistant", "content": "", **what}, "done": False}
        return {**self._head, "response": what.get("content", ""), **_thinking(what), "done": False}

    def _last(self, finish: Finish) -> dict[str, Any]:
        now = self._clock()
        first = self._first or now
        times = {
            "total_duration": now - self._began,
            "load_duration": 0,
            "prompt_eval_count": self._usage.prompt_tokens,
            "prompt_eval_duration": first - self._began,
            "eval_count": self._usage.completion_tokens,
            "eval_duration": now - first,
        }
        reason = "length" if finish.reason == "length" else "stop"
        return {**self._said({}), "done": True, "done_reason": reason, **times}


def _thinking(what: Mapping[str, Any]) -> dict[str, Any]:
    return {"thinking": what["thinking"]} if "thinking" in what else {}


def render_response(request: ChatRequest, events: Sequence[Event], id: str, created: int, model: str) -> dict[str, Any]:
    """The whole answer as one object. `events` must hold no Failure."""
    text = "".join(e.text for e in events if isinstance(e, TextDelta))
    thought = "".join(e.text for e in events if isinstance(e, ReasoningDelta))
    calls = join_tool_calls([e for e in events if isinstance(e, ToolCallDelta)])
    renderer = StreamRenderer(request, id, created, model)
    last = [chunk for event in events for chunk in renderer.events(event)][-1]
    thinking = {"thinking": thought} if thought else {}
    if request.protocol == GENERATE:
        return {**last, "response": text, **thinking}
    shown = [{"function": {"name": c.name, "arguments": arguments(c.arguments)}} for c in calls]
    return {**last, "message": {"role": "assistant", "content": text, **thinking, **({"tool_calls": shown} if shown else {})}}


def render_error(error: BaseloadError) -> dict[str, Any]:
    """An error in Ollama's shape."""
    return {"error": error.message}


def render_failure(failure: Failure) -> dict[str, Any]:
    """A stream's bad end in the same shape."""
    return {"error": failure.message}
