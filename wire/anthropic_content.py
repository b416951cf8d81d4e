"""The messages of Anthropic's API, read and written: text, images, thinking, tool calls and their results."""

import json
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from . import fields
from .chat import Block, Image, Message, Reasoning, Text, ToolCall, ToolReference, ToolResult
from .errors import BadRequest
from .fields import bad, read
from .json_body import loads

BILLING = "x-anthropic-billing-header:"  # changes with each conversation and stands first: no prefix would be shared

# What only its vendor can read: it is passed over, and goes back to that vendor with the rest of the body.
FOREIGN = ("redacted_thinking", "search_result", "container_upload", "compaction", "fallback")
FOREIGN_ENDS = ("_tool_use", "_tool_result")

# --------------------------------------------------------------------------------------------- read


def parse_system(value: Any) -> tuple[Text, ...]:
    """`system`: a string or text blocks. Raises BadRequest."""
    if value is None:
        return ()
    blocks = parse_content(value, "system")
    if not all(isinstance(b, Text) for b in blocks):
        raise bad("system", "must be text")
    return tuple(b for b in blocks if isinstance(b, Text) and not b.text.startswith(BILLING))


def parse_message(message: Any, at: str) -> list[Message]:
    """One message; a user's tool results become messages of role `tool` before the rest of it. Raises BadRequest."""
    if not isinstance(message, dict):
        raise bad(at, "must be an object")
    role = message.get("role")
    if role not in ("user", "assistant", "system"):
        raise bad(f"{at}.role", "must be user or assistant")
    content = parse_content(message.get("content"), f"{at}.content")
    if role == "system":
        # Many models know a system turn at the head only.
        text = "".join(b.text for b in content if isinstance(b, Text))
        return [Message("user", (Text(f"<system-reminder>\n{text}\n</system-reminder>\n"),))]
    results = [Message("tool", (b,)) for b in content if isinstance(b, ToolResult)]
    rest = tuple(b for b in content if not isinstance(b, ToolResult))
    return [*results, *([Message(role, rest)] if rest or not results else [])]


def parse_content(content: Any, at: str) -> tuple[Block, ...]:
    """A string or a list of blocks: a text means the same in either. Raises BadRequest."""
    if isinstance(content, str):
        return (Text(content),) if content else ()
    if not isinstance(content, list):
        raise bad(at, "must be a string or a list of blocks")
    blocks: list[Block] = []
    for i, value in enumerate(content):
        block = _block(value, f"{at}[{i}]")
        if block is not None:
            blocks.append(block)
    return tuple(blocks)


def _block(value: Any, at: str) -> Block | None:
    kind = value.get("type") if isinstance(value, dict) else None
    if not isinstance(kind, str):
        raise bad(at, "must be an object with a type")
    match kind:
        case "text":
            return Text(_needed(value, "text", at))
        case "image":
            return _image(value, at)
        case "document":
            return _document(value, at)
        case "thinking":
            return Reasoning(read(value, "thinking", str, "", at=f"{at}."), read(value, "signature", str, at=f"{at}."))
        case "tool_use":
            given = read(value, "input", dict, {}, at=f"{at}.")
            return ToolCall(_needed(value, "id", at), _needed(value, "name", at), json.dumps(given, ensure_ascii=False))
        case "tool_result":
            return _result(value, at)
        case "tool_reference":
            return None  # in a result only, where _result reads it
        case _ if kind in FOREIGN or kind.endswith(FOREIGN_ENDS):
            return None
        case _:
            raise bad(f"{at}.type", "is none that is known here")


def _needed(value: Mapping[str, Any], name: str, at: str) -> str:
    found = read(value, name, str, at=f"{at}.")
    if found is None or (name != "text" and not found):
        raise bad(f"{at}.{name}", "is missing")
    return found


def _image(value: Mapping[str, Any], at: str) -> Image:
    source = read(value, "source", dict, {}, at=f"{at}.")
    if source.get("type") != "base64":
        raise bad(f"{at}.source", "must be of type base64; addresses are not fetched")
    media, data = read(source, "media_type", str, "", at=f"{at}.source."), read(source, "data", str, "", at=f"{at}.source.")
    return fields.image(f"data:{media};base64,{data}", f"{at}.source")


def _document(value: Mapping[str, Any], at: str) -> Text:
    source = read(value, "source", dict, {}, at=f"{at}.")
    if source.get("type") != "text":
        raise bad(f"{at}.source", "must be of type text: other documents are not read")
    title = read(value, "title", str, at=f"{at}.")
    return Text((f"{title}\n\n" if title else "") + read(source, "data", str, "", at=f"{at}.source."))


def _result(value: Mapping[str, Any], at: str) -> ToolResult:
    call_id, content = _needed(value, "tool_use_id", at), value.get("content")
    is_error = read(value, "is_error", bool, False, at=f"{at}.")
    found: list[Text | Image | ToolReference] = []
    if isinstance(content, str):
        found = [Text(content)]
    elif content is not None and not isinstance(content, list):
        raise bad(f"{at}.content", "must be a string or a list of blocks")
    for i, item in enumerate(content if isinstance(content, list) else ()):
        where = f"{at}.content[{i}]"
        if isinstance(item, dict) and item.get("type") == "tool_reference":
            found.append(ToolReference(_needed(item, "tool_name", where)))
        else:
            block = _block(item, where)
            found += [block] if isinstance(block, Text | Image) else []
    return ToolResult(call_id, tuple(found), is_error)


# --------------------------------------------------------------------------------------------- written


def render_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The conversation without its system turns, in turns of user and assistant."""
    out: list[dict[str, Any]] = []
    for message in messages:
        role = "assistant" if message.role == "assistant" else "user"
        blocks = list(render_blocks(message.content))
        if message.role in ("system", "developer"):
            blocks = [{"type": "text", "text": f"<system-reminder>\n{message.text}\n</system-reminder>\n"}]
        if not blocks:
            continue
        if out and out[-1]["role"] == role:
            out[-1]["content"] += blocks
        else:
            out.append({"role": role, "content": blocks})
    return out


def render_blocks(blocks: Iterable[Block]) -> Iterable[dict[str, Any]]:
    """Blocks as Anthropic writes them; an empty text it would refuse, and reasoning that nobody signed too."""
    for block in blocks:
        match block:
            case Text():
                if block.text:
                    yield {"type": "text", "text": block.text}
            case Image():
                source = {"type": "base64", "media_type": block.media_type, "data": b64encode(block.data).decode()}
                yield {"type": "image", "source": source}
            case Reasoning():
                # One of another protocol bears its mark and a colon, which this one's own, being base64, never has.
                if block.signature and ":" not in block.signature:
                    yield {"type": "thinking", "thinking": block.text, "signature": block.signature}
            case ToolCall():
                yield {"type": "tool_use", "id": block.id, "name": block.name, "input": arguments(block.arguments)}
            case ToolResult():
                content = [part for b in block.content for part in _result_parts(b)]
                error = {"is_error": True} if block.is_error else {}
                yield {"type": "tool_result", "tool_use_id": block.call_id, "content": content, **error}


def _result_parts(block: Text | Image | ToolReference) -> Iterable[dict[str, Any]]:
    if isinstance(block, ToolReference):
        return ({"type": "tool_reference", "tool_name": block.name},)
    return render_blocks((block,))


def arguments(text: str) -> dict[str, Any]:
    """A call's arguments as an object; what a model wrote may not be one."""
    try:
        value = loads((text or "{}").encode())
    except (ValueError, BadRequest):
        value = None
    return value if isinstance(value, dict) else {"input": text}
