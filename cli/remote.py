"""How the commands speak with a running server: events of an answer, and its plain pages."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing, asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from ..wire.chat import ChatRequest, Event, Failure, Message, Role, Text, TextDelta
from ..wire.errors import BaseloadError, Unavailable
from ..wire.openai_chat import PROTOCOL, StreamParser, render_request
from .door import Door, door

CONNECT_S = 10.0  # how long an answer then takes is the user's to judge, who has Ctrl-C
LONGEST_LINE = 1 << 20

# What a model writes may hold escape sequences that rename, clear or remote-control a terminal.
_CONTROL = {code: None for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


def message(role: Role, text: str) -> Message:
    """One turn of plain text."""
    return Message(role, (Text(text),))


def request(model: str, messages: list[Message], max_tokens: int | None, temperature: float | None) -> ChatRequest:
    """A chat request; the model's own defaults stand where None is given."""
    fields = {"max_tokens": max_tokens, "temperature": temperature}
    given = {name: value for name, value in fields.items() if value is not None}
    return ChatRequest(model, tuple(messages), stream=True, protocol=PROTOCOL, body=given)


def answer(url: str, asked: ChatRequest, write: Callable[[str], None]) -> str:
    """Send `asked`, hand each piece of text to `write` as it comes, and return it all. Raises BaseloadError."""
    with door() as open_for:
        return asyncio.run(_answer(open_for, _base(url), asked, write))


async def _answer(open_for: Door, url: str, asked: ChatRequest, write: Callable[[str], None]) -> str:
    said: list[str] = []
    async with aclosing(_events(open_for, url, asked)) as events:
        async for event in events:
            if isinstance(event, TextDelta):
                said.append(event.text)
                write(event.text)
            elif isinstance(event, Failure):
                raise BaseloadError(event.message, code=event.code)
    return "".join(said)


async def _events(open_for: Door, url: str, asked: ChatRequest) -> AsyncGenerator[Event, None]:
    """Not HttpBackend's: that hides from clients what a supplier says of itself, and this server is the user's own."""
    async with _session(open_for, url) as session:
        async with session.post(f"{url}/v1/chat/completions", json=render_request(asked, asked.model)) as response:
            if response.status != 200:
                raise BaseloadError(_reason(await response.content.read(LONGEST_LINE), response.status))
            parser = StreamParser(1)
            async for line in response.content:
                if line.startswith(b"data:"):
                    for event in parser.feed(line[5:].strip().decode("utf-8", "replace")):
                        yield event
            for event in parser.close():
                yield event


def pages(url: str, paths: Iterable[str]) -> dict[str, str]:
    """The text of some of the server's pages, whatever their status. Raises BaseloadError."""
    with door() as open_for:
        return asyncio.run(_pages(open_for, _base(url), paths))


async def _pages(open_for: Door, url: str, paths: Iterable[str]) -> dict[str, str]:
    async with _session(open_for, url) as session:
        return {path: await (await session.get(url + path)).text(errors="replace") for path in paths}


@asynccontextmanager
async def _session(open_for: Door, url: str) -> AsyncGenerator[aiohttp.ClientSession, None]:
    """A session with the server at `url`, with the key of the environment; what goes wrong with it becomes one line."""
    key = os.environ.get("BASELOAD_API_KEY")
    headers = {"authorization": f"Bearer {key}"} if key else {}
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S)
    async with open_for(urlsplit(url).hostname or "").session(
        headers=headers, timeout=timeout, read_bufsize=LONGEST_LINE
    ) as session:
        try:
            yield session
        except aiohttp.ClientConnectorError as error:
            raise Unavailable(f"No server can be reached at {url}; start one with: baseload serve") from error
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise Unavailable(f"The server at {url} broke off its answer.") from error


def _base(url: str) -> str:
    """The server's address without what users copy along from an SDK's settings. Raises BaseloadError."""
    try:
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0):
            return url.rstrip("/").removesuffix("/v1")
    except ValueError:
        pass
    raise BaseloadError(f"{url!r} is not an address such as http://127.0.0.1:8787.")


def _reason(body: bytes, status: int) -> str:
    """What the server says of its refusal."""
    try:
        error: Any = json.loads(body)["error"]
        return str(error["message"])
    except (ValueError, KeyError, TypeError):
        return f"The server answered with status {status}."


def show(text: str) -> None:
    """Write a piece of an answer to stdout at once; on a terminal without control characters."""
    sys.stdout.write(text.translate(_CONTROL) if sys.stdout.isatty() else text)
    sys.stdout.flush()
