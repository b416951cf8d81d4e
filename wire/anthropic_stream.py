"""Anthropic's event stream, written and read: message_start, blocks that begin, grow and end, message_delta, message_stop."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from .anthropic_content import arguments
from .calls_in_turn import CallsInTurn
from .chat import (
    ChatRequest,
    Event,
    Extension,
    Failure,
    Finish,
    FinishReason,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    Usage,
)
from .errors import BaseloadError, BudgetExhausted
from .sse import TextChunks, named_event
from .upstream import ChunkParser, count_of, text_of

PROTOCOL = "anthropic_messages"
STOP_REASONS: dict[FinishReason, str] = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "content_filter": "refusal",
}
FINISHES: dict[str, FinishReason] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
FAILURES = {  # by status; 529 is this protocol's own
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    529: "overloaded_error",
}


def stop_reason(finish: Finish) -> dict[str, Any]:
    """How an answer ended."""
    if finish.reason == "stop" and isinstance(finish.matched_stop, str):
        return {"stop_reason": "stop_sequence", "stop_sequence": finish.matched_stop}
    return {"stop_reason": STOP_REASONS[finish.reason], "stop_sequence": None}


def usage_object(usage: Usage) -> dict[str, Any]:
    """Anthropic's usage, whose input_tokens are those that no cache held."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens - usage.cache_write_tokens,
        "cache_read_input_tokens": usage.cached_tokens,
        "cache_creation_input_tokens": usage.cache_write_tokens,
        "output_tokens": usage.completion_tokens,
    }


class StreamRenderer:
    """Events to chunks; each is an event of the name in its `type`. Pure but for the stream's own state."""

    def __init__(self, request: ChatRequest, id: str, created: int, model: str) -> None:
        self._id, self._model = id, model
        self._usage = Usage(0, 0)
        self._begun = self._ended = False
        self._turns = CallsInTurn()
        self._open: str | None = None  # the kind of block being written, with a call's number
        self._block = -1
        self._signature = ""
        self._plain = TextChunks(lambda index: self._delta({"type": "text_delta", "text": TextChunks.MARK}, index), named_event)

    def plain(self, event: Event) -> bytes | None:
        """The SSE event of one that is mere text; None for any other: ask `events`."""
        if type(event) is not TextDelta or self._open != "text" or not event.text:
            return None
        return self._plain.write(self._block, event.text)

    def events(self, event: Event) -> list[dict[str, Any]]:
        """The chunks that `event` brings."""
        return [chunk for one in self._turns.feed(event) for chunk in self._chunks(one)]

    def _chunks(self, event: Event) -> list[dict[str, Any]]:
        match event:
            case Usage():
                self._usage = event
                return self._begin() if event.prompt_tokens else []
            case Failure():
                return [{"type": "error", "error": {"type": error_type(status_of(event)), "message": event.message}}]
            case TextDelta():
                delta = {"type": "text_delta", "text": event.text}
                return [*self._in_block("text", {"type": "text", "text": ""}), self._delta(delta)] if event.text else []
            case ReasoningDelta():
                return self._reason(event)
            case ToolCallDelta():
                return self._call(event)
            case Extension() if event.protocol == PROTOCOL:
                return self._foreign(event.raw)
            case Finish():
                return self._finish(event)
            case _:
                return []

    def _begin(self) -> list[dict[str, Any]]:
        if self._begun:
            return []
        self._begun = True
        head = {"id": self._id, "type": "message", "role": "assistant", "model": self._model, "content": []}
        usage = usage_object(Usage(self._usage.prompt_tokens, 0, self._usage.cached_tokens, 0, self._usage.cache_write_tokens))
        return [{"type": "message_start", "message": {**head, "stop_reason": None, "stop_sequence": None, "usage": usage}}]

    def _in_block(self, kind: str, block: Mapping[str, Any]) -> list[dict[str, Any]]:
        if self._open == kind:
            return []
        out = [*self._begin(), *self._end_block()]
        self._open = kind
        self._block += 1
        return [*out, {"type": "content_block_start", "index": self._block, "content_block": dict(block)}]

    def _end_block(self) -> list[dict[str, Any]]:
        if self._open is None:
            return []
        # Clients echo a thinking block with its signature, and refuse one that has none.
        signed = [self._delta({"type": "signature_delta", "signature": self._signature})] if self._open == "thinking" else []
        self._open, self._signature = None, ""
        return [*signed, {"type": "content_block_stop", "index": self._block}]

    def _reason(self, event: ReasoningDelta) -> list[dict[str, Any]]:
        # A signature is a block's last word: what comes after it is another block.
        ended = self._end_block() if self._open == "thinking" and self._signature else []
        out = [*ended, *self._in_block("thinking", {"type": "thinking", "thinking": "", "signature": ""})]
        self._signature = event.signature or ""
        return [*out, *([self._delta({"type": "thinking_delta", "thinking": event.text})] if event.text else [])]

    def _call(self, event: ToolCallDelta) -> list[dict[str, Any]]:
        block = {"type": "tool_use", "id": event.id or f"toolu_{event.call}", "name": event.name or "", "input": {}}
        out = self._in_block(f"call {event.call}", block)
        delta = {"type": "input_json_delta", "partial_json": event.arguments}
        return [*out, *([self._delta(delta)] if event.arguments else [])]

    def _foreign(self, raw: Mapping[str, Any]) -> list[dict[str, Any]]:
        """A chunk that only this protocol knows, under this stream's own number: a text's citation, or one of a block."""
        if (raw.get("delta") or {}).get("type") == "citations_delta":
            before = self._in_block("text", {"type": "text", "text": ""})
        else:
            before = [*self._begin(), *self._end_block()]
        if raw.get("type") == "content_block_start":
            self._block += 1
        return [*before, {**raw, "index": self._block}]

    def _finish(self, event: Finish) -> list[dict[str, Any]]:
        if self._ended:
            return []
        self._ended = True
        empty = [] if self._block >= 0 else self._in_block("text", {"type": "text", "text": ""})
        last = {"type": "message_delta", "delta": stop_reason(event), "usage": usage_object(self._usage)}
        return [*empty, *self._begin(), *self._end_block(), last, {"type": "message_stop"}]

    def _delta(self, delta: Mapping[str, Any], index: int | None = None) -> dict[str, Any]:
        return {"type": "content_block_delta", "index": self._block if index is None else index, "delta": dict(delta)}


def status_of(error: BaseloadError | Failure) -> int:
    """An exhausted budget is a matter of billing here, and no rate that will be free again soon."""
    return 402 if error.kind == BudgetExhausted.kind else error.status


def error_type(status: int) -> str:
    """This protocol's name for an HTTP status."""
    return FAILURES.get(status, "invalid_request_error" if 400 <= status < 500 else "api_error")


def render_response(request: ChatRequest, events: Sequence[Event], id: str, created: int, model: str) -> dict[str, Any]:
    """The whole answer as one object: its stream's chunks, put together. `events` must hold no Failure."""
    renderer, message = StreamRenderer(request, id, created, model), dict[str, Any]()
    blocks: list[tuple[dict[str, Any], list[Mapping[str, Any]]]] = []
    for chunk in (chunk for event in events for chunk in renderer.events(event)):
        match chunk["type"]:
            case "message_start":
                message = chunk["message"]
            case "content_block_start":
                blocks.append((dict(chunk["content_block"]), []))
            case "content_block_delta":
                blocks[-1][1].append(chunk["delta"])
            case "message_delta":
                message = {**message, **chunk["delta"], "usage": chunk["usage"]}
            case _:
                pass
    return {**message, "content": [_whole_block(*block) for block in blocks]}


def _whole_block(block: dict[str, Any], deltas: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    for name in ("text", "thinking", "signature"):
        if pieces := [delta[name] for delta in deltas if delta.get("type") == f"{name}_delta"]:
            block[name] = "".join(pieces)
    if pieces := [delta["partial_json"] for delta in deltas if delta.get("type") == "input_json_delta"]:
        block["input"] = arguments("".join(pieces))
    if citations := [delta["citation"] for delta in deltas if delta.get("type") == "citations_delta"]:
        block["citations"] = citations
    return block


class StreamParser(ChunkParser):
    """See ChunkParser. There is one choice, whatever `n` is."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self._counts: dict[str, int] = {}
        self._blocks: dict[int, str] = {}
        self._signature = ""
        self._calls = -1
        self._has_begun = False
        self._finish: Finish | None = None

    def chunk(self, chunk: Mapping[str, Any]) -> list[Event]:
        """See ChunkParser."""
        match chunk["type"]:
            case "message_start":
                self._count(chunk["message"].get("usage") or {})
                return []
            case "content_block_start":
                return self._counted(self._start(int(chunk["index"]), chunk["content_block"], chunk))
            case "content_block_delta":
                return self._counted(self._delta(int(chunk["index"]), chunk["delta"], chunk))
            case "content_block_stop":
                foreign = self._blocks.get(int(chunk["index"])) == "foreign"
                signature, self._signature = self._signature, ""
                signed: list[Event] = [ReasoningDelta("", 0, 0, signature)] if signature else []
                return [*signed, *([Extension(PROTOCOL, chunk)] if foreign else [])]
            case "message_delta":
                self._count(chunk.get("usage") or {})
                if reason := (chunk.get("delta") or {}).get("stop_reason"):
                    self._finish = Finish(FINISHES.get(reason, "stop"), 0, chunk["delta"].get("stop_sequence"))
                return []
            case "message_stop":
                return self._end()
            case "error":
                return self._refuse(chunk.get("error") or {})
            case _:
                return []  # ping, and what is newer than this

    def _start(self, index: int, block: Mapping[str, Any], chunk: Mapping[str, Any]) -> list[Event]:
        kind = self._blocks[index] = block["type"] if block["type"] in ("text", "thinking", "tool_use") else "foreign"
        match kind:
            case "text":
                return [TextDelta(text_of(block, "text"), 0, 1)] if block.get("text") else []
            case "thinking":
                return [ReasoningDelta(text_of(block, "thinking"), 0, 1)] if block.get("thinking") else []
            case "tool_use":
                self._calls += 1
                given = json.dumps(block["input"]) if block.get("input") else ""
                return [ToolCallDelta(self._calls, text_of(block, "id"), text_of(block, "name"), given)]
            case _:
                return [Extension(PROTOCOL, chunk)]

    def _delta(self, index: int, delta: Mapping[str, Any], chunk: Mapping[str, Any]) -> list[Event]:
        if self._blocks[index] == "foreign":
            return [Extension(PROTOCOL, chunk)]
        match delta["type"]:
            case "text_delta":
                return [TextDelta(text_of(delta, "text"), 0, 1)]
            case "thinking_delta":
                return [ReasoningDelta(text_of(delta, "thinking"), 0, 1)]
            case "signature_delta":
                self._signature += text_of(delta, "signature")
                return []
            case "input_json_delta":
                return [ToolCallDelta(self._calls, None, None, text_of(delta, "partial_json"), 0, 1)]
            case "citations_delta":
                _ = delta["citation"]
                return [Extension(PROTOCOL, chunk)]
            case _:
                return []  # newer than this, and within a block that is rendered anew

    def _counted(self, events: list[Event]) -> list[Event]:
        """With the first word, what was told at the start: a stream that is left early has used that at least. Not before
        it, as a call that fails before its first word may be tried again."""
        if not events or self._has_begun:
            return events
        self._has_begun = True
        return [*self._usage(), *events]

    def _count(self, usage: Mapping[str, Any]) -> None:
        for name in ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens", "output_tokens"):
            if usage.get(name) is not None:
                self._counts[name] = count_of(usage, name)

    def _end(self) -> list[Event]:
        if self._finish is None:
            return self.silence()
        self.ended = True
        return [*self._usage(), self._finish]

    def _usage(self) -> list[Event]:
        read, wrote = (self._counts.get(f"cache_{kind}_input_tokens", 0) for kind in ("read", "creation"))
        prompt = self._counts.get("input_tokens", 0) + read + wrote
        return [Usage(prompt, self._counts.get("output_tokens", 0), read, 0, wrote)] if self._counts else []

    def _refuse(self, error: Mapping[str, Any]) -> list[Event]:
        status = {"overloaded_error": 503, "rate_limit_error": 429}.get(str(error.get("type")), 502)
        return self.refuse(error.get("message"), status)


def parse_response(body: Mapping[str, Any], n: int) -> list[Event]:
    """The events of an answer that came whole."""
    parser = StreamParser(n)
    if body.get("type") == "error":
        return parser.feed(json.dumps(body))
    chunks: list[Mapping[str, Any]] = [{"type": "message_start", "message": body}]
    for i, block in enumerate(body.get("content") or []):
        chunks.append({"type": "content_block_start", "index": i, "content_block": block})
        block = block if isinstance(block, dict) else {}
        deltas = [{"type": "signature_delta", "signature": block["signature"]}] if block.get("signature") else []
        deltas += [{"type": "citations_delta", "citation": one} for one in block.get("citations") or []]
        chunks += [{"type": "content_block_delta", "index": i, "delta": delta} for delta in deltas]
        chunks.append({"type": "content_block_stop", "index": i})
    chunks += [{"type": "message_delta", "delta": body, "usage": body.get("usage")}, {"type": "message_stop"}]
    events = [event for chunk in chunks for event in parser.feed(json.dumps(chunk))]
    return [*events, *parser.close()]
