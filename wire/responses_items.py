"""The items of OpenAI's Responses API: what a client puts in, read and written, and its tools."""

import json
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from . import fields
from .chat import Block, Image, Message, Reasoning, Text, ToolCall, ToolReference, ToolResult, ToolSpec
from .fields import bad, items, read

ROLES = ("system", "developer", "user", "assistant")
INPUT = {"type": "object", "properties": {"input": {"type": "string"}}, "required": ["input"], "additionalProperties": False}

# What hosted tools did, and what else only its vendor can read: it is passed over.
FOREIGN = ("compaction", "compaction_summary", "additional_tools", "program", "context_compaction")
FOREIGN_ENDS = ("_call", "_call_output")

# --------------------------------------------------------------------------------------------- input, read


def parse_input(value: Any) -> tuple[Message, ...]:
    """`input`: a string or items; what an assistant did in a row is one message. Raises BadRequest."""
    if isinstance(value, str):
        return (Message("user", (Text(value),)),)
    if not isinstance(value, list) or not value:
        raise bad("input", "must be a string or a list of items")
    found = items({"input": value}, "input", 100_000)
    return joined(m for i, item in enumerate(found) if (m := _item(item, f"input[{i}]")) is not None)


def joined(messages: Iterable[Message]) -> tuple[Message, ...]:
    """Neighbouring messages of an assistant as one."""
    out: list[Message] = []
    for message in messages:
        if out and message.role == out[-1].role == "assistant":
            out[-1] = Message("assistant", (*out[-1].content, *message.content))
        else:
            out.append(message)
    return tuple(out)


def _item(item: Any, at: str) -> Message | None:
    """None for what only its vendor understands."""
    if not isinstance(item, dict):
        raise bad(at, "must be an object")
    match item.get("type", "message"):
        case "message":
            role = item.get("role")
            if role not in ROLES:
                raise bad(f"{at}.role", f"must be one of {', '.join(ROLES)}")
            return Message(role, _content(item.get("content"), f"{at}.content"))
        case "function_call":
            name = _needed(item, "name", at)
            space = read(item, "namespace", str, at=f"{at}.")
            call = ToolCall(_needed(item, "call_id", at), f"{space}__{name}" if space else name, _arguments(item, at))
            return Message("assistant", (call,))
        case "custom_tool_call":
            given = json.dumps({"input": read(item, "input", str, "", at=f"{at}.")}, ensure_ascii=False)
            return Message("assistant", (ToolCall(_needed(item, "call_id", at), _needed(item, "name", at), given),))
        case "function_call_output" | "custom_tool_call_output":
            output = item.get("output")
            found = _content(output, f"{at}.output") if output not in (None, []) else ()
            result = tuple(b for b in found if isinstance(b, Text | Image))
            return Message("tool", (ToolResult(_needed(item, "call_id", at), result),))
        case "reasoning":
            return _reasoning(item, at)
        case "item_reference":
            raise bad(at, "refers to an item that is not kept here; send the item itself")
        case kind if isinstance(kind, str) and (kind in FOREIGN or kind.startswith("mcp_") or kind.endswith(FOREIGN_ENDS)):
            return None
        case _:
            raise bad(f"{at}.type", "is none that is known here")


def _reasoning(item: Mapping[str, Any], at: str) -> Message | None:
    parts = [*items(item, "summary", 1000), *(read(item, "content", list, [], at=f"{at}."))]
    text = "".join(p["text"] for p in parts if isinstance(p, dict) and isinstance(p.get("text"), str))
    signature = read(item, "encrypted_content", str, at=f"{at}.")
    return Message("assistant", (Reasoning(text, signature),)) if text or signature else None


def _arguments(item: Mapping[str, Any], at: str) -> str:
    return read(item, "arguments", str, "{}", at=f"{at}.")


def _needed(item: Mapping[str, Any], name: str, at: str) -> str:
    found = read(item, name, str, at=f"{at}.")
    if not found:
        raise bad(f"{at}.{name}", "is missing")
    return found


def _content(content: Any, at: str) -> tuple[Block, ...]:
    if isinstance(content, str):
        return (Text(content),)
    if not isinstance(content, list):
        raise bad(at, "must be a string or a list of parts")
    return tuple(_part(part, f"{at}[{i}]") for i, part in enumerate(content))


def _part(part: Any, at: str) -> Block:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in ("input_text", "output_text", "text", "refusal"):
        text = read(part, "refusal" if kind == "refusal" else "text", str, at=f"{at}.")
        if text is None:
            raise bad(f"{at}.text", "is missing")
        return Text(text)
    if kind == "input_image":
        return fields.image(part.get("image_url"), f"{at}.image_url")
    raise bad(at, "must be an object of type input_text, output_text, refusal or input_image")


# --------------------------------------------------------------------------------------------- input, written


def render_input(messages: Sequence[Message], tools: Sequence[ToolSpec]) -> list[dict[str, Any]]:
    """The conversation as items."""
    known = {tool.name: tool for tool in tools}
    freeform = {b.id for m in messages for b in m.content if isinstance(b, ToolCall) and _is_freeform(known.get(b.name))}
    out: list[dict[str, Any]] = []
    for message in messages:
        said = [_part_object(b, message.role) for b in message.content if isinstance(b, Text | Image)]
        others = [b for b in message.content if not isinstance(b, Text | Image)]
        # A signature of another protocol bears its mark and a colon.
        out += [_reasoning_item(b) for b in others if isinstance(b, Reasoning) and b.signature and ":" not in b.signature]
        if said or not others:
            out.append({"type": "message", "role": message.role, "content": said})
        out += [call_item(b, known.get(b.name)) for b in others if isinstance(b, ToolCall)]
        out += [_output_item(b, b.call_id in freeform) for b in others if isinstance(b, ToolResult)]
    return out


def _is_freeform(tool: ToolSpec | None) -> bool:
    return tool is not None and tool.freeform


def _reasoning_item(block: Reasoning) -> dict[str, Any]:
    summary = [{"type": "summary_text", "text": block.text}] if block.text else []
    return {"type": "reasoning", "summary": summary, "encrypted_content": block.signature}


def _part_object(block: Text | Image, role: str) -> dict[str, Any]:
    if isinstance(block, Text):
        return {"type": "output_text" if role == "assistant" else "input_text", "text": block.text}
    return {"type": "input_image", "image_url": f"data:{block.media_type};base64,{b64encode(block.data).decode()}"}


def _output_item(result: ToolResult, is_freeform: bool) -> dict[str, Any]:
    parts = [Text(f"The tool {b.name} is available now.") if isinstance(b, ToolReference) else b for b in result.content]
    plain = all(isinstance(part, Text) for part in parts)
    text = "".join(part.text for part in parts if isinstance(part, Text))
    output = text if plain else [_part_object(part, "user") for part in parts]
    kind = "custom_tool_call_output" if is_freeform else "function_call_output"
    return {"type": kind, "call_id": result.call_id, "output": output}


def call_item(call: ToolCall, tool: ToolSpec | None) -> dict[str, Any]:
    """A call as an item, without id and status."""
    if tool is not None and tool.freeform:
        return {"type": "custom_tool_call", "call_id": call.id, "name": call.name, "input": freeform_input(call.arguments)}
    space = tool.namespace if tool else ""
    name = call.name.removeprefix(f"{space}__") if space else call.name
    within = {"namespace": space} if space else {}
    return {"type": "function_call", "call_id": call.id, "name": name, **within, "arguments": call.arguments}


def freeform_input(arguments: str) -> str:
    """The text that a freeform tool was called with."""
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    given = value.get("input") if isinstance(value, dict) else None
    return given if isinstance(given, str) else arguments


# --------------------------------------------------------------------------------------------- tools


def parse_tools(body: Mapping[str, Any]) -> tuple[ToolSpec, ...]:
    """`tools`, namespaces flattened; those that the vendor runs itself do not exist here. Raises BadRequest."""
    found: list[ToolSpec] = []
    for i, tool in enumerate(items(body, "tools", 512)):
        at = f"tools[{i}]"
        if not isinstance(tool, dict) or not isinstance(tool.get("type"), str):
            raise bad(at, "must be an object with a type")
        if tool["type"] == "namespace":
            space = fields.tool_name(tool, f"{at}.")
            inner = items(tool, "tools", 512)
            found += [spec for j, t in enumerate(inner) if (spec := _tool(t, f"{at}.tools[{j}]", space)) is not None]
        elif (spec := _tool(tool, at, "")) is not None:
            found.append(spec)
    return tuple(found)


def _tool(tool: Any, at: str, space: str) -> ToolSpec | None:
    if not isinstance(tool, dict):
        raise bad(at, "must be an object")
    at += "."
    if tool.get("type") not in ("function", "custom"):
        return None
    name, description = fields.tool_name(tool, at), fields.description(tool, at)
    deferred = read(tool, "defer_loading", bool, False, at=at)
    if tool["type"] == "custom":
        return ToolSpec(name, description, INPUT, freeform=True, deferred=deferred)
    schema = fields.schema(read(tool, "parameters", dict, {}, at=at), f"{at}parameters")
    full = f"{space}__{name}" if space else name
    return ToolSpec(full, description, schema, bool(read(tool, "strict", bool, False, at=at)), space, deferred=deferred)


def parse_tool_choice(body: Mapping[str, Any], specs: Sequence[ToolSpec]) -> str | Mapping[str, Any]:
    """auto, none, required or one tool. A hosted tool cannot be had: the model chooses. Raises BadRequest."""
    found = body.get("tool_choice")
    if found is None:
        return "auto" if specs else "none"
    if isinstance(found, dict) and found.get("type") == "allowed_tools":
        found = found.get("mode", "auto")
    if isinstance(found, str):
        if found not in ("auto", "none", "required"):
            raise bad("tool_choice", "must be auto, none, required or a tool")
        if found == "required" and not specs:
            raise bad("tool_choice", "is required, but there are no tools")
        return found
    if not isinstance(found, dict) or not isinstance(found.get("type"), str):
        raise bad("tool_choice", "must be auto, none, required or a tool")
    if found["type"] not in ("function", "custom"):
        return "auto" if specs else "none"
    name = found.get("name")
    match = next((s.name for s in specs if name in (s.name, s.name.removeprefix(f"{s.namespace}__"))), None)
    if match is None:
        raise bad("tool_choice", "names a tool that is not among the tools")
    return {"name": match}


def render_tools(tools: Sequence[ToolSpec]) -> list[dict[str, Any]]:
    """Tools as this protocol has them; a namespace's function keeps its long name."""
    out: list[dict[str, Any]] = []
    for tool in tools:
        head = {"name": tool.name, "description": tool.description}
        if tool.freeform:
            out.append({"type": "custom", **head})
        else:
            out.append({"type": "function", **head, "parameters": dict(tool.parameters), "strict": tool.strict})
    return out
