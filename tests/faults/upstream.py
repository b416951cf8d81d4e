"""A supplier that fails in every way that a server can, in each of the four wire formats."""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

from baseload.wire.backend import ModelInfo
from baseload.wire.client import Connection, HttpBackend
from baseload.wire.egress import Egress, EgressRecord

Writer = asyncio.StreamWriter
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"


def chunk(text: str = "", finish: str | None = None, **more: Any) -> bytes:
    choice = {"index": 0, "delta": {"content": text} if text else {}, "finish_reason": finish}
    return b"data: " + json.dumps({"choices": [choice], **more}).encode() + b"\n\n"


USAGE = b'data: {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}\n\n'
DONE = b"data: [DONE]\n\n"
GOOD = HEAD + chunk("hel") + chunk("lo", "stop") + USAGE + DONE


def status(code: int, *headers: str, body: bytes = b'{"error": {"message": "secret details"}}') -> bytes:
    lines = [
        f"HTTP/1.1 {code} X",
        "content-type: application/json",
        f"content-length: {len(body)}",
        "connection: close",
        *headers,
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@dataclass(frozen=True)
class Speech:
    """How a protocol's server says a word, ends well, and misbehaves in its own ways."""

    word: bytes
    end: bytes
    in_stream_error: bytes
    bad_usage: bytes

    @property
    def good(self) -> bytes:
        return HEAD + self.word + self.end


def event(**fields: Any) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def _messages() -> Speech:
    begin = event(type="message_start", message={"usage": {"input_tokens": 3}})
    block = event(type="content_block_start", index=0, content_block={"type": "text", "text": ""})
    delta = event(type="content_block_delta", index=0, delta={"type": "text_delta", "text": "hello"})
    stop = event(type="message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 2})
    error = event(type="error", error={"type": "overloaded_error", "message": "overloaded"})
    wrong = event(type="message_start", message={"usage": {"input_tokens": -3}})
    return Speech(begin + block + delta, stop + event(type="message_stop"), error, wrong)


def _responses() -> Speech:
    delta = event(type="response.output_text.delta", delta="hello")
    usage = {"input_tokens": 3, "output_tokens": 2}
    error = event(type="response.failed", response={"error": {"code": "server_error", "message": "overloaded"}})
    wrong = event(type="response.completed", response={"usage": {"input_tokens": -3}})
    return Speech(delta, event(type="response.completed", response={"status": "completed", "usage": usage}), error, wrong)


def _generate() -> Speech:
    content = {"role": "model", "parts": [{"text": "hello"}]}
    usage = {"promptTokenCount": 3, "candidatesTokenCount": 2, "totalTokenCount": 5}
    end = event(candidates=[{"content": {"parts": []}, "finishReason": "STOP"}], usageMetadata=usage)
    error = event(error={"code": 503, "message": "overloaded", "status": "UNAVAILABLE"})
    return Speech(event(candidates=[{"content": content}]), end, error, event(usageMetadata={"promptTokenCount": -1}))


SPEECHES = {
    "openai_chat": Speech(
        chunk("hello"),
        chunk("", "stop") + USAGE + DONE,
        b'data: {"error": {"message": "overloaded"}}\n\n',
        b'data: {"usage": {"prompt_tokens": -1}, "choices": []}\n\n',
    ),
    "openai_responses": _responses(),
    "anthropic_messages": _messages(),
    "google_generate": _generate(),
}


def faults(of: Speech) -> dict[str, tuple[bytes, str]]:
    """name -> (what is sent, whether the connection is then cut, left open, or closed)"""
    return {
        "reset before a byte": (b"", "reset"),
        "closed before a byte": (b"", "close"),
        "500": (status(500), "close"),
        "503": (status(503), "close"),
        "529": (status(529), "close"),
        "429": (status(429), "close"),
        "429 with a pause": (status(429, "retry-after: 0"), "close"),
        "200 with an error object": (status(200), "close"),
        "200 with html": (status(200, body=b"<html>"), "close"),
        "redirect": (status(302, "location: http://127.0.0.1:1/"), "close"),
        "error in the stream": (HEAD + of.in_stream_error, "close"),
        "cut after some words": (HEAD + of.word, "reset"),
        "no finish": (HEAD + of.word + DONE, "close"),
        "stall before a word": (HEAD, "stall"),
        "stall after a word": (HEAD + of.word, "stall"),
        "no headers": (b"", "stall"),
        "garbage events": (HEAD + b"data: {nonsense\n\n", "close"),
        "garbage bytes": (b"\x00\xff" * 100, "close"),
        "an endless line": (HEAD + b"data: " + b"x" * (3 << 20), "close"),
        "compressed": (HEAD.replace(b"\r\n\r\n", b"\r\ncontent-encoding: gzip\r\n\r\n") + b"\x1f\x8b", "close"),
        "negative usage": (HEAD + of.bad_usage, "close"),
        "half a character": (HEAD + of.word.replace(b"hello", b"\\ud800"), "close"),
    }


class Upstream:
    """Sends the scripted bytes, one script for each connection; the last one again and again."""

    def __init__(self, scripts: list[tuple[bytes, str]]) -> None:
        self.scripts, self.calls, self.bodies = scripts, 0, list[dict[str, Any]]()
        self.keys: list[str] = []
        self.paths: list[str] = []
        self.gone = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: Writer) -> None:
        data, after = self.scripts[min(self.calls, len(self.scripts) - 1)]
        self.calls += 1
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            self.paths.append(head.split(" ")[1])
            size = int(head.partition("content-length:")[2].split("\r\n")[0])
            self.keys.append(head.partition("idempotency-key:")[2].split("\r\n")[0].strip())
            self.bodies.append(json.loads(await reader.readexactly(size)))
            writer.write(data)
            await writer.drain()
            if after == "stall":
                await reader.read()
                self.gone.set()
        if after == "reset":
            writer.transport.abort()
        writer.close()


@asynccontextmanager
async def upstream(
    *scripts: tuple[bytes, str], protocol: str = "openai_chat", patience_s: float = 0.3
) -> AsyncGenerator[tuple[Upstream, HttpBackend], None]:
    source = Upstream(list(scripts))
    server = await asyncio.start_server(source.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    url = f"http://127.0.0.1:{port}/v1"
    at = Connection("acme", url, protocol, first_byte_s=patience_s, connect_s=patience_s, between_bytes_s=patience_s)
    backend = HttpBackend(at, [ModelInfo("acme/big", 9000, local=False)], Egress(frozenset(), nobody))
    try:
        yield source, backend
    finally:
        await backend.close()
        server.close()


async def nobody(record: EgressRecord) -> None:
    raise AssertionError("loopback is not recorded")
