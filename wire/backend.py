"""Backend: the one protocol that every model source satisfies, local or remote."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from .chat import ChatRequest, Effort, Event


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What is known of a model, enough to decide whether a request fits it."""

    id: str  # the name a client asks for
    context_length: int  # tokens, prompt and answer together
    owned_by: str = "baseload"
    local: bool = True
    tools: bool = False
    vision: bool = False
    efforts: tuple[Effort, ...] = ()  # that a request may ask of it; empty: it knows no such field
    created: int = 0  # unix seconds


class Backend(Protocol):
    """A source of answers.

    `generate` yields deltas and Usage, and then one Finish for each of the request's `sampling.n` choices, the last of them
    as the last event; or, at any point, one Failure and nothing more. The final Usage comes before the last Finish. It never
    raises for what goes wrong after it was called: that is a Failure. Closing the generator (`aclose`, or cancelling the
    task that iterates) stops the work at once.
    """

    @property
    def models(self) -> tuple[ModelInfo, ...]:
        """The models it serves."""
        ...

    def generate(self, request: ChatRequest) -> AsyncGenerator[Event, None]:
        """Answer `request`, whose `model` is one of `models`."""
        ...

    def count_tokens(self, request: ChatRequest) -> int | None:
        """The prompt's length in tokens; None where only the source itself can tell. Raises BadRequest for a prompt that
        cannot be rendered."""
        ...


@runtime_checkable
class Tokenizing(Backend, Protocol):
    """A Backend whose tokenizer is at hand: text to token ids, and back."""

    def token_ids(self, request: ChatRequest, *, begun: bool = True, bare: bool = False) -> Sequence[int]:
        """The prompt as the model would read it; not `begun`: without the head of the model's turn; `bare`: a plain prompt
        without its beginning-of-sequence token. Raises BadRequest. Blocks while a template runs."""
        ...

    def text_of(self, ids: Sequence[int]) -> str:
        """The text of `ids`, control tokens as the vocabulary writes them. Raises BadRequest for an id that is none."""
        ...
