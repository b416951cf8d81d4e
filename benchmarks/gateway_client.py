"""The gateway benchmark's client: one kept connection for each client, HTTP parsed in C, no work beside the request.

It shares two cores with what it measures, so a request costs it some 30 us and not the 300 of a full HTTP client.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httptools
import orjson

from .stand_in import words


@dataclass(frozen=True, slots=True)
class Target:
    """Where to ask for what: `url` up to and without /v1."""

    url: str
    model: str
    headers: Mapping[str, str] = field(default_factory=dict)

    def request(self, streaming: bool) -> bytes:
        """The one request that is sent again and again, as an HTTP message."""
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [
                {"role": "system", "content": "You answer in one sentence."},
                {"role": "user", "content": "What is a gateway for?"},
            ],
            "max_tokens": 64,
            "temperature": 0.7,
            **({"stream": True, "stream_options": {"include_usage": True}} if streaming else {}),
        }
        data = orjson.dumps(body)
        head = {"host": urlsplit(self.url).netloc, "content-type": "application/json", "content-length": str(len(data))}
        lines = "".join(f"{name}: {value}\r\n" for name, value in (head | dict(self.headers)).items())
        path = urlsplit(self.url).path.rstrip("/") + "/v1/chat/completions"
        return f"POST {path} HTTP/1.1\r\n{lines}\r\n".encode() + data


@dataclass(slots=True)
class Answers:
    """What came back. Seconds; `errors` counts answers that were not the stand-in's whole words."""

    whole_s: list[float] = field(default_factory=list)  # to the last byte
    first_s: list[float] = field(default_factory=list)  # of a stream, to the first word
    errors: dict[str, int] = field(default_factory=dict)


class Client(asyncio.Protocol):
    """One client. `ask` sends a request and returns when the answer is there."""

    def __init__(self, request: bytes, streaming: bool, tokens: int, into: Answers) -> None:
        self._request, self._streaming, self._into = request, streaming, into
        self._first, self._text = words(tokens)[0].encode(), "".join(words(tokens))
        self._last = words(tokens)[-1].encode()
        self._transport: asyncio.Transport | None = None
        self._done: asyncio.Future[None] | None = None

    async def ask(self, host: str, port: int) -> None:
        """One request over the connection that is open, or a new one."""
        loop = asyncio.get_running_loop()
        if self._transport is None:
            await loop.create_connection(lambda: self, host, port)
        self._body, self._seen, self._done = bytearray(), False, loop.create_future()
        self._parser = httptools.HttpResponseParser(self)
        self._sent = time.perf_counter()
        assert self._transport
        self._transport.write(self._request)
        await self._done

    def close(self) -> None:
        """Let the connection go."""
        if self._transport:
            self._transport.close()

    # ------------------------------------------------------------------------------------------------------ callbacks

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._done and not self._done.done():
            self._note("connection lost")

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.close()

    def on_body(self, body: bytes) -> None:
        self._body += body
        if self._streaming and not self._seen and self._first in self._body:
            self._seen = True
            self._into.first_s.append(time.perf_counter() - self._sent)

    def on_message_complete(self) -> None:
        if not self._parser.should_keep_alive():
            self.close()
            self._transport = None
        if self._parser.get_status_code() != 200:
            self._note(f"http {self._parser.get_status_code()}")
        elif not self._is_whole():
            self._note("not the answer")
        else:
            self._into.whole_s.append(time.perf_counter() - self._sent)
            self._note("")

    def _is_whole(self) -> bool:
        if self._streaming:
            return self._last in self._body and self._body.rstrip().endswith(b"data: [DONE]")
        return orjson.loads(bytes(self._body))["choices"][0]["message"]["content"] == self._text

    def _note(self, error: str) -> None:
        if error:
            self._into.errors[error] = self._into.errors.get(error, 0) + 1
        if self._done and not self._done.done():
            self._done.set_result(None)


async def closed_loop(
    target: Target, clients: int, tokens: int, *, streaming: bool, requests: int | None = None, duration_s: float | None = None
) -> tuple[Answers, float]:
    """`clients` ask until `requests` were sent or `duration_s` is over; the answers, and the seconds it took."""
    answers, request = Answers(), target.request(streaming)
    host, port = urlsplit(target.url).hostname or "", urlsplit(target.url).port or 80
    left = [requests]
    begun = time.perf_counter()

    async def one() -> None:
        client = Client(request, streaming, tokens, answers)
        while left[0] != 0 and (duration_s is None or time.perf_counter() - begun < duration_s):
            if left[0] is not None:
                left[0] -= 1
            await client.ask(host, port)
        client.close()

    await asyncio.gather(*(one() for _ in range(clients)))
    return answers, time.perf_counter() - begun
