"""A ChatRequest as plain JSON and back, for whoever keeps one: `decode(encode(x))` asks the same of a model as x did.

Of the body that it came from only what has a say in a local answer is kept: whether the client named a sampling parameter, and
what it handed to the chat template.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from .chat import (
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

BLOCKS: dict[str, type[Any]] = {
    "text": Text,
    "image": Image,
    "reasoning": Reasoning,
    "tool_call": ToolCall,
    "tool_result": ToolResult,
    "tool_reference": ToolReference,
}
NAMES = {kind: name for name, kind in BLOCKS.items()}
OF_BODY = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "chat_template_kwargs")
PLAIN = ("model", "tool_choice", "parallel_tool_calls", "effort", "stream", "echo", "user", "protocol")


def encode(request: ChatRequest) -> dict[str, Any]:
    """JSON that `decode` reads; images are in base64."""
    return {
        **{name: getattr(request, name) for name in PLAIN},
        "messages": [{"role": m.role, "name": m.name, "content": [_block(b) for b in m.content]} for m in request.messages],
        "prompt": request.prompt,
        "sampling": asdict(request.sampling),
        "tools": [asdict(tool) for tool in request.tools],
        "response_format": asdict(request.response_format),
        "extras": asdict(request.extras),
        "body": {name: request.body[name] for name in OF_BODY if name in request.body},
    }


def decode(kept: Mapping[str, Any]) -> ChatRequest:
    """Raises ValueError for what `encode` did not write."""
    try:
        return ChatRequest(
            **{name: kept[name] for name in PLAIN},
            messages=tuple(Message(m["role"], tuple(map(_read, m["content"])), m["name"]) for m in kept["messages"]),
            prompt=_frozen(kept["prompt"]),
            sampling=SamplingParams(**_tuples(SamplingParams, kept["sampling"])),
            tools=tuple(ToolSpec(**tool) for tool in kept["tools"]),
            response_format=ResponseFormat(**_tuples(ResponseFormat, kept["response_format"])),
            extras=Extras(**_tuples(Extras, kept["extras"])),
            body=dict(kept["body"]),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"this is no request as it is kept: {type(error).__name__} {error}") from error


def _block(block: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"type": NAMES[type(block)]}
    for field in fields(block):
        value = getattr(block, field.name)
        if isinstance(value, bytes):
            value = base64.b64encode(value).decode("ascii")
        found[field.name] = [_block(b) for b in value] if isinstance(value, tuple) else value
    return found


def _read(kept: Mapping[str, Any]) -> Any:
    kind = BLOCKS[kept["type"]]
    values = {name: value for name, value in kept.items() if name != "type"}
    if kind is Image:
        values["data"] = base64.b64decode(values["data"])
    if kind is ToolResult:
        values["content"] = tuple(map(_read, values["content"]))
    return kind(**values)


def _tuples(kind: type[Any], kept: Mapping[str, Any]) -> dict[str, Any]:
    """JSON knows lists alone; where the dataclass has a tuple, it gets one."""
    tuples = {f.name for f in fields(kind) if str(f.type).startswith("tuple")}
    return {name: _frozen(value) if name in tuples else value for name, value in kept.items()}


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value
