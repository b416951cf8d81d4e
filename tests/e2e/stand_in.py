"""A supplier in a thread: it speaks the four wire formats as the vendors' servers do, and says what it is told to say."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Json = dict[str, Any]
KEY = "sk-stand-in"
PROMPT_TOKENS, ANSWER_TOKENS = 40, 7  # of every answer


@dataclass(frozen=True)
class Reply:
    """Words, and perhaps a call: (name, arguments)."""

    text: str = ""
    call: tuple[str, Json] | None = None


@dataclass
class Asked:
    """One request, as far as whoever answers needs it."""

    kind: str
    body: Json
    said: list[tuple[str, str]] = field(default_factory=list)  # (role, text) of each turn
    results: list[tuple[str, str]] = field(default_factory=list)  # (id or name of the call, text) of each tool's result
    tools: list[str] = field(default_factory=list)


@dataclass
class StandIn:
    """`asked` grows with every request; `answer` makes the replies."""

    url: str
    answer: Callable[[Asked], Reply]
    asked: list[Asked] = field(default_factory=list)

    def section(self, name: str, kind: str) -> str:
        """Its configuration as the supplier `name` that speaks `kind`."""
        base = f"{self.url}/v1" if kind.startswith("openai") else self.url
        models = 'models = [{id = "big", context_length = 200000, tools = true, vision = true}]'
        return f'[suppliers.{name}]\nkind = "{kind}"\nbase_url = "{base}"\napi_key_env = "STAND_IN_KEY"\n{models}\n'


@contextmanager
def stand_in(answer: Callable[[Asked], Reply]) -> Iterator[StandIn]:
    """One that runs for as long as the block does."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        server.stand_in = StandIn(f"http://127.0.0.1:{server.server_port}", answer)  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.stand_in  # type: ignore[attr-defined]
        server.shutdown()


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        path = self.path.partition("?")[0]
        kind, read, write, key = next(found for ending, found in SPOKEN.items() if path.endswith(ending))
        self.send_response(200 if KEY in (self.headers[key] or "") else 401)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        asked = read(body)
        self.server.stand_in.asked.append(asked)  # type: ignore[attr-defined]
        for event in write(self.server.stand_in.answer(asked)):  # type: ignore[attr-defined]
            head = f"event: {event['type']}\n" if kind in ("openai_responses", "anthropic_messages") else ""
            self.wfile.write(f"{head}data: {json.dumps(event)}\n\n".encode())
        if kind == "openai_chat":
            self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, format: str, *args: object) -> None:
        pass


def _text(content: Any) -> str:
    if isinstance(content, str) or content is None:
        return content or ""
    return "".join(part.get("text", "") for part in content)


# ------------------------------------------------------------------------------------------- OpenAI's chat completions


def _read_chat(body: Json) -> Asked:
    asked = Asked("openai_chat", body, tools=[tool["function"]["name"] for tool in body.get("tools", [])])
    for message in body["messages"]:
        if message["role"] == "tool":
            asked.results.append((message["tool_call_id"], _text(message["content"])))
        else:
            asked.said.append((message["role"], _text(message.get("content"))))
    return asked


def _halves(text: str) -> tuple[str, str]:
    return text[: len(text) // 2], text[len(text) // 2 :]


def _write_chat(reply: Reply) -> Iterator[Json]:
    def chunk(delta: Json, finish: str | None = None) -> Json:
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
        return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "big", "choices": [choice]}

    yield chunk({"role": "assistant", "content": ""})
    for half in _halves(reply.text):
        yield chunk({"content": half})
    if reply.call:
        name, arguments = reply.call
        yield chunk(
            {"tool_calls": [{"index": 0, "id": "call_7", "type": "function", "function": {"name": name, "arguments": ""}}]}
        )
        for half in _halves(json.dumps(arguments)):
            yield chunk({"tool_calls": [{"index": 0, "function": {"arguments": half}}]})
    yield chunk({}, "tool_calls" if reply.call else "stop")
    yield chunk({}) | {
        "choices": [],
        "usage": {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": ANSWER_TOKENS, "total_tokens": 47},
    }


# ------------------------------------------------------------------------------------------- OpenAI's responses


def _read_responses(body: Json) -> Asked:
    asked = Asked("openai_responses", body, tools=[tool.get("name", tool["type"]) for tool in body.get("tools", [])])
    items = body["input"] if isinstance(body["input"], list) else [{"role": "user", "content": body["input"]}]
    for item in items:
        if item.get("type") == "function_call_output":
            asked.results.append((item["call_id"], _text(item["output"])))
        elif item.get("type", "message") == "message":
            asked.said.append((item["role"], _text(item["content"])))
    return asked


def _write_responses(reply: Reply) -> Iterator[Json]:
    whole: Json = {"id": "resp_1", "object": "response", "status": "in_progress", "output": [], "model": "big"}
    output: list[Json] = []
    yield {"type": "response.created", "response": whole}
    yield {"type": "response.in_progress", "response": whole}
    if reply.text:
        at = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
        part = {"type": "output_text", "text": reply.text, "annotations": []}
        item = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [part]}
        yield {"type": "response.output_item.added", "output_index": 0, "item": item | {"status": "in_progress", "content": []}}
        yield {"type": "response.content_part.added", **at, "part": part | {"text": ""}}
        for half in _halves(reply.text):
            yield {"type": "response.output_text.delta", **at, "delta": half}
        yield {"type": "response.output_text.done", **at, "text": reply.text}
        yield {"type": "response.content_part.done", **at, "part": part}
        yield {"type": "response.output_item.done", "output_index": 0, "item": item}
        output.append(item)
    if reply.call:
        n, arguments = len(output), json.dumps(reply.call[1])
        at = {"item_id": "fc_7", "output_index": n}
        item = {"type": "function_call", "id": "fc_7", "call_id": "call_7", "name": reply.call[0], "arguments": arguments}
        yield {"type": "response.output_item.added", "output_index": n, "item": item | {"arguments": ""}}
        for half in _halves(arguments):
            yield {"type": "response.function_call_arguments.delta", **at, "delta": half}
        yield {"type": "response.function_call_arguments.done", **at, "arguments": arguments}
        yield {"type": "response.output_item.done", "output_index": n, "item": item | {"status": "completed"}}
        output.append(item)
    usage = {"input_tokens": PROMPT_TOKENS, "output_tokens": ANSWER_TOKENS, "total_tokens": 47}
    yield {"type": "response.completed", "response": whole | {"status": "completed", "output": output, "usage": usage}}


# ------------------------------------------------------------------------------------------- Anthropic's messages


def _read_messages(body: Json) -> Asked:
    asked = Asked("anthropic_messages", body, tools=[tool["name"] for tool in body.get("tools", [])])
    if body.get("system"):
        asked.said.append(("system", _text(body["system"])))
    for message in body["messages"]:
        content = message["content"]
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
        asked.results += [(b["tool_use_id"], _text(b.get("content"))) for b in blocks if b["type"] == "tool_result"]
        if texts := [b for b in blocks if b["type"] == "text"]:
            asked.said.append((message["role"], _text(texts)))
    return asked


def _write_messages(reply: Reply) -> Iterator[Json]:
    usage = {"input_tokens": PROMPT_TOKENS, "output_tokens": 1}
    head = {"id": "msg_1", "type": "message", "role": "assistant", "model": "big", "content": [], "stop_reason": None}
    yield {"type": "message_start", "message": {**head, "stop_sequence": None, "usage": usage}}
    yield {"type": "ping"}
    n = 0
    if reply.text:
        yield {"type": "content_block_start", "index": n, "content_block": {"type": "text", "text": ""}}
        for half in _halves(reply.text):
            yield {"type": "content_block_delta", "index": n, "delta": {"type": "text_delta", "text": half}}
        yield {"type": "content_block_stop", "index": n}
        n += 1
    if reply.call:
        block = {"type": "tool_use", "id": "toolu_7", "name": reply.call[0], "input": {}}
        yield {"type": "content_block_start", "index": n, "content_block": block}
        for half in _halves(json.dumps(reply.call[1])):
            yield {"type": "content_block_delta", "index": n, "delta": {"type": "input_json_delta", "partial_json": half}}
        yield {"type": "content_block_stop", "index": n}
    delta = {"stop_reason": "tool_use" if reply.call else "end_turn", "stop_sequence": None}
    yield {"type": "message_delta", "delta": delta, "usage": {"output_tokens": ANSWER_TOKENS}}
    yield {"type": "message_stop"}


# ------------------------------------------------------------------------------------------- Google's generateContent


def _read_generate(body: Json) -> Asked:
    tools = [one["name"] for tool in body.get("tools", []) for one in tool.get("functionDeclarations", [])]
    asked = Asked("google_generate", body, tools=tools)
    if system := body.get("systemInstruction"):
        asked.said.append(("system", _text(system["parts"])))
    for content in body["contents"]:
        results = [part["functionResponse"] for part in content["parts"] if "functionResponse" in part]
        asked.results += [(result["name"], json.dumps(result["response"])) for result in results]
        if texts := [part for part in content["parts"] if "text" in part]:
            asked.said.append((content["role"], _text(texts)))
    return asked


def _write_generate(reply: Reply) -> Iterator[Json]:
    def chunk(parts: list[Json], **more: Any) -> Json:
        return {"candidates": [{"content": {"role": "model", "parts": parts}, "index": 0, **more}], "modelVersion": "big"}

    for half in _halves(reply.text):
        yield chunk([{"text": half}])
    if reply.call:
        yield chunk([{"functionCall": {"name": reply.call[0], "args": reply.call[1]}}])
    usage = {"promptTokenCount": PROMPT_TOKENS, "candidatesTokenCount": ANSWER_TOKENS, "totalTokenCount": 47}
    yield chunk([], finishReason="STOP") | {"usageMetadata": usage}


# By the path's ending: its protocol, reader and writer, and the header that has the key.
SPOKEN: dict[str, tuple[str, Callable[[Json], Asked], Callable[[Reply], Iterator[Json]], str]] = {
    "/chat/completions": ("openai_chat", _read_chat, _write_chat, "authorization"),
    "/responses": ("openai_responses", _read_responses, _write_responses, "authorization"),
    "/v1/messages": ("anthropic_messages", _read_messages, _write_messages, "x-api-key"),
    ":streamGenerateContent": ("google_generate", _read_generate, _write_generate, "x-goog-api-key"),
}
KINDS = [kind for kind, *_ in SPOKEN.values()]
