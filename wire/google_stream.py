"""Google's answers, written and read: each chunk of a stream is a whole response of its own, and nothing says "the end"."""

import json
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from .anthropic_content import arguments
from .chat import (
    ChatRequest,
    Event,
    Extension,
    Failure,
    Finish,
    FinishReason,
    ReasoningDelta,
    TextDelta,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
    Usage,
)
from .google_content import SIGNED, pick, signature_of
from .openai_chat import join_tool_calls
from .sse import TextChunks
from .upstream import ChoicesParser, count_of

PROTOCOL = "google_generate"
FINISH_REASONS: dict[FinishReason, str] = {
    "stop": "STOP",
    "tool_calls": "STOP",
    "length": "MAX_TOKENS",
    "content_filter": "SAFETY",
}
FILTERED = ("SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "LANGUAGE", "MODEL_ARMOR", "IMAGE_SAFETY",
            "IMAGE_PROHIBITED_CONTENT", "IMAGE_RECITATION")  # fmt: skip
FAILED = ("MALFORMED_FUNCTION_CALL", "MALFORMED_RESPONSE", "UNEXPECTED_TOOL_CALL", "TOO_MANY_TOOL_CALLS", "OTHER")
STATUSES = {  # google.rpc.Code by HTTP status
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    408: "DEADLINE_EXCEEDED",
    429: "RESOURCE_EXHAUSTED",
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
# A candidate's fields that are read here; those that only repeat or rate it are let go.
KNOWN = ("content", "finishReason", "finishMessage", "index", "logprobsResult", "avgLogprobs", "tokenCount", "safetyRatings")

# --------------------------------------------------------------------------------------------- written


def usage_object(usage: Usage) -> dict[str, Any]:
    """Google's usage, whose candidates' tokens are without the thoughts'."""
    optional = {"cachedContentTokenCount": usage.cached_tokens, "thoughtsTokenCount": usage.reasoning_tokens}
    return {
        "promptTokenCount": usage.prompt_tokens,
        "candidatesTokenCount": usage.completion_tokens - usage.reasoning_tokens,
        "totalTokenCount": usage.prompt_tokens + usage.completion_tokens,
        **{name: count for name, count in optional.items() if count},
    }


def error_object(
    status: int, message: str, code: str | None = None, param: str | None = None, retry_after: float | None = None
) -> dict[str, Any]:
    """Google's error, with what machines read in its details."""
    details: list[dict[str, Any]] = []
    if code:
        details.append({"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": code.upper(), "domain": "baseload"})
    if param:
        violation = {"field": param, "description": message}
        details.append({"@type": "type.googleapis.com/google.rpc.BadRequest", "fieldViolations": [violation]})
    if retry_after is not None:
        details.append({"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": f"{retry_after:g}s"})
    name = STATUSES.get(status, "INVALID_ARGUMENT" if status < 500 else "INTERNAL")
    return {"error": {"code": status, "message": message, "status": name, **({"details": details} if details else {})}}


class StreamRenderer:
    """Events to chunks, each a GenerateContentResponse. Pure but for the stream's own state.

    A function call goes out whole, when it is complete. Thoughts are shown to whoever asked for them.
    """

    def __init__(self, request: ChatRequest, id: str, created: int, model: str) -> None:
        self._tail = {"modelVersion": model, "responseId": id}
        self._logprobs = request.sampling.logprobs is not None
        thinking = pick(pick(request.body, "generationConfig") or {}, "thinkingConfig") or {}
        self._thoughts = pick(thinking, "includeThoughts") is True
        self._usage = Usage(0, 0)
        self._calls: dict[int, list[ToolCallDelta]] = {}  # by choice: the call that is being written
        self._signatures: dict[int, str] = {}  # by choice: of the part that comes next
        self._plain = TextChunks(lambda index: self._chunk(index, [{"text": TextChunks.MARK}]))

    def plain(self, event: Event) -> bytes | None:
        """The SSE event of one that is mere text; None for any other: ask `events`."""
        if type(event) is not TextDelta or self._logprobs or not event.text:
            return None
        if event.index in self._calls or event.index in self._signatures:
            return None
        return self._plain.write(event.index, event.text)

    def events(self, event: Event) -> list[dict[str, Any]]:
        """The chunks that `event` brings."""
        match event:
            case Usage():
                self._usage = event
                return []
            case Failure():
                return [error_object(event.status, event.message, event.code, None, event.retry_after)]
            case TextDelta():
                extra = {"logprobsResult": _logprobs_object(event.logprobs)} if event.logprobs else {}
                parts = [*self._call(event.index), *self._part(event.index, {"text": event.text}, bool(event.text))]
                return [self._chunk(event.index, parts, extra)] if parts or extra else []
            case ReasoningDelta():
                return self._reason(event)
            case ToolCallDelta():
                open = self._calls.get(event.index)
                parts = self._call(event.index) if open and open[0].call != event.call else []
                self._calls.setdefault(event.index, []).append(event)
                return [self._chunk(event.index, parts)] if parts else []
            case Extension() if event.protocol == PROTOCOL:
                parts = [*self._call(event.index), *([event.raw["part"]] if "part" in event.raw else [])]
                return [self._chunk(event.index, parts, event.raw.get("candidate") or {})]
            case Finish():
                parts = [*self._call(event.index), *self._part(event.index, {"text": ""}, event.index in self._signatures)]
                end = {"finishReason": FINISH_REASONS[event.reason]}
                return [{**self._chunk(event.index, parts, end), "usageMetadata": usage_object(self._usage)}]
            case _:
                return []

    def _reason(self, event: ReasoningDelta) -> list[dict[str, Any]]:
        parts = self._call(event.index)
        if event.text and self._thoughts:
            parts.append({"text": event.text, "thought": True})
        if signature := signature_of(event.signature):
            parts += self._part(event.index, {"text": ""}, event.index in self._signatures)
            self._signatures[event.index] = signature
        return [self._chunk(event.index, parts)] if parts else []

    def _call(self, index: int) -> list[dict[str, Any]]:
        """The call that is complete now, if there is one."""
        calls = join_tool_calls(self._calls.pop(index, []))
        return [part for call in calls for part in self._part(index, {"functionCall": _call_object(call)}, True)]

    def _part(self, index: int, part: dict[str, Any], wanted: bool) -> list[dict[str, Any]]:
        if not wanted:
            return []
        signature = self._signatures.pop(index, None)
        return [{**part, "thoughtSignature": signature} if signature else part]

    def _chunk(self, index: int, parts: Sequence[Any], extra: Mapping[str, Any] | None = None) -> dict[str, Any]:
        # Clients add up the text of every chunk, and one without parts has none.
        content = {"role": "model", "parts": list(parts) or [{"text": ""}]}
        return {"candidates": [{"content": content, "index": index, **(extra or {})}], **self._tail}


def _call_object(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "name": call.name, "args": arguments(call.arguments)}


def _logprobs_object(entries: Sequence[TokenLogprob]) -> dict[str, Any]:
    def candidate(entry: TokenLogprob) -> dict[str, Any]:
        known = {"tokenId": entry.token_id} if entry.token_id >= 0 else {}
        return {"token": entry.token, **known, "logProbability": max(entry.logprob, -9999.0)}

    top = [{"candidates": [candidate(t) for t in entry.top]} for entry in entries]
    return {"topCandidates": top, "chosenCandidates": [candidate(entry) for entry in entries]}


def render_response(request: ChatRequest, events: Sequence[Event], id: str, created: int, model: str) -> dict[str, Any]:
    """The whole answer as one object: its stream's chunks, put together. `events` must hold no Failure."""
    renderer = StreamRenderer(request, id, created, model)
    chunks = [chunk for event in events for chunk in renderer.events(event)]
    candidates: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        for piece in chunk["candidates"]:
            whole = candidates.setdefault(piece["index"], {"content": {"role": "model", "parts": []}})
            whole["content"]["parts"] += piece["content"]["parts"]
            if "logprobsResult" in piece and "logprobsResult" in whole:
                for name, entries in whole["logprobsResult"].items():
                    entries += piece["logprobsResult"][name]
                piece = {**piece, "logprobsResult": whole["logprobsResult"]}
            whole |= {name: value for name, value in piece.items() if name != "content"}
    usage = next((e for e in reversed(events) if isinstance(e, Usage)), Usage(0, 0))
    for whole in candidates.values():
        whole["content"]["parts"] = _joined(whole["content"]["parts"])
    found = [candidates[i] for i in sorted(candidates)]
    return {"candidates": found, "usageMetadata": usage_object(usage), "modelVersion": model, "responseId": id}


def _joined(parts: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Neighbours of one kind of text as one part."""
    runs: list[tuple[Any, list[dict[str, Any]]]] = []
    for part in parts:
        kind = part.get("thought", False) if set(part) <= {"text", "thought"} else None
        if kind is False and not part["text"]:
            continue
        if kind is not None and runs and runs[-1][0] == kind:
            runs[-1][1].append(part)
        else:
            runs.append((kind, [part]))
    joined = [{**run[0], "text": "".join(p["text"] for p in run)} if len(run) > 1 else run[0] for _, run in runs]
    return joined or [{"text": ""}]


# --------------------------------------------------------------------------------------------- read


class StreamParser(ChoicesParser):
    """See ChoicesParser."""

    def __init__(self, n: int) -> None:
        super().__init__(n)
        self._calls: dict[int, int] = {}

    def chunk(self, chunk: Any) -> list[Event]:
        """See ChunkParser."""
        if isinstance(chunk, list):
            [chunk] = chunk  # an error may come so
        if error := chunk.get("error"):
            return self._refuse(error)
        if usage := chunk.get("usageMetadata"):
            self.usage = parse_usage(usage)
        events: list[Event] = []
        for candidate in chunk.get("candidates") or []:
            events += [] if self.ended else self._candidate(candidate)
        if (chunk.get("promptFeedback") or {}).get("blockReason"):
            for index in range(self.n):
                self.finishes.setdefault(index, Finish("content_filter", index))
        return events

    def _candidate(self, candidate: Mapping[str, Any]) -> list[Event]:
        index = candidate.get("index", 0)
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < self.n:
            raise ValueError("candidate index")
        if index in self.finishes:
            return []  # a second finish, or words after the first
        entries = _parse_logprobs(candidate.get("logprobsResult") or {})
        events: list[Event] = []
        for part in (candidate.get("content") or {}).get("parts") or []:
            events += self._part(part, index, entries)
            entries = () if any(isinstance(e, TextDelta) for e in events) else entries
        if entries:
            events.append(TextDelta("", index, 0, entries))
        if own := {name: value for name, value in candidate.items() if name not in KNOWN}:
            events.append(Extension(PROTOCOL, {"candidate": own}, index))
        if reason := candidate.get("finishReason"):
            if reason in FAILED:
                return [*events, *self.fail(f"The supplier broke off its answer: {reason}.")]
            self.finishes[index] = Finish(self._reason(reason, index), index)
        return events

    def _reason(self, reason: str, index: int) -> FinishReason:
        if reason == "MAX_TOKENS":
            return "length"
        if reason in FILTERED:
            return "content_filter"
        return "tool_calls" if self._calls.get(index) else "stop"

    def _part(self, part: Mapping[str, Any], index: int, entries: tuple[TokenLogprob, ...]) -> list[Event]:
        signature = part.get("thoughtSignature")
        signature = SIGNED + _string(signature) if signature else None
        signed: list[Event] = [ReasoningDelta("", index, 0, signature)] if signature else []
        if "text" in part:
            text = _string(part["text"])
            if part.get("thought"):
                return [ReasoningDelta(text, index, 1, signature)] if text or signature else []
            return [*([TextDelta(text, index, 1, entries)] if text else []), *signed]
        if "functionCall" in part:
            call, number = part["functionCall"], self._calls.get(index, 0)
            args = {} if call.get("args") is None else call["args"]
            if "partialArgs" in call or not isinstance(args, dict):
                raise ValueError("arguments in pieces")
            self._calls[index] = number + 1
            id = _string(call.get("id") or f"call_{secrets.token_hex(12)}")
            return [*signed, ToolCallDelta(number, id, _string(call["name"]), json.dumps(args), index, 1)]
        return [Extension(PROTOCOL, {"part": dict(part)}, index)]

    def _refuse(self, error: Mapping[str, Any]) -> list[Event]:
        code = error.get("code")
        return self.refuse(error.get("message"), code if code in (429, 503) else 502)


def parse_response(body: Mapping[str, Any], n: int) -> list[Event]:
    """The events of an answer that came whole."""
    parser = StreamParser(n)
    return [*parser.feed(json.dumps(body)), *parser.close()]


def parse_usage(usage: Mapping[str, Any]) -> Usage:
    """Usage with every number checked: a supplier's count is money. Raises ValueError."""
    cached, thought = count_of(usage, "cachedContentTokenCount"), count_of(usage, "thoughtsTokenCount")
    prompt = count_of(usage, "promptTokenCount") + count_of(usage, "toolUsePromptTokenCount")
    if cached > prompt:
        raise ValueError("a part exceeds its whole")
    return Usage(prompt, count_of(usage, "candidatesTokenCount") + thought, cached, thought)


def _parse_logprobs(result: Mapping[str, Any]) -> tuple[TokenLogprob, ...]:
    def entry(value: Mapping[str, Any], top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
        token = _string(value["token"])
        return TokenLogprob(token, float(value["logProbability"]), token.encode(), int(value.get("tokenId", -1)), top)

    tops = result.get("topCandidates") or []
    tops = [tuple(entry(t) for t in one.get("candidates") or []) for one in tops]
    chosen = result.get("chosenCandidates") or []
    return tuple(entry(one, tops[i] if i < len(tops) else ()) for i, one in enumerate(chosen))


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("not a string")
    return value
