"""A supplier that thinks of nothing: OpenAI's chat completions, streamed or not, from bytes that were made beforehand.

It is there to be no bottleneck: asyncio's protocols and an HTTP parser in C, no framework; one write for an answer that comes
at once. What it answers is `w0 w1 ...`, one word a token. `python -m baseload.benchmarks.stand_in --port 9201`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httptools
import orjson
import uvloop

MODEL = "stand-in"
PROMPT_TOKENS = 12
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\n%b\r\n\r\n"
STREAM_HEAD = HEAD % (b"text/event-stream", b"transfer-encoding: chunked")
LAST_CHUNK = b"0\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Pace:
    """How an answer comes. Seconds."""

    tokens: int = 16
    first_s: float = 0.0  # before an answer's first byte
    gap_s: float = 0.0  # between a stream's tokens


def words(tokens: int) -> list[str]:
    """What the answer says, a word for each token."""
    return [f"w{n} " for n in range(tokens)]


def whole(tokens: int) -> bytes:
    """The answer at once, as an HTTP message."""
    message = {"role": "assistant", "content": "".join(words(tokens)), "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    return _json({**_named("chat.completion"), "choices": [choice], "usage": _usage(tokens)})


def events(tokens: int, with_usage: bool) -> list[bytes]:
    """The answer as a stream's events, each an HTTP chunk: a role, the words, the end."""
    deltas = [({"role": "assistant", "content": ""}, None), *(({"content": w}, None) for w in words(tokens)), ({}, "stop")]
    said = [
        {**_named("chat.completion.chunk"), "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}
        for delta, finish in deltas
    ]
    if with_usage:
        said.append({**_named("chat.completion.chunk"), "choices": [], "usage": _usage(tokens)})
    lines = [b"data: %b\n\n" % data for data in (*map(orjson.dumps, said), b"[DONE]")]
    return [b"%x\r\n%b\r\n" % (len(line), line) for line in lines]


def _named(kind: str) -> dict[str, Any]:
    return {"id": "chatcmpl-standin", "object": kind, "created": 1700000000, "model": MODEL}


def _usage(tokens: int) -> dict[str, int]:
    return {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": tokens, "total_tokens": PROMPT_TOKENS + tokens}


def _json(value: Any) -> bytes:
    body = orjson.dumps(value)
    return HEAD % (b"application/json", b"content-length: %d" % len(body)) + body


class StandIn(asyncio.Protocol):
    """One connection, kept open; one request at a time."""

    def __init__(self, pace: Pace, answers: dict[str, Any]) -> None:
        self._pace, self._answers = pace, answers
        self._parser = httptools.HttpRequestParser(self)
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport

    def connection_lost(self, exc: Exception | None) -> None:
        if self._task:
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.close()

    def on_message_begin(self) -> None:
        self._url, self._body = b"", b""

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        if not self._url.endswith(b"/chat/completions"):
            self._transport.write(self._answers["models"])
            return
        asked = orjson.loads(self._body)
        if asked.get("stream"):
            parts = self._answers["usage" if (asked.get("stream_options") or {}).get("include_usage") else "stream"]
        else:
            parts = [self._answers["whole"]]
        if self._pace.first_s or (len(parts) > 1 and self._pace.gap_s):
            self._task = asyncio.create_task(self._slowly(parts))
        else:
            self._transport.write(b"".join(parts))

    async def _slowly(self, parts: Sequence[bytes]) -> None:
        await asyncio.sleep(self._pace.first_s)
        for n, part in enumerate(parts):
            if n:
                await asyncio.sleep(self._pace.gap_s)
            self._transport.write(part)


async def listen(port: int, pace: Pace, host: str = "127.0.0.1") -> asyncio.Server:
    """Start answering; port 0 takes a free one."""
    streams = {
        name: [STREAM_HEAD, *events(pace.tokens, with_usage), LAST_CHUNK]
        for name, with_usage in (("stream", False), ("usage", True))
    }
    models = _json({"object": "list", "data": [{"id": MODEL, "object": "model", "created": 0, "owned_by": "stand-in"}]})
    answers = {"whole": whole(pace.tokens), "models": models, **streams}
    return await asyncio.get_running_loop().create_server(lambda: StandIn(pace, answers), host, port, backlog=2048)


async def _serve(port: int, pace: Pace, host: str) -> None:
    server = await listen(port, pace, host)
    print(f"listening on {host}:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


def main(words: Sequence[str] | None = None) -> int:
    """Serve until killed."""
    parser = argparse.ArgumentParser(prog="stand_in", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9201)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--first-ms", type=float, default=0.0, help="before an answer's first byte")
    parser.add_argument("--gap-ms", type=float, default=0.0, help="between a stream's tokens")
    given = parser.parse_args(words)
    pace = Pace(given.tokens, given.first_ms / 1000, given.gap_ms / 1000)
    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(_serve(given.port, pace, given.host))
    return 0


if __name__ == "__main__":
    sys.exit(main())
