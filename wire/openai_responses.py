"""OpenAI's Responses API, both directions, pure: https://platform.openai.com/docs/api-reference/responses.

We serve it: `parse_request`, `render_response`, `StreamRenderer`. We call it: `render_request`, `parse_response`,
`StreamParser`.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from . import fields
from .chat import (
    ChatRequest,
    Event,
    Finish,
    Message,
    ReasoningDelta,
    ResponseFormat,
    SamplingParams,
    Text,
    TextDelta,
    ToolCallDelta,
)
from .fields import bad, integer, number, read
from .openai_chat import DONE, headers, model_name, parse_usage, render_error, render_failure
from .responses_items import joined, parse_input, parse_tool_choice, parse_tools, render_input, render_tools
from .responses_stream import StreamRenderer, render_whole
from .upstream import ChunkParser, text_of

__all__ = [
    "PING", "PROTOCOL", "StreamParser", "StreamRenderer", "headers", "parse_request", "parse_response", "path", "render_error",
    "render_failure", "render_request", "render_response",
]  # fmt: skip

PROTOCOL = "openai_responses"
PING = b'event: ping\ndata: {"type":"ping"}\n\n'  # a comment would not keep Codex waiting
render_response = render_whole

# --------------------------------------------------------------------------------------------- a client's request, read


def parse_request(body: Mapping[str, Any], earlier: Sequence[Message] = ()) -> ChatRequest:
    """The request in a JSON object, after the messages of an `earlier` response. Raises BadRequest, naming the field."""
    if read(body, "background", bool, False):
        raise bad("background", "is not served: answers are made while their client waits")
    if body.get("conversation") is not None:
        raise bad("conversation", "names what is not kept here; go on by previous_response_id, or send the whole input")
    _check_metadata(body)
    specs = parse_tools(body)
    instructions = read(body, "instructions", str)
    head = (Message("developer", (Text(instructions),)),) if instructions else ()
    reasoning = read(body, "reasoning", dict, {})
    for name, kind in {"store": bool, "include": list, "prompt_cache_key": str, "truncation": str, "service_tier": str}.items():
        read(body, name, kind)
    return ChatRequest(
        model=model_name(body),
        messages=joined((*head, *earlier, *parse_input(body.get("input")))),
        sampling=SamplingParams(
            temperature=number(body, "temperature", 1.0, 0, 2),
            top_p=number(body, "top_p", 1.0, 0, 1, above=True),
            max_tokens=integer(body, "max_output_tokens", None, 1, 1 << 31),
            logprobs=_logprobs(body),
        ),
        tools=specs,
        tool_choice=parse_tool_choice(body, specs),
        parallel_tool_calls=read(body, "parallel_tool_calls", bool, True),
        response_format=_format(body),
        effort=fields.EFFORTS.get(read(reasoning, "effort", str, "", at="reasoning.")),
        stream=read(body, "stream", bool, False),
        include_usage=True,
        user=read(body, "user", str) or read(body, "safety_identifier", str),
        extras=fields.extras(body),
        protocol=PROTOCOL,
        body=body,
    )


def _check_metadata(body: Mapping[str, Any]) -> None:
    found = read(body, "metadata", dict, {})
    if len(found) > 16 or not all(isinstance(v, str) and len(k) <= 64 and len(v) <= 512 for k, v in found.items()):
        raise bad("metadata", "must be at most 16 pairs of short strings")


def _logprobs(body: Mapping[str, Any]) -> int | None:
    top = integer(body, "top_logprobs", None, 0, 20)
    asked = "message.output_text.logprobs" in (body.get("include") or ())
    return (top or 0) if asked else top or None


def _format(body: Mapping[str, Any]) -> ResponseFormat:
    found = read(read(body, "text", dict, {}), "format", dict, at="text.")
    if found is None:
        return ResponseFormat()
    if found.get("type") != "json_schema":
        return fields.response_format({"response_format": found})
    inner = {k: v for k, v in found.items() if k != "type"}
    return fields.response_format({"response_format": {"type": "json_schema", "json_schema": inner}})


# --------------------------------------------------------------------------------------------- our request, written


def path(model: str) -> str:
    """Where a server of this protocol is asked, after its base URL."""
    return "/responses"


def render_request(request: ChatRequest, model: str, drop: Sequence[str] = ()) -> dict[str, Any]:
    """The request as a body for a server of this protocol, streaming and not stored.

    A request that came in by this protocol keeps every field it came with but Baseload's own and those of `drop`; where its
    conversation is not the one of its `input` (an earlier response, an escalation), the whole is written anew.
    """
    body = dict(request.body) if request.protocol == PROTOCOL else _meaning(request)
    if (
        request.protocol == PROTOCOL
        and request.messages != parse_request({**body, "tools": None, "tool_choice": None}).messages
    ):
        body["input"] = render_input(request.messages, request.tools)
        body.pop("instructions", None)
    for name in ("baseload", "previous_response_id", *drop):
        body.pop(name, None)
    return body | {"model": model, "stream": True, "store": False}


def _meaning(request: ChatRequest) -> dict[str, Any]:
    p, format_ = request.sampling, request.response_format
    if p.n > 1:
        raise bad("n", "must be 1 for this supplier, whose protocol has one answer")
    body: dict[str, Any] = {"input": render_input(request.messages, request.tools)}
    optional = {
        "max_output_tokens": p.max_tokens,
        "temperature": p.temperature if p.temperature != 1 else None,
        "top_p": p.top_p if p.top_p != 1 else None,
        "reasoning": {"effort": fields.EFFORT_NAMES[request.effort]} if request.effort else None,
        "user": request.user,
    }
    body |= {name: value for name, value in optional.items() if value is not None}
    if request.tools:
        named = isinstance(request.tool_choice, Mapping)
        choice = {"type": "function", **request.tool_choice} if named else request.tool_choice  # pyright: ignore
        body |= {
            "tools": render_tools(request.tools),
            "tool_choice": choice,
            "parallel_tool_calls": request.parallel_tool_calls,
        }
    if format_.kind == "json_schema":
        schema = {"name": format_.name, "schema": format_.schema, "strict": format_.strict}
        body["text"] = {"format": {"type": "json_schema", **schema}}
    elif format_.kind == "json_object":
        body["text"] = {"format": {"type": "json_object"}}
    return json.loads(json.dumps(body))


# --------------------------------------------------------------------------------------------- a server's answer, read


class StreamParser(ChunkParser):
    """See ChunkParser. There is one choice, whatever `n` is."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self._calls: dict[int, int] = {}  # by output index
        self._argued: set[int] = set()

    def feed(self, data: str) -> list[Event]:
        """See ChunkParser; some servers add OpenAI's other mark of an end."""
        return [] if data.strip() == DONE else super().feed(data)

    def chunk(self, chunk: Mapping[str, Any]) -> list[Event]:
        """See ChunkParser."""
        match chunk["type"].removeprefix("response."):
            case "output_text.delta" | "refusal.delta":
                return [TextDelta(text_of(chunk, "delta"), 0, 1)]
            case "reasoning_summary_text.delta" | "reasoning_text.delta":
                return [ReasoningDelta(text_of(chunk, "delta"), 0, 1)]
            case "output_item.added":
                return self._added(int(chunk["output_index"]), chunk["item"])
            case "function_call_arguments.delta":
                index = int(chunk["output_index"])
                self._argued.add(index)
                return [ToolCallDelta(self._calls[index], None, None, text_of(chunk, "delta"), 0, 1)]
            case "output_item.done":
                return self._done(int(chunk["output_index"]), chunk["item"])
            case "completed" | "incomplete":
                return self._end(chunk["response"])
            case "failed":
                return self._refuse(chunk["response"].get("error") or {})
            case "error":
                return self._refuse(chunk.get("error") or chunk)
            case _:
                return []

    def _added(self, index: int, item: Mapping[str, Any]) -> list[Event]:
        if item["type"] not in ("function_call", "custom_tool_call"):
            return []
        self._calls[index] = len(self._calls)
        space = item.get("namespace")
        name = f"{space}__{text_of(item, 'name')}" if space else text_of(item, "name")
        return [ToolCallDelta(self._calls[index], text_of(item, "call_id"), name)]

    def _done(self, index: int, item: Mapping[str, Any]) -> list[Event]:
        if item["type"] == "reasoning" and item.get("encrypted_content"):
            return [ReasoningDelta("", signature=text_of(item, "encrypted_content"))]
        if item["type"] not in ("function_call", "custom_tool_call"):
            return []
        events = [] if index in self._calls else self._added(index, item)
        if item["type"] == "custom_tool_call":
            given = json.dumps({"input": text_of(item, "input")}, ensure_ascii=False)
        else:
            given = "" if index in self._argued else text_of(item, "arguments")
        return [*events, *([ToolCallDelta(self._calls[index], None, None, given, 0, 1)] if given else [])]

    def _end(self, response: Mapping[str, Any]) -> list[Event]:
        self.ended = True
        found, usage = response.get("usage"), list[Event]()
        if found:
            names = {"prompt_tokens": "input_tokens", "completion_tokens": "output_tokens"}
            names |= {"prompt_tokens_details": "input_tokens_details", "completion_tokens_details": "output_tokens_details"}
            usage = [parse_usage({name: found.get(theirs) for name, theirs in names.items()})]
        reason = (response.get("incomplete_details") or {}).get("reason")
        if response.get("status") == "incomplete" or reason:
            return [*usage, Finish("content_filter" if reason == "content_filter" else "length")]
        return [*usage, Finish("tool_calls" if self._calls else "stop")]

    def _refuse(self, error: Mapping[str, Any]) -> list[Event]:
        return self.refuse(error.get("message"), 429 if error.get("code") == "rate_limit_exceeded" else 502)


def parse_response(body: Mapping[str, Any], n: int) -> list[Event]:
    """The events of an answer that came whole."""
    parser, events = StreamParser(n), list[Event]()
    if body.get("error") or body.get("status") == "failed":
        return parser.feed(json.dumps({"type": "response.failed", "response": {"error": body.get("error")}}))
    for index, item in enumerate(body.get("output") or []):
        for part in [*(item.get("summary") or []), *(item.get("content") or [])] if item.get("type") == "reasoning" else ():
            events.append(ReasoningDelta(text_of(part, "text"), 0, 1))
        for part in item.get("content") or [] if item.get("type") == "message" else ():
            events.append(TextDelta(text_of(part, "refusal" if part.get("type") == "refusal" else "text"), 0, 1))
        events += parser.feed(json.dumps({"type": "response.output_item.done", "output_index": index, "item": item}))
    return [*events, *parser.feed(json.dumps({"type": "response.completed", "response": body})), *parser.close()]
