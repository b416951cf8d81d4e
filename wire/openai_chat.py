"""OpenAI's chat completions, both directions, pure: https://platform.openai.com/docs/api-reference/chat.

We serve it: `parse_request`, `render_response`, `StreamRenderer`. We call it: `render_request`, `parse_response`,
`StreamParser`. Fields that vLLM adds are read too.
"""

import json
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

from . import fields
from .chat import (
    ChatRequest,
    Event,
    Failure,
    Finish,
    ReasoningDelta,
    TextDelta,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
    Usage,
)
from .errors import BaseloadError
from .fields import bad, integer, items, read
from .openai_messages import parse_message, render_call, render_message
from .sse import TextChunks
from .upstream import ChoicesParser, count_of

PROTOCOL = "openai_chat"
DONE = "[DONE]"
MAX_MESSAGES = 10_000
# Fields that only some suppliers use; of the wrong type they are refused here all the same.
UNUSED = {"metadata": dict, "prediction": dict, "store": bool, "service_tier": str}
FINISH_REASONS = ("stop", "length", "tool_calls", "content_filter")
FAILED = ("error", "abort", "cancelled")  # how some servers end an answer that they could not finish

# --------------------------------------------------------------------------------------------- a client's request, read


def parse_request(body: Mapping[str, Any]) -> ChatRequest:
    """The request in a JSON object. Raises BadRequest, naming the field and the reason."""
    specs = fields.tools(body)
    for name, kind in UNUSED.items():
        read(body, name, kind)
    include_usage, continuous = fields.stream_options(body)
    messages = items(body, "messages", MAX_MESSAGES)
    if not messages:
        raise bad("messages", "must be a list with at least one message")
    return ChatRequest(
        model=model_name(body),
        messages=tuple(parse_message(m, f"messages[{i}]") for i, m in enumerate(messages)),
        sampling=fields.sampling(body, _max_tokens(body), _logprobs(body)),
        tools=specs,
        tool_choice=fields.tool_choice(body, specs),
        parallel_tool_calls=read(body, "parallel_tool_calls", bool, True),
        response_format=fields.response_format(body),
        effort=fields.EFFORTS.get(read(body, "reasoning_effort", str, "")),
        stream=read(body, "stream", bool, False),
        include_usage=include_usage,
        continuous_usage=continuous,
        user=read(body, "user", str),
        extras=fields.extras(body),
        protocol=PROTOCOL,
        body=body,
    )


def model_name(body: Mapping[str, Any]) -> str:
    """`model`, which must be there."""
    name = read(body, "model", str)
    if not name or len(name) > 256:
        raise bad("model", "must be a string of 1 to 256 characters")
    return name


def _max_tokens(body: Mapping[str, Any]) -> int | None:
    old = integer(body, "max_tokens", None, 1, 1 << 31)
    return integer(body, "max_completion_tokens", old, 1, 1 << 31)


def _logprobs(body: Mapping[str, Any]) -> int | None:
    wanted, top = read(body, "logprobs", bool, False), integer(body, "top_logprobs", None, 0, 20)
    if top and not wanted:
        raise bad("top_logprobs", "needs logprobs to be true")
    return (top or 0) if wanted else None


# --------------------------------------------------------------------------------------------- our answer, written


def render_usage(usage: Usage) -> dict[str, Any]:
    """OpenAI's usage object."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


def _logprob(entry: TokenLogprob) -> dict[str, Any]:
    return {"token": entry.token, "logprob": max(entry.logprob, -9999.0), "bytes": list(entry.bytes)}


def render_logprobs(entries: Sequence[TokenLogprob]) -> dict[str, Any]:
    """OpenAI's logprobs object of a choice."""
    return {"content": [{**_logprob(e), "top_logprobs": [_logprob(t) for t in e.top]} for e in entries], "refusal": None}


def render_response(request: ChatRequest, events: Sequence[Event], id: str, created: int, model: str) -> dict[str, Any]:
    """The whole answer as one object. `events` must hold no Failure."""
    choices = [_choice(request, [e for e in events if getattr(e, "index", None) == i], i) for i in range(request.sampling.n)]
    usage = next((e for e in reversed(events) if isinstance(e, Usage)), Usage(0, 0))
    head = {"id": id, "object": "chat.completion", "created": created, "model": model}
    return {**head, "choices": choices, "usage": render_usage(usage)}


def _choice(request: ChatRequest, events: Sequence[Event], index: int) -> dict[str, Any]:
    text = "".join(e.text for e in events if isinstance(e, TextDelta))
    thought = "".join(e.text for e in events if isinstance(e, ReasoningDelta))
    calls = join_tool_calls([e for e in events if isinstance(e, ToolCallDelta)])
    finish = next((e.reason for e in events if isinstance(e, Finish)), "stop")
    message: dict[str, Any] = {"role": "assistant", "content": text or (None if calls else ""), "refusal": None}
    if thought:
        message["reasoning_content"] = thought
    if calls:
        message["tool_calls"] = [render_call(call) for call in calls]
    entries = [lp for e in events if isinstance(e, TextDelta) for lp in e.logprobs]
    logprobs = render_logprobs(entries) if request.sampling.logprobs is not None else None
    return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": finish}


def join_tool_calls(deltas: Sequence[ToolCallDelta]) -> list[ToolCall]:
    """The calls that a stream of deltas spells, in their order."""
    ids = sorted({d.call for d in deltas})
    parts = [[d for d in deltas if d.call == i] for i in ids]
    return [
        ToolCall(
            next((d.id for d in own if d.id), f"call_{i}"),
            next((d.name for d in own if d.name), ""),
            "".join(d.arguments for d in own),
        )
        for i, own in zip(ids, parts, strict=True)
    ]


class StreamRenderer:
    """Events to chunks; pure but for the stream's own state. After the last event comes "[DONE]"."""

    def __init__(self, request: ChatRequest, id: str, created: int, model: str) -> None:
        self._request = request
        self._head = {"id": id, "object": "chat.completion.chunk", "created": created, "model": model}
        self._begun: set[int] = set()
        self._open = request.sampling.n
        self._is_plain = not request.continuous_usage and request.sampling.logprobs is None  # one chunk is like the other
        self._plain = TextChunks(lambda index: self._chunk(index, {"content": TextChunks.MARK}, None))
        self._usage = Usage(0, 0)
        self._tokens = 0

    def events(self, event: Event) -> list[dict[str, Any] | str]:
        """The chunks that `event` brings."""
        match event:
            case Usage():
                self._usage = event
                return []
            case Failure():
                return [render_failure(event), DONE]
            case Finish():
                return [*self._begin(event.index), self._chunk(event.index, {}, event.reason), *self._end()]
            case TextDelta() | ReasoningDelta() | ToolCallDelta():
                self._tokens += event.tokens
                return [*self._begin(event.index), self._chunk(event.index, _delta(event), None, _entries(event))]
            case _:
                return []

    def plain(self, event: Event) -> bytes | None:
        """The SSE event of one that is mere text; None for any other: ask `events`."""
        if not self._is_plain or type(event) is not TextDelta or event.index not in self._begun:
            return None
        return self._plain.write(event.index, event.text)

    def _begin(self, index: int) -> list[dict[str, Any]]:
        if index in self._begun:
            return []
        self._begun.add(index)
        return [self._chunk(index, {"role": "assistant", "content": ""}, None)]

    def _end(self) -> list[dict[str, Any] | str]:
        self._open -= 1
        if self._open:
            return []
        last: list[dict[str, Any] | str] = []
        if self._request.include_usage:
            last = [{**self._head, "choices": [], "usage": render_usage(self._usage)}]
        return [*last, DONE]

    def _chunk(
        self, index: int, delta: dict[str, Any], finish: str | None, entries: Sequence[TokenLogprob] = ()
    ) -> dict[str, Any]:
        logprobs = render_logprobs(entries) if entries else None
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        chunk = {**self._head, "choices": [choice]}
        if self._request.continuous_usage:
            now = Usage(self._usage.prompt_tokens, self._tokens, self._usage.cached_tokens)
            chunk["usage"] = render_usage(now)
        elif self._request.include_usage:
            chunk["usage"] = None
        return chunk


def _entries(event: Event) -> tuple[TokenLogprob, ...]:
    return event.logprobs if isinstance(event, TextDelta) else ()


def _delta(event: TextDelta | ReasoningDelta | ToolCallDelta) -> dict[str, Any]:
    if isinstance(event, TextDelta):
        return {"content": event.text}
    if isinstance(event, ReasoningDelta):
        return {"reasoning_content": event.text}
    named = {"id": event.id, "type": "function"} if event.id else {}
    function = {**({"name": event.name} if event.name else {}), "arguments": event.arguments}
    return {"tool_calls": [{"index": event.call, **named, "function": function}]}


def render_error(error: BaseloadError) -> dict[str, Any]:
    """An error in OpenAI's shape."""
    return {"error": {"message": error.message, "type": error.kind, "param": error.param, "code": error.code}}


def render_failure(failure: Failure) -> dict[str, Any]:
    """A stream's bad end in the same shape."""
    return {"error": {"message": failure.message, "type": failure.kind, "param": None, "code": failure.code}}


# --------------------------------------------------------------------------------------------- our request, written


def path(model: str) -> str:
    """Where a server of this protocol is asked, after its base URL."""
    return "/chat/completions"


def headers(api_key: str | None) -> dict[str, str]:
    """What a call carries."""
    return {"authorization": f"Bearer {api_key}"} if api_key else {}


def render_request(request: ChatRequest, model: str, drop: Sequence[str] = ()) -> dict[str, Any]:
    """The request as a body for a server of this protocol, streaming with usage.

    A request that came in by this protocol keeps every field it came with but Baseload's own and those of `drop`; any other
    carries its neutral meaning. A message that was added, as an escalation does, or changed is written anew.
    """
    body = dict(request.body) if request.protocol == PROTOCOL else _meaning(request)
    for name in ("baseload", *drop):
        body.pop(name, None)
    pairs = zip_longest((body.get("messages") or [])[: len(request.messages)], request.messages)
    messages = [raw if raw and parse_message(raw, "messages") == m else render_message(m) for raw, m in pairs]
    body |= {"model": model, "messages": messages}
    return body | {"stream": True, "stream_options": {"include_usage": True}}


def _meaning(request: ChatRequest) -> dict[str, Any]:
    p, format_ = request.sampling, request.response_format
    body: dict[str, Any] = {"temperature": p.temperature, "top_p": p.top_p, "n": p.n}
    optional = {
        "max_tokens": p.max_tokens,
        "stop": list(p.stop),
        "presence_penalty": p.presence_penalty,
        "frequency_penalty": p.frequency_penalty,
        "logit_bias": {str(k): v for k, v in p.logit_bias},
        "user": request.user,
        "reasoning_effort": fields.EFFORT_NAMES.get(request.effort) if request.effort else None,
        "tools": [_tool_object(t) for t in request.tools],
    }
    body |= {name: value for name, value in optional.items() if value not in (None, [], {}, 0.0)}
    if p.seed is not None:  # one of 0 too
        body["seed"] = p.seed
    if p.logprobs is not None:
        body |= {"logprobs": True, "top_logprobs": p.logprobs}
    if request.tools:
        named = isinstance(request.tool_choice, Mapping)
        choice = {"type": "function", "function": dict(request.tool_choice)} if named else request.tool_choice  # pyright: ignore
        body |= {"tool_choice": choice, "parallel_tool_calls": request.parallel_tool_calls}
    if format_.kind == "json_schema":
        inner = {"name": format_.name, "schema": format_.schema, "strict": format_.strict}
        body["response_format"] = {"type": "json_schema", "json_schema": inner}
    elif format_.kind == "json_object":
        body["response_format"] = {"type": "json_object"}
    return body


def _tool_object(tool: Any) -> dict[str, Any]:
    function = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    return {"type": "function", "function": {**function, **({"strict": True} if tool.strict else {})}}


# --------------------------------------------------------------------------------------------- a server's answer, read


class StreamParser(ChoicesParser):
    """See ChoicesParser."""

    def feed(self, data: str) -> list[Event]:
        """See ChunkParser."""
        return self.close() if data.strip() == DONE else super().feed(data)

    def chunk(self, chunk: Mapping[str, Any]) -> list[Event]:
        """See ChunkParser."""
        if error := chunk.get("error"):
            return self.refuse(error.get("message") if isinstance(error, dict) else error)
        if usage := chunk.get("usage"):
            self.usage = parse_usage(usage)
        events: list[Event] = []
        for choice in chunk.get("choices") or []:
            events += [] if self.ended else self._choice(choice)
        return events

    def _choice(self, choice: Mapping[str, Any]) -> list[Event]:
        index = choice.get("index", 0)
        if not isinstance(index, int) or not 0 <= index < self.n:
            raise ValueError("choice index")
        if index in self.finishes:
            return []  # a second finish, or words after the first
        events = list(_parse_delta(choice.get("delta") or {}, index, choice.get("logprobs")))
        if reason := choice.get("finish_reason"):
            if reason in FAILED:
                return [*events, *self.fail("The supplier broke off its answer.")]
            self.finishes[index] = Finish(reason if reason in FINISH_REASONS else "stop", index)
        return events


def parse_response(body: Mapping[str, Any], n: int) -> list[Event]:
    """The events of an answer that came whole: what a server sends that does not stream."""
    parser = StreamParser(n)
    choices = [{**c, "delta": c.get("message")} for c in body.get("choices") or [] if isinstance(c, dict)]
    return [*parser.feed(json.dumps({**body, "choices": choices})), *parser.close()]


def _parse_delta(delta: Mapping[str, Any], index: int, logprobs: Any) -> list[Event]:
    events: list[Event] = []
    thought = delta.get("reasoning_content") or delta.get("reasoning")
    if isinstance(thought, str) and thought:
        events.append(ReasoningDelta(thought, index, tokens=1))
    entries = tuple(_parse_logprob(e) for e in (logprobs or {}).get("content") or [])
    text = delta.get("content") or delta.get("refusal") or ""
    if not isinstance(text, str):
        raise TypeError("content")
    if text or entries:
        events.append(TextDelta(text, index, tokens=1, logprobs=entries))
    for at, call in enumerate(delta.get("tool_calls") or []):
        function = call.get("function") or {}
        number, arguments = call.get("index", at), function.get("arguments") or ""
        events.append(ToolCallDelta(int(number), call.get("id"), function.get("name"), str(arguments), index, tokens=1))
    return events


def _parse_logprob(entry: Mapping[str, Any]) -> TokenLogprob:
    spelled = bytes(entry.get("bytes") or str(entry["token"]).encode())
    top = tuple(_parse_logprob(t) for t in entry.get("top_logprobs") or [])
    return TokenLogprob(str(entry["token"]), float(entry["logprob"]), spelled, top=top)


def parse_usage(usage: Mapping[str, Any]) -> Usage:
    """Usage with every number checked: a supplier's count is money. Raises ValueError."""

    cached = count_of(usage.get("prompt_tokens_details"), "cached_tokens")
    thought = count_of(usage.get("completion_tokens_details"), "reasoning_tokens")
    prompt, completion = count_of(usage, "prompt_tokens"), count_of(usage, "completion_tokens")
    if cached > prompt or thought > completion:
        raise ValueError("a part exceeds its whole")
    return Usage(prompt, completion, cached, thought)
