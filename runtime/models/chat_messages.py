"""A ChatRequest in the shape that chat templates read: plain dicts, after transformers' convention."""

import json
from collections.abc import Iterator
from typing import Any

from ...wire.chat import ChatRequest, Image, Message, Reasoning, Text, ToolCall, ToolReference, ToolResult, ToolSpec
from ...wire.errors import BadRequest
from .tool_dialects import Dialect


def template_messages(request: ChatRequest, *, developer_known: bool, explained: Dialect | None = None) -> list[dict[str, Any]]:
    """The conversation. A developer's turn is a system turn to templates that don't know the role; `explained` is the dialect
    that the prompt itself must explain, for templates that know no tools. Raises BadRequest for images."""
    names = {b.id: b.name for m in request.messages for b in m.content if isinstance(b, ToolCall)}
    tools = {t.name: t for t in request.tools}
    turns = [turn for message in request.messages for turn in _turns(message, names, tools)]
    if not developer_known:
        turns = [turn | {"role": "system"} if turn["role"] == "developer" else turn for turn in turns]
    return turns if explained is None else _explained(turns, template_tools(request), explained)


def _explained(turns: list[dict[str, Any]], tools: list[dict[str, Any]] | None, dialect: Dialect) -> list[dict[str, Any]]:
    """Turns of plain text alone: how to call at the head, calls as the model would write them, results as a user's turn."""
    out: list[dict[str, Any]] = []
    for turn in turns:
        if turn["role"] == "tool":
            text = f"<tool_response>\n{turn['content']}\n</tool_response>"
            if out and out[-1].get("results"):
                out[-1]["content"] += "\n" + text
            else:
                out.append({"role": "user", "content": text, "results": True})
            continue
        calls = [c["function"] for c in turn.get("tool_calls", ())]
        written = [dialect.write(c["name"], _json(c["arguments"])) for c in calls] if dialect.write else []
        content = "\n".join([*([turn["content"]] if turn["content"] else []), *written])
        out.append({**{k: v for k, v in turn.items() if k != "tool_calls"}, "content": content})
    if tools is not None:
        rules = _RULES.format("\n".join(json.dumps(tool["function"]) for tool in tools), _example(dialect))
        if out and out[0]["role"] == "system":
            out[0]["content"] += "\n\n" + rules
        else:
            out.insert(0, {"role": "system", "content": rules})
    return [{k: v for k, v in turn.items() if k != "results"} for turn in out]


_RULES = """You can call these functions, described as JSON:
<tools>
{}
</tools>
To call one, answer with nothing but
{}
The result comes back between <tool_response> and </tool_response>; then answer the user in words."""


def _example(dialect: Dialect) -> str:
    return dialect.write("function-name", '{"argument-name": "value"}') if dialect.write else ""


def _json(arguments: Any) -> str:
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def template_tools(request: ChatRequest) -> list[dict[str, Any]] | None:
    """The tools at the prompt's head, or None where the model must not call any. Deferred ones stand where they are found, so
    that finding one leaves the head, and what is cached of it, as it was."""
    shown = [_tool(t) for t in request.tools if not t.deferred]
    return None if not shown or request.tool_choice == "none" else shown


def _tool(t: ToolSpec) -> dict[str, Any]:
    function = {"name": t.name, "description": t.description, "parameters": dict(t.parameters)}
    return {"type": "function", "function": function}


def _turns(message: Message, names: dict[str, str], tools: dict[str, ToolSpec]) -> Iterator[dict[str, Any]]:
    """One turn for each tool result, and one for the rest of the message."""
    for block in message.content:
        if isinstance(block, ToolResult):
            yield _tool_turn(block, names, tools)
    rest = [b for b in message.content if not isinstance(b, ToolResult)]
    if not rest and message.content:
        return
    calls = [_call(b) for b in rest if isinstance(b, ToolCall)]
    reasoning = "".join(b.text for b in rest if isinstance(b, Reasoning))
    texts = [_text(b) for b in rest if isinstance(b, Text | Image)]
    turn: dict[str, Any] = {"role": message.role, "content": "".join(texts)}  # never null: templates add to it
    if message.name:
        turn["name"] = message.name
    if calls:
        turn["tool_calls"] = calls
    if reasoning:  # `thinking` is what gpt-oss templates call it
        turn |= {"reasoning_content": reasoning, "thinking": reasoning}
    yield turn


def _tool_turn(result: ToolResult, names: dict[str, str], tools: dict[str, ToolSpec]) -> dict[str, Any]:
    texts = [_found(b, tools) if isinstance(b, ToolReference) else _text(b) for b in result.content]
    turn = {"role": "tool", "tool_call_id": result.call_id, "content": "".join(texts)}
    return turn | ({"name": names[result.call_id]} if result.call_id in names else {})


def _found(reference: ToolReference, tools: dict[str, ToolSpec]) -> str:
    """A deferred tool's definition, as the head has the others'."""
    tool = tools.get(reference.name)
    return json.dumps(_tool(tool)) + "\n" if tool else f"{reference.name} is not available.\n"


def _text(block: Text | Image) -> str:
    if isinstance(block, Image):
        raise BadRequest("This model reads text only: images are not supported.", param="messages")
    return block.text


def _call(call: ToolCall) -> dict[str, Any]:
    """Templates expect the arguments as an object; what the model wrote may not be one."""
    try:
        parsed = json.loads(call.arguments)
    except (ValueError, RecursionError):
        parsed = None
    arguments = parsed if isinstance(parsed, dict) else call.arguments
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}
