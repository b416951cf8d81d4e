"""How the commands speak with a running server: events of an answer, and its plain pages."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from urllib.parse import urlsplit

from ..wire.chat import ChatRequest, Event, Failure, Message, SamplingParams, Text, TextDelta
from ..wire.errors import BaseloadError

# What a model writes may hold escape sequences that rename, clear or remote-control a terminal.
_CONTROL = {code: None for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


class AnswerError(BaseloadError):
    """The server's answer ended in a failure; `said` is what came before it."""

    def __init__(self, failure: Failure, said: str) -> None:
        super().__init__(failure.message, code=failure.code)
        self.said = said


def request(model: str, messages: list[Message], max_tokens: int | None, temperature: float | None) -> ChatRequest:
    """A streamed chat request; the server's own defaults stand where None is given."""
    given = {} if temperature is None else {"temperature": temperature}
    return ChatRequest(model, tuple(messages), sampling=SamplingParams(max_tokens=max_tokens, **given), stream=True)


def message(role: str, text: str) -> Message:
    """One turn of plain text."""
    return Message(role, (Text(text),))  # type: ignore[arg-type]


def answer(url: str, asked: ChatRequest, write: Callable[[str], None]) -> str:
    """Send `asked`, hand each piece of text to `write` as it comes, and return it all. Raises AnswerError."""
    return asyncio.run(_answer(url, asked, write))


async def _answer(url: str, asked: ChatRequest, write: Callable[[str], None]) -> str:
    said: list[str] = []
    async with aclosing(_events(url, asked)) as events:
        async for event in events:
            if isinstance(event, TextDelta):
                said.append(event.text)
                write(event.text)
            elif isinstance(event, Failure):
                raise AnswerError(event, "".join(said))
    return "".join(said)


def show(text: str) -> None:
    """Write a piece of an answer to stdout at once; on a terminal without control characters."""
    sys.stdout.write(text.translate(_CONTROL) if sys.stdout.isatty() else text)
    sys.stdout.flush()
