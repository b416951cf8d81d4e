"""What reading any supplier's answer has in common: its chunks are JSON, there is one end, and counts are money."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from .chat import Event, Failure, Finish, TextDelta, Usage
from .errors import BadRequest
from .json_body import loads

UNREADABLE = (BadRequest, ValueError, TypeError, AttributeError, KeyError)  # what a chunk of the wrong form raises


class ChunkParser:
    """Chunks to events. `feed` takes the text of one `data:` line; `close` says what its silence means. Exactly one Failure, or
    the finishes of all choices, end it; nothing comes after."""

    def __init__(self) -> None:
        self.ended = False

    def feed(self, data: str) -> list[Event]:
        """The events of one chunk."""
        if self.ended:
            return []
        try:
            return self.chunk(loads(data.encode("utf-8", "replace")))
        except UNREADABLE:
            return self.fail("The supplier sent a chunk that cannot be read.")

    def close(self) -> list[Event]:
        """The stream is over."""
        return [] if self.ended else self.silence()

    def chunk(self, chunk: Any) -> list[Event]:
        """The events of a chunk. May raise any of UNREADABLE."""
        raise NotImplementedError

    def silence(self) -> list[Event]:
        """What it means that nothing more comes: for most protocols, that the end is missing."""
        return self.fail("The supplier's answer broke off before its end.")

    def fail(self, message: str) -> list[Event]:
        """The end, for what is wrong with the answer."""
        self.ended = True
        return [Failure(message, 502, "server_error", "upstream_error", retryable=True, unanswered=True)]

    def refuse(self, said: Any, status: int = 502) -> list[Event]:
        """The end, for an error that the supplier itself tells of."""
        self.ended = True
        kind, code = ("rate_limit_error", "rate_limit_exceeded") if status == 429 else ("server_error", "upstream_error")
        message = f"The supplier answered with an error: {' '.join(str(said).split())[:200]}"
        return [Failure(message, status, kind, code, retryable=True)]


class ChoicesParser(ChunkParser):
    """Of protocols with several choices, whose usage comes late: finishes are held back to the stream's end, for it is the last
    of them that ends an event stream."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n
        self.finishes: dict[int, Finish] = {}
        self.usage: Usage | None = None

    def silence(self) -> list[Event]:
        """The finishes, or a Failure if one of them never came."""
        if len(self.finishes) < self.n:
            return super().silence()
        self.ended = True
        return [*([self.usage] if self.usage else []), *(self.finishes[i] for i in sorted(self.finishes))]


def run_together(events: Sequence[Event]) -> Iterator[Event]:
    """The same events, with text that came together as one: what it costs to pass on counts by the event, not by the word."""
    for index, run in groupby(events, _text_of_choice):
        if index is None:
            yield from run
        else:
            pieces = [e for e in run if isinstance(e, TextDelta)]
            yield TextDelta("".join(e.text for e in pieces), index, sum(e.tokens for e in pieces))


def _text_of_choice(event: Event) -> int | None:
    """Whose text it is; None for anything else. Probabilities belong to their own piece of text, which stays as it is."""
    return event.index if isinstance(event, TextDelta) and not event.logprobs else None


def count_of(table: Mapping[str, Any] | None, name: str) -> int:
    """A number of tokens; 0 where there is none. Raises ValueError for what is no count."""
    value = (table or {}).get(name) or 0
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 40:
        raise ValueError(name)
    return value


def text_of(table: Mapping[str, Any], name: str) -> str:
    """A text that must be there. Raises KeyError, TypeError."""
    value = table[name]
    if not isinstance(value, str):
        raise TypeError(name)
    return value
