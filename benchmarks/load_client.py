"""The load client: streams answers from any OpenAI-compatible server and notes when each piece arrived.

Closed loop: a fixed number of clients, each of which asks again when it has been answered. Open loop: requests leave when
they are due, however busy the server is, and every latency counts from that moment, so that a server which stalls cannot hide
it by holding up the client (coordinated omission). All times are `time.perf_counter()` seconds.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import orjson

from .prompts import Prompt

PATHS = {"chat": "/chat/completions", "completions": "/completions"}


@dataclass(frozen=True, slots=True)
class Target:
    """Where and how to ask. `fields` goes into every request's body."""

    base_url: str  # ends in /v1
    model: str
    endpoint: str = "chat"
    headers: Mapping[str, str] = field(default_factory=dict)
    fields: Mapping[str, Any] = field(default_factory=dict)
    timeout_s: float = 600.0

    def session(self) -> aiohttp.ClientSession:
        """A session with no limit on connections: the loop that uses it sets the limit."""
        # A connection for each request: some servers close a kept one just as the next request goes out on it.
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        timeout = aiohttp.ClientTimeout(total=self.timeout_s, sock_connect=min(30.0, self.timeout_s))
        return aiohttp.ClientSession(connector=connector, timeout=timeout, headers=self.headers)


@dataclass(slots=True)
class Result:
    """One request's story. `error` is None if it was answered in full."""

    due: float  # when it was meant to leave
    sent: float
    ended: float = 0.0
    first: float | None = None  # first text
    last: float | None = None  # last text
    gaps: list[float] = field(default_factory=list)  # between pieces of text
    chunks: int = 0  # pieces of text
    prompt_tokens: int | None = None  # None where the server sent no usage
    output_tokens: int | None = None
    cached_tokens: int | None = None
    finish: str | None = None
    error: str | None = None

    @property
    def tokens(self) -> int:
        """Output tokens, by the server's count or else by pieces of text."""
        return self.chunks if self.output_tokens is None else self.output_tokens

    @property
    def ttft(self) -> float | None:
        return None if self.first is None else self.first - self.due

    @property
    def e2e(self) -> float:
        return self.ended - self.due

    @property
    def tpot(self) -> float | None:
        """Seconds per output token after the first; None for fewer than two."""
        if self.first is None or self.last is None or self.tokens < 2:
            return None
        return (self.last - self.first) / (self.tokens - 1)


async def ask(session: aiohttp.ClientSession, target: Target, prompt: Prompt, due: float | None = None) -> Result:
    """Send one request and read its stream to the end. Never raises: what goes wrong is the result's `error`."""
    body = {"model": target.model, **prompt.body(target.endpoint), **target.fields, "stream": True}
    body["stream_options"] = {"include_usage": True}
    now = time.perf_counter()
    result = Result(due=now if due is None else due, sent=now)
    try:
        data, headers = orjson.dumps(body), {"content-type": "application/json"}
        async with session.post(target.base_url + PATHS[target.endpoint], data=data, headers=headers) as response:
            if response.status != 200:
                await response.read()
                result.error = f"http {response.status}"
            else:
                await _read_stream(response, result)
    except TimeoutError:
        result.error = "timeout"
    except aiohttp.ClientConnectorError:
        result.error = "connect"
    except (aiohttp.ClientError, OSError):
        result.error = "connection lost"
    except (ValueError, KeyError, TypeError, AttributeError):
        result.error = "bad stream"
    result.ended = time.perf_counter()
    return result


async def _read_stream(response: aiohttp.ClientResponse, result: Result) -> None:
    done = False
    async for at, data in _server_sent_events(response):
        if data == b"[DONE]":
            done = True
        else:
            _read_chunk(orjson.loads(data), at, result)
        if result.error:
            return
    if not done or result.finish is None:
        result.error = "cut short"


async def _server_sent_events(response: aiohttp.ClientResponse) -> AsyncIterator[tuple[float, bytes]]:
    rest = b""
    async for block in response.content.iter_any():
        at = time.perf_counter()
        *lines, rest = (rest + block).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield at, line[5:].strip()


def _read_chunk(chunk: dict[str, Any], at: float, result: Result) -> None:
    if "error" in chunk:
        result.error = "error event"
        return
    if usage := chunk.get("usage"):
        result.prompt_tokens, result.output_tokens = usage["prompt_tokens"], usage["completion_tokens"]
        result.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
    for choice in chunk.get("choices") or ():
        result.finish = choice.get("finish_reason") or result.finish
        if _has_text(choice):
            _note_text(result, at)


def _has_text(choice: dict[str, Any]) -> bool:
    delta = choice.get("delta") or {}
    parts = (choice.get("text"), delta.get("content"), delta.get("reasoning_content"), delta.get("reasoning"))
    return any(parts) or bool(delta.get("tool_calls"))


def _note_text(result: Result, at: float) -> None:
    result.chunks += 1
    if result.last is None:
        result.first = at
    else:
        result.gaps.append(at - result.last)
    result.last = at


async def closed_loop(
    session: aiohttp.ClientSession,
    target: Target,
    prompts: Iterator[Prompt],
    concurrency: int,
    requests: int | None = None,
    duration_s: float | None = None,
) -> list[Result]:
    """`concurrency` clients ask until `requests` were sent or `duration_s` has passed; what runs then is awaited."""
    results: list[Result] = []
    left = [requests]
    ends = None if duration_s is None else time.perf_counter() + duration_s

    async def client() -> None:
        while left[0] != 0 and (ends is None or time.perf_counter() < ends):
            if left[0] is not None:
                left[0] -= 1
            results.append(await ask(session, target, next(prompts)))

    await asyncio.gather(*(client() for _ in range(concurrency)))
    return results


async def open_loop(
    session: aiohttp.ClientSession, target: Target, prompts: Iterator[Prompt], arrivals: Sequence[float]
) -> list[Result]:
    """One request at each of `arrivals` (seconds from now), whether or not earlier ones were answered."""
    start = time.perf_counter()
    running: list[asyncio.Task[Result]] = []
    for arrival in arrivals:
        due = start + arrival
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        running.append(asyncio.create_task(ask(session, target, next(prompts), due)))
    return list(await asyncio.gather(*running))
