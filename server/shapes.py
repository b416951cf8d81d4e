"""How each protocol looks, whatever it says: its errors, the frame of a streamed chunk, and its sign of life."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..wire import anthropic_messages, google_generate, ollama, openai_chat, openai_responses, responses_stream, sse
from ..wire.chat import Failure
from ..wire.errors import BaseloadError, BudgetExhausted

Chunk = Mapping[str, Any] | str


@dataclass(frozen=True, slots=True)
class Shape:
    """One protocol's looks."""

    error: Callable[[BaseloadError], Mapping[str, Any]]
    failure: Callable[[Failure], Mapping[str, Any]]
    frame: Callable[[Chunk], bytes] = sse.data_event
    ping: bytes = b": keep-alive\n\n"  # what a client takes for life during a long silence
    media_type: str = "text/event-stream"
    done: bytes = b""  # the last words of a stream that broke off
    cut: Callable[[Failure], Mapping[str, Any]] | None = None  # its failure, where that looks otherwise than before the stream
    no_money: int = 429  # the status of an exhausted budget

    def status(self, error: BaseloadError | Failure) -> int:
        """The HTTP status by which this protocol's clients know the error."""
        return self.no_money if error.kind == BudgetExhausted.kind else error.status


OPENAI = Shape(openai_chat.render_error, openai_chat.render_failure, done=sse.data_event(openai_chat.DONE))


ANTHROPIC = Shape(
    anthropic_messages.render_error, anthropic_messages.render_failure, sse.named_event, anthropic_messages.PING, no_money=402
)
# Before its first byte an answer's failure has OpenAI's shape, within a stream one of its own.
RESPONSES = Shape(
    openai_responses.render_error, openai_responses.render_failure, sse.named_event, openai_responses.PING,
    cut=responses_stream.render_cut,
)  # fmt: skip
GOOGLES = (":generateContent", ":streamGenerateContent", ":countTokens")
GOOGLE = Shape(google_generate.render_error, google_generate.render_failure, ping=google_generate.PING)
OLLAMA = Shape(ollama.render_error, ollama.render_failure, ollama.line, b"", "application/x-ndjson")


def shape_of(path: str, headers: Iterable[tuple[bytes, bytes]] = ()) -> Shape:
    """The looks that whoever asks for `path` expects, where no route has been found yet."""
    if path.startswith("/v1/messages"):
        return ANTHROPIC
    is_googles = path.startswith("/v1/models") and any(name == b"x-goog-api-key" for name, _ in headers)
    if is_googles or path.startswith("/v1beta/") or path.endswith(GOOGLES):
        return GOOGLE
    return OLLAMA if path.startswith("/api/") else OPENAI
