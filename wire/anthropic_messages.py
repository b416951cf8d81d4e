"""Anthropic's messages, both directions, pure: https://docs.anthropic.com/en/api/messages.

We serve it: `parse_request`, `parse_count_request`, `render_response`, `StreamRenderer`. We call it: `render_request`,
`parse_response`, `StreamParser`.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from . import fields
from .anthropic_content import parse_message, parse_system, render_blocks, render_messages
from .anthropic_stream import StreamParser, StreamRenderer, error_type, parse_response, render_response, status_of
from .chat import (
    ChatRequest,
    Effort,
    Failure,
    Message,
    ResponseFormat,
    SamplingParams,
    ToolSpec,
)
from .errors import BadRequest, BaseloadError, overflow
from .fields import bad, integer, items, number, read
from .openai_chat import model_name

__all__ = ["PROTOCOL", "StreamParser", "StreamRenderer", "parse_response", "render_response"]

PROTOCOL = "anthropic_messages"
VERSION = "2023-06-01"
PING = b'event: ping\ndata: {"type":"ping"}\n\n'
MAX_MESSAGES = 100_000
DEFAULT_MAX_TOKENS = 32_000  # the field is a must; what today's models all can write
EFFORTS: dict[str, Effort] = {"low": "low", "medium": "medium", "high": "high", "xhigh": "max", "max": "max"}

# --------------------------------------------------------------------------------------------- a client's request, read


class ThreadUnsupported(BadRequest):
    """A request that leaves out what an earlier one said. Its client then sends everything."""

    default_code = "thread_unsupported_request"


def parse_request(body: Mapping[str, Any]) -> ChatRequest:
    """The request in a JSON object. Raises BadRequest, naming the field and the reason."""
    max_tokens = integer(body, "max_tokens", None, 1, 1 << 31)
    if max_tokens is None:
        raise bad("max_tokens", "is missing")
    return _parse(body, max_tokens)


def parse_count_request(body: Mapping[str, Any]) -> ChatRequest:
    """The request of count_tokens, which has no max_tokens. Raises BadRequest."""
    return _parse(body, None)


def _parse(body: Mapping[str, Any], max_tokens: int | None) -> ChatRequest:
    if body.get("thread") is not None:
        raise ThreadUnsupported("Threads are not kept here: send the whole conversation.", param="thread")
    found = items(body, "messages", MAX_MESSAGES)
    if not found:
        raise bad("messages", "must be a list with at least one message")
    system = parse_system(body.get("system"))
    turns = [m for i, value in enumerate(found) for m in parse_message(value, f"messages[{i}]")]
    specs = tuple(t for i, value in enumerate(items(body, "tools", 512)) if (t := _tool(value, f"tools[{i}]")))
    choice, parallel = _tool_choice(body, specs)
    metadata = read(body, "metadata", dict, {})
    return ChatRequest(
        model=model_name(body),
        messages=(*((Message("system", system),) if system else ()), *turns),
        sampling=SamplingParams(
            temperature=number(body, "temperature", 1.0, 0, 1),
            top_p=number(body, "top_p", 1.0, 0, 1, above=True),
            top_k=integer(body, "top_k", 0, 0, 1 << 31),
            max_tokens=max_tokens,
            stop=_stops(body),
        ),
        tools=specs,
        tool_choice=choice,
        parallel_tool_calls=parallel,
        response_format=_format(body),
        effort=_effort(body),
        stream=read(body, "stream", bool, False),
        include_usage=True,
        user=read(metadata, "user_id", str, at="metadata."),
        extras=fields.extras(body),
        protocol=PROTOCOL,
        body=body,
    )


def _stops(body: Mapping[str, Any]) -> tuple[str, ...]:
    found = items(body, "stop_sequences", 64)
    if not all(isinstance(s, str) and 0 < len(s) <= 1024 for s in found):
        raise bad("stop_sequences", "must be a list of strings, each of 1 to 1024 characters")
    return tuple(found)


def _tool(tool: Any, at: str) -> ToolSpec | None:
    """None for a tool that the vendor runs itself: it does not exist here."""
    if not isinstance(tool, dict):
        raise bad(at, "must be an object")
    if read(tool, "type", str, "custom", at=f"{at}.") != "custom" and "input_schema" not in tool:
        return None
    at += "."
    name, description = fields.tool_name(tool, at), fields.description(tool, at)
    schema = fields.schema(read(tool, "input_schema", dict, {}, at=at), f"{at}input_schema")
    return ToolSpec(name, description, schema, deferred=read(tool, "defer_loading", bool, False, at=at))


def _tool_choice(body: Mapping[str, Any], specs: Sequence[ToolSpec]) -> tuple[str | Mapping[str, Any], bool]:
    """The choice, and whether several calls may come at once."""
    found = read(body, "tool_choice", dict)
    if found is None:
        return ("auto" if specs else "none"), True
    parallel = not read(found, "disable_parallel_tool_use", bool, False, at="tool_choice.")
    kind = read(found, "type", str, at="tool_choice.")
    if kind in ("auto", "none"):
        return (kind if specs else "none"), parallel
    if kind == "any":
        if not specs:
            raise bad("tool_choice", "asks for a tool, but there are none")
        return "required", parallel
    if kind != "tool":
        raise bad("tool_choice.type", "must be auto, any, tool or none")
    name = read(found, "name", str, at="tool_choice.")
    if name not in {spec.name for spec in specs}:
        raise bad("tool_choice.name", "is not among the tools")
    return {"name": name}, parallel


def _format(body: Mapping[str, Any]) -> ResponseFormat:
    config = read(body, "output_config", dict, {})
    found = read(config, "format", dict, read(body, "output_format", dict), at="output_config.")
    if found is None:
        return ResponseFormat()
    if found.get("type") != "json_schema":
        raise bad("output_config.format.type", "must be json_schema")
    schema = read(found, "schema", dict, at="output_config.format.")
    if schema is None:
        raise bad("output_config.format.schema", "is missing")
    return ResponseFormat("json_schema", schema=fields.schema(schema, "output_config.format.schema"), strict=True)


def _effort(body: Mapping[str, Any]) -> Effort | None:
    effort = read(read(body, "output_config", dict, {}), "effort", str, at="output_config.")
    thinking = read(body, "thinking", dict, {})
    kind = read(thinking, "type", str, at="thinking.")
    if kind not in (None, "enabled", "disabled", "adaptive"):
        raise bad("thinking.type", "must be enabled, disabled or adaptive")
    integer(thinking, "budget_tokens", None, 1, 1 << 31)
    if kind == "disabled":
        return "none"
    if effort in EFFORTS:
        return EFFORTS[effort]
    return "medium" if kind == "enabled" else None


# --------------------------------------------------------------------------------------------- our answer, written


def render_count(n: int) -> dict[str, Any]:
    """The answer of count_tokens."""
    return {"input_tokens": n}


def render_error(error: BaseloadError) -> dict[str, Any]:
    """An error in Anthropic's shape."""
    details = {"error_code": error.code, "unsupported": ["thread"]} if isinstance(error, ThreadUnsupported) else None
    return _error(status_of(error), error.message, error.code, details)


def render_failure(failure: Failure) -> dict[str, Any]:
    """A stream's bad end in the same shape."""
    return _error(status_of(failure), failure.message, failure.code, None)


def _error(status: int, message: str, code: str | None, details: Mapping[str, Any] | None) -> dict[str, Any]:
    if numbers := overflow(message, code):
        # Clients know an overflow by these words alone.
        message = f"prompt is too long: {numbers[0]} tokens > {numbers[1]} maximum"
    error = {"type": error_type(status), "message": message, **({"details": details} if details else {})}
    return {"type": "error", "error": error}


# --------------------------------------------------------------------------------------------- our request, written


def path(model: str) -> str:
    """Where a server of this protocol is asked, after its base URL."""
    return "/v1/messages"


def headers(api_key: str | None) -> dict[str, str]:
    """What a call carries."""
    return {"anthropic-version": VERSION, **({"x-api-key": api_key} if api_key else {})}


def render_request(request: ChatRequest, model: str, drop: Sequence[str] = ()) -> dict[str, Any]:
    """The request as a body for a server of this protocol, streaming.

    A request that came in by this protocol keeps every field it came with but Baseload's own and those of `drop`; messages that
    were added, as an escalation does, follow its own. Any other carries its neutral meaning.
    """
    if request.protocol != PROTOCOL:
        body = _meaning(request)
    else:
        body = dict(request.body)
        own = _parse(body, 1).messages
        if request.messages[: len(own)] == own:
            body["messages"] = [*body["messages"], *render_messages(request.messages[len(own) :])]
        else:
            body |= _conversation(request)
    for name in ("baseload", *drop):
        body.pop(name, None)
    return body | {"model": model, "stream": True, "max_tokens": body.get("max_tokens") or DEFAULT_MAX_TOKENS}


def _conversation(request: ChatRequest) -> dict[str, Any]:
    head = 0
    while head < len(request.messages) and request.messages[head].role in ("system", "developer"):
        head += 1
    system = [block for m in request.messages[:head] for block in render_blocks(m.content)]
    return {"messages": render_messages(request.messages[head:]), **({"system": system} if system else {})}


def _meaning(request: ChatRequest) -> dict[str, Any]:
    p, body = request.sampling, _conversation(request)
    if p.n > 1:
        raise bad("n", "must be 1 for this supplier, whose protocol has one answer")
    optional = {
        "max_tokens": p.max_tokens,
        # Newer models take the one or the other, and neither beside thinking: what says nothing is left out.
        "temperature": min(p.temperature, 1.0) if p.temperature != 1 else None,
        "top_p": p.top_p if p.top_p != 1 and p.temperature == 1 else None,
        "top_k": p.top_k or None,
        "stop_sequences": [s for s in p.stop if s.strip()] or None,
        "metadata": {"user_id": request.user} if request.user else None,
    }
    body |= {name: value for name, value in optional.items() if value is not None}
    if request.tools:  # with "none" too: calls in the history need them
        body["tools"] = [
            {"name": t.name, "description": t.description, "input_schema": {"type": "object", **t.parameters}}
            for t in request.tools
        ]
        kinds = {"auto": "auto", "required": "any", "none": "none"}
        named = isinstance(request.tool_choice, Mapping)
        choice = {"type": "tool", **request.tool_choice} if named else {"type": kinds[request.tool_choice]}  # pyright: ignore
        serial = not request.parallel_tool_calls and request.tool_choice != "none"
        body["tool_choice"] = choice | ({"disable_parallel_tool_use": True} if serial else {})
    output: dict[str, Any] = {}
    if request.response_format.kind == "json_schema":
        output["format"] = {"type": "json_schema", "schema": dict(request.response_format.schema or {})}
    if request.effort not in (None, "none"):  # without the field a model doesn't think
        output["effort"] = "low" if request.effort == "minimal" else request.effort
    if output:
        body["output_config"] = output
    return json.loads(json.dumps(body))
