"""The messages of OpenAI's chat, read and written. Images come in `data:` URLs only: no request can make us fetch one."""

from base64 import b64encode
from collections.abc import Sequence
from typing import Any

from . import fields
from .chat import Block, Image, Message, Reasoning, Text, ToolCall, ToolReference, ToolResult
from .fields import bad, items, read

ROLES = ("system", "developer", "user", "assistant", "tool")


def parse_message(message: Any, at: str) -> Message:
    """The message in a JSON value; `at` is its path, for errors. Raises BadRequest."""
    if not isinstance(message, dict):
        raise bad(at, "must be an object")
    role = message.get("role")
    if role not in ROLES:
        raise bad(f"{at}.role", f"must be one of {', '.join(ROLES)}")
    name = read(message, "name", str, at=f"{at}.")
    content = message.get("content")
    if role == "tool":
        call_id = read(message, "tool_call_id", str, at=f"{at}.")
        if not call_id:
            raise bad(f"{at}.tool_call_id", "is missing")
        result = tuple(b for b in _content(content, f"{at}.content") if isinstance(b, Text | Image))
        return Message("tool", (ToolResult(call_id, result),), name)
    if role != "assistant":
        return Message(role, _content(content, f"{at}.content"), name)
    calls = tuple(_tool_call(c, f"{at}.tool_calls[{i}]") for i, c in enumerate(items(message, "tool_calls", 512)))
    said = () if content is None and (calls or message.get("refusal")) else _content(content, f"{at}.content")
    thought = read(message, "reasoning_content", str, at=f"{at}.") or read(message, "reasoning", str, at=f"{at}.")
    refusal = read(message, "refusal", str, at=f"{at}.")
    return Message("assistant", (*((Reasoning(thought),) if thought else ()), *said, *_texts(refusal), *calls), name)


def _texts(text: str | None) -> tuple[Text, ...]:
    return (Text(text),) if text else ()


def _content(content: Any, at: str) -> tuple[Block, ...]:
    if isinstance(content, str):
        return (Text(content),)
    if not isinstance(content, list) or not content:
        raise bad(at, "must be a string or a list of parts")
    return tuple(_part(part, f"{at}[{i}]") for i, part in enumerate(content))


def _part(part: Any, at: str) -> Block:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in ("text", "refusal"):
        text = read(part, kind, str, at=f"{at}.")
        if text is None:
            raise bad(f"{at}.{kind}", "is missing")
        return Text(text)
    if kind == "image_url":
        url = part.get("image_url")
        return fields.image(url.get("url") if isinstance(url, dict) else url, f"{at}.image_url")
    raise bad(at, "must be an object of type text, refusal or image_url")


def _tool_call(call: Any, at: str) -> ToolCall:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or call.get("type", "function") != "function":
        raise bad(at, "must be an object of type function")
    found = (call.get("id"), function.get("name"), function.get("arguments", "{}"))
    if not all(isinstance(x, str) for x in found) or not found[0] or not found[1]:
        raise bad(at, "must have an id, a function name and arguments, all strings")
    return ToolCall(*found)  # pyright: ignore[reportArgumentType]


def render_message(message: Message) -> dict[str, Any]:
    out: dict[str, Any] = {"role": message.role, **({"name": message.name} if message.name else {})}
    results = [b for b in message.content if isinstance(b, ToolResult)]
    if results:
        return {**out, "tool_call_id": results[0].call_id, "content": _content_object(results[0].content)}
    calls = [render_call(b) for b in message.content if isinstance(b, ToolCall)]
    said = [b for b in message.content if isinstance(b, Text | Image)]
    out["content"] = _content_object(said) if said or not calls else None
    thought = "".join(b.text for b in message.content if isinstance(b, Reasoning))
    return out | ({"tool_calls": calls} if calls else {}) | ({"reasoning_content": thought} if thought else {})


def _content_object(blocks: Sequence[Text | Image | ToolReference]) -> str | list[dict[str, Any]]:
    if len(blocks) < 2 and all(isinstance(b, Text) for b in blocks):
        return "".join(b.text for b in blocks if isinstance(b, Text))
    return [_part_object(b) for b in blocks]


def _part_object(block: Text | Image | ToolReference) -> dict[str, Any]:
    if isinstance(block, ToolReference):
        return {"type": "text", "text": f"The tool {block.name} is available now."}
    if isinstance(block, Text):
        return {"type": "text", "text": block.text}
    url = f"data:{block.media_type};base64,{b64encode(block.data).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def render_call(call: ToolCall) -> dict[str, Any]:
    """A tool call as a JSON object."""
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
