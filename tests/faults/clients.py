"""The protocols' streams as their clients read them, and requests to an application without a network."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

USER = [{"role": "user", "content": "hi"}]
Json = dict[str, Any]


def said(body: str) -> list[Json]:
    """The events of a stream; what is no event makes this fail."""
    lines = [line for line in body.split("\n") if line and not line.startswith((":", "event:"))]
    return [json.loads(line.removeprefix("data: ")) for line in lines if line != "data: [DONE]"]


# Each says how a stream of its protocol ended: "whole", "failed", or why that can't be told.


def chat(body: str) -> str:
    events = said(body)
    if not body.endswith("data: [DONE]\n\n") or body.count("[DONE]") != 1:
        return "no last word"
    finishes = [c["finish_reason"] for e in events for c in e.get("choices", ()) if c["finish_reason"]]
    errors = [e for e in events if "error" in e]
    return {(1, 0): "whole", (0, 1): "failed"}.get((len(finishes), len(errors)), f"{finishes} {errors}")


def responses(body: str) -> str:
    kinds = [e["type"] for e in said(body)]
    ends = [k for k in kinds if k in ("response.completed", "response.failed", "response.incomplete")]
    if len(ends) != 1 or kinds[-1] != ends[0]:
        return str(kinds)
    return "failed" if ends == ["response.failed"] else "whole"


def messages(body: str) -> str:
    kinds = [e["type"] for e in said(body)]
    ends = [k for k in kinds if k in ("message_stop", "error")]
    return {"message_stop": "whole", "error": "failed"}[kinds[-1]] if len(ends) == 1 == kinds.count(kinds[-1]) else str(kinds)


def generate(body: str) -> str:
    events = said(body)
    finishes = [c["finishReason"] for e in events for c in e.get("candidates", ()) if c.get("finishReason")]
    errors = [e for e in events if "error" in e]
    return {(1, 0): "whole", (0, 1): "failed"}.get((len(finishes), len(errors)), f"{finishes} {errors}")


def ollama(body: str) -> str:
    events = said(body)
    done, errors = [e for e in events if e.get("done")], [e for e in events if "error" in e]
    return {(1, 0): "whole", (0, 1): "failed"}.get((len(done), len(errors)), f"{done} {errors}")


MODEL = {"model": "acme/big", "messages": USER, "stream": True}
CLIENTS: dict[str, tuple[str, Json, Callable[[str], str]]] = {
    "chat": ("/v1/chat/completions", MODEL, chat),
    "responses": ("/v1/responses", {"model": "acme/big", "input": "hi", "stream": True}, responses),
    "messages": ("/v1/messages", MODEL | {"max_tokens": 99}, messages),
    "generate": ("/v1beta/models/acme/big:streamGenerateContent", {"contents": [{"parts": [{"text": "hi"}]}]}, generate),
    "ollama": ("/api/chat", MODEL, ollama),
}


async def post(app: Any, path: str, body: Json) -> tuple[int, str, str]:
    """(status, text, id) of one request to the application, without a network."""
    data = json.dumps(body).encode()
    headers = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json"), (b"content-length", b"%d" % len(data))]
    scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
             "path": path, "raw_path": path.encode(), "query_string": b"", "headers": headers, "client": ("127.0.0.1", 1),
             "server": ("127.0.0.1", 8787)}  # fmt: skip
    came = iter([{"type": "http.request", "body": data, "more_body": False}])
    sent: list[Json] = []

    async def receive() -> Json:
        return next(came, None) or await asyncio.Event().wait()  # type: ignore[return-value]

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, send)
    text = b"".join(m.get("body", b"") for m in sent[1:]).decode()
    return sent[0]["status"], text, dict(sent[0]["headers"])[b"x-baseload-request-id"].decode()
