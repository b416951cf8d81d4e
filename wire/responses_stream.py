"""The event stream of OpenAI's Responses API, written: items that are added, grow and are done."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from .calls_in_turn import CallsInTurn
from .chat import ChatRequest, Event, Failure, Finish, ReasoningDelta, TextDelta, ToolCall, ToolCallDelta, Usage
from .responses_items import call_item

INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}


def usage_object(usage: Usage) -> dict[str, Any]:
    """This protocol's usage."""
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def response_object(request: ChatRequest, id: str, created: int, model: str) -> dict[str, Any]:
    """A response that has begun: what was asked, told again."""
    body = request.body
    said = ("instructions", "max_output_tokens", "metadata", "previous_response_id", "prompt_cache_key", "reasoning")
    echoed = {name: body.get(name) for name in said}
    return {
        "id": id,
        "object": "response",
        "created_at": created,
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "model": model,
        "output": [],
        **echoed,
        "metadata": echoed["metadata"] or {},
        "reasoning": echoed["reasoning"] or {"effort": None, "summary": None},
        "parallel_tool_calls": request.parallel_tool_calls,
        "store": body.get("store", True) is not False,
        "temperature": request.sampling.temperature,
        "text": body.get("text") or {"format": {"type": "text"}},
        "tool_choice": body.get("tool_choice") or "auto",
        "tools": [
            t for t in body.get("tools") or [] if isinstance(t, dict) and t.get("type") in ("function", "custom", "namespace")
        ],
        "top_p": request.sampling.top_p,
        "truncation": body.get("truncation") or "disabled",
        "usage": None,
    }


class StreamRenderer:
    """Events to chunks; each is an event of the name in its `type`. `response` is the whole, once it is over."""

    def __init__(self, request: ChatRequest, id: str, created: int, model: str) -> None:
        self._tools = {tool.name: tool for tool in request.tools}
        self.response = response_object(request, id, created, model)
        self._key = id.partition("_")[2]
        self._number = -1
        self._usage = Usage(0, 0)
        self._open: str | None = None  # the kind of item being written, with a call's number
        self._item: dict[str, Any] = {}
        self._text: list[str] = []
        self._logprobs: list[dict[str, Any]] = []
        self._call = ToolCall("", "", "")
        self._before = b""  # of a plain text's event
        self._begun = self._ended = False
        self._turns = CallsInTurn()

    def plain(self, event: Event) -> bytes | None:
        """The SSE event of one that is mere text; None for any other: ask `events`."""
        if type(event) is not TextDelta or self._open != "message" or event.logprobs:
            return None
        self._text.append(event.text)
        self._number += 1
        return self._before + orjson.dumps(event.text) + b',"sequence_number":%d}\n\n' % self._number

    def events(self, event: Event) -> list[dict[str, Any]]:
        """The chunks that `event` brings."""
        return [chunk for one in self._turns.feed(event) for chunk in self._chunks(one)]

    def _chunks(self, event: Event) -> list[dict[str, Any]]:
        match event:
            case Usage():
                self._usage = event
                return self.begin()
            case TextDelta():
                return self._say(event)
            case ReasoningDelta():
                return self._reason(event)
            case ToolCallDelta():
                return self._argue(event)
            case Finish():
                return self._finish(event)
            case Failure():
                return self._fail(event)
            case _:
                return []

    def _chunk(self, kind: str, **fields: Any) -> dict[str, Any]:
        self._number += 1
        return {"type": f"response.{kind}", **fields, "sequence_number": self._number}

    def begin(self) -> list[dict[str, Any]]:
        """The chunks that come before any other, a sign of life too; [] once they have gone."""
        if self._begun:
            return []
        self._begun = True
        return [self._chunk(kind, response=dict(self.response)) for kind in ("created", "in_progress")]

    @property
    def _at(self) -> dict[str, Any]:
        return {"item_id": self._item["id"], "output_index": len(self.response["output"])}

    def _add(self, open: str, prefix: str, **item: Any) -> list[dict[str, Any]]:
        """A new item, after the end of the one before."""
        out = [*self.begin(), *self._end_item()]
        n = len(self.response["output"])
        self._open, self._text, self._logprobs = open, [], []
        self._item = {"id": f"{prefix}_{self._key}{n}", **item, "status": "in_progress"}
        return [*out, self._chunk("output_item.added", output_index=n, item=dict(self._item))]

    def _say(self, event: TextDelta) -> list[dict[str, Any]]:
        if not event.text:
            return []
        out: list[dict[str, Any]] = []
        if self._open != "message":
            out = self._add("message", "msg", type="message", role="assistant", content=[])
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            out.append(self._chunk("content_part.added", **self._at, content_index=0, part=part))
            head = {"type": "response.output_text.delta", **self._at, "content_index": 0, "logprobs": []}
            self._before = b"event: response.output_text.delta\ndata: " + orjson.dumps(head)[:-1] + b',"delta":'
        self._text.append(event.text)
        logprobs = [_logprob(lp) for lp in event.logprobs]
        self._logprobs += logprobs
        return [*out, self._chunk("output_text.delta", **self._at, content_index=0, delta=event.text, logprobs=logprobs)]

    def _reason(self, event: ReasoningDelta) -> list[dict[str, Any]]:
        out: list[dict[str, Any]] = []
        if self._open != "reasoning":
            out = self._add("reasoning", "rs", type="reasoning", summary=[])
            part = {"type": "summary_text", "text": ""}
            out.append(self._chunk("reasoning_summary_part.added", **self._at, summary_index=0, part=part))
        if event.signature:
            self._item["encrypted_content"] = self._item.get("encrypted_content", "") + event.signature
        if not event.text:
            return out
        self._text.append(event.text)
        return [*out, self._chunk("reasoning_summary_text.delta", **self._at, summary_index=0, delta=event.text)]

    def _argue(self, event: ToolCallDelta) -> list[dict[str, Any]]:
        out: list[dict[str, Any]] = []
        if self._open != f"call {event.call}":
            call = ToolCall(event.id or f"call_{self._key}{event.call}", event.name or "", "")
            item = call_item(call, self._tools.get(call.name))
            freeform = item["type"] == "custom_tool_call"
            if freeform:
                item["input"] = ""
            out = self._add(f"call {event.call}", "ctc" if freeform else "fc", **item)
            self._call = call
        if not event.arguments:
            return out
        self._text.append(event.arguments)
        if self._item["type"] == "custom_tool_call":
            return out  # it is known when it is whole
        return [*out, self._chunk("function_call_arguments.delta", **self._at, delta=event.arguments)]

    def _end_item(self) -> list[dict[str, Any]]:
        if self._open is None:
            return []
        text, at, out = "".join(self._text), self._at, list[dict[str, Any]]()
        match self._item["type"]:
            case "message":
                part = {"type": "output_text", "text": text, "annotations": [], "logprobs": self._logprobs}
                out.append(self._chunk("output_text.done", **at, content_index=0, text=text, logprobs=self._logprobs))
                out.append(self._chunk("content_part.done", **at, content_index=0, part=part))
                self._item["content"] = [part]
            case "reasoning":
                part = {"type": "summary_text", "text": text}
                out.append(self._chunk("reasoning_summary_text.done", **at, summary_index=0, text=text))
                out.append(self._chunk("reasoning_summary_part.done", **at, summary_index=0, part=part))
                self._item["summary"] = [part]
            case kind:
                whole = ToolCall(self._call.id, self._call.name, text or "{}")
                self._item |= call_item(whole, self._tools.get(whole.name))
                if kind == "custom_tool_call":
                    given = self._item["input"]
                    out.append(self._chunk("custom_tool_call_input.delta", **at, delta=given))
                    out.append(self._chunk("custom_tool_call_input.done", **at, input=given))
                else:
                    out.append(self._chunk("function_call_arguments.done", **at, name=whole.name, arguments=whole.arguments))
        self._item["status"] = "completed"
        out.append(self._chunk("output_item.done", output_index=at["output_index"], item=dict(self._item)))
        self.response["output"].append(self._item)
        self._open = None
        return out

    def _finish(self, event: Finish) -> list[dict[str, Any]]:
        if self._ended:
            return []
        self._ended = True
        out = [*self.begin(), *self._end_item()]
        reason = INCOMPLETE.get(event.reason)
        status = "incomplete" if reason else "completed"
        details = {"reason": reason} if reason else None
        self.response |= {"status": status, "incomplete_details": details, "usage": usage_object(self._usage)}
        return [*out, self._chunk(status, response=dict(self.response))]

    def _fail(self, failure: Failure) -> list[dict[str, Any]]:
        self._ended = True
        out = self.begin()
        code = {429: "rate_limit_exceeded"}.get(failure.status, failure.code or "server_error")
        self.response |= {"status": "failed", "error": {"code": code, "message": failure.message}}
        return [*out, self._chunk("failed", response=dict(self.response))]


def _logprob(entry: Any) -> dict[str, Any]:
    own = {"token": entry.token, "logprob": max(entry.logprob, -9999.0), "bytes": list(entry.bytes)}
    return {**own, "top_logprobs": [{k: v for k, v in _logprob(t).items() if k != "top_logprobs"} for t in entry.top]}


def render_whole(request: ChatRequest, events: Sequence[Event], id: str, created: int, model: str) -> dict[str, Any]:
    """The whole answer as one object: what a stream would have ended with."""
    renderer = StreamRenderer(request, id, created, model)
    for event in events:
        renderer.events(event)
    return json.loads(json.dumps(renderer.response))


def render_cut(failure: Failure) -> Mapping[str, Any]:
    """The last chunk of a stream whose renderer failed."""
    error = {"code": failure.code, "message": failure.message}
    return {"type": "response.failed", "response": {"object": "response", "status": "failed", "error": error}}
