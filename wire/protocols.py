"""The protocols that suppliers speak, by name: how each is asked and how its answers are read."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from . import anthropic_messages, google_generate, openai_chat, openai_responses
from .chat import ChatRequest, Event


class Parser(Protocol):
    """A stream's chunks to events; see openai_chat.StreamParser."""

    @property
    def ended(self) -> bool: ...
    def feed(self, data: str, /) -> list[Event]: ...
    def close(self) -> list[Event]: ...


@dataclass(frozen=True, slots=True)
class WireProtocol:
    """One protocol, from the caller's side."""

    path: Callable[[str], str]  # of a model, after the base URL
    headers: Callable[[str | None], dict[str, str]]  # with the key
    request: Callable[[ChatRequest, str, Sequence[str]], dict[str, Any]]
    stream: Callable[[int], Parser]
    whole: Callable[[Mapping[str, Any], int], list[Event]]


PROTOCOLS = {
    module.PROTOCOL: WireProtocol(
        module.path, module.headers, module.render_request, module.StreamParser, module.parse_response
    )
    for module in (openai_chat, openai_responses, anthropic_messages, google_generate)
}
