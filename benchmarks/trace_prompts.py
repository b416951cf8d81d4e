"""A trace's requests as prompts: made-up text that is as long, and begins alike where the trace says so.

A piece of a trace is words that its key decides, so equal pieces are equal text and a shorter one begins the longer. How many
tokens a word and the chat template take is measured on the server itself, by two requests (`Measure`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import aiohttp

from .load_client import Target, ask
from .prompts import Prompt, words
from .traces import Recorded, cut

PROBES = (64, 576)  # words
SPARE = 16  # tokens of the context that are left free: a word may be two tokens


@dataclass(frozen=True, slots=True)
class Measure:
    """tokens = overhead + per_word * words, on one server."""

    overhead: float = 0.0
    per_word: float = 1.0

    def words(self, tokens: float) -> int:
        """How many words make about so many tokens, what surrounds them counted."""
        return max(0, round((tokens - self.overhead) / self.per_word))


async def measured(session: aiohttp.ClientSession, target: Target, salt: str) -> Measure | None:
    """By two prompts of different lengths; None where the server does not count."""
    counts: list[int] = []
    for n in PROBES:
        result = await ask(session, target, Prompt(words(n, f"{salt}/measure/{n}"), max_tokens=1))
        if result.error or result.prompt_tokens is None:
            return None
        counts.append(result.prompt_tokens)
    per_word = (counts[1] - counts[0]) / (PROBES[1] - PROBES[0])
    return Measure(counts[0] - per_word * PROBES[0], per_word) if per_word > 0 else None


@dataclass(frozen=True, slots=True)
class Fitted:
    """A trace made to fit a context: what is asked, and what that took."""

    requests: list[Recorded]
    clamped_inputs: int
    clamped_outputs: int


def fit(requests: Sequence[Recorded], context: int | None, scale: float = 1.0) -> Fitted:
    """Lengths times `scale`, an answer of at least one token, and what does not fit into `context` cut: an answer to half of
    it, then the prompt's end to what is left. Prompts that began alike still do."""
    fitted: list[Recorded] = []
    inputs = outputs = 0
    for one in requests:
        pieces = one.pieces if scale == 1 else _scaled(one.pieces, scale)
        output = max(1, round(one.output_tokens * scale))
        if context is not None:
            outputs += output > context // 2
            output = min(output, context // 2)
            room = max(1, context - output - SPARE)
            inputs += sum(n for _, n in pieces) > room
            pieces = cut(pieces, room)
        fitted.append(replace(one, pieces=pieces, output_tokens=output))
    return Fitted(fitted, inputs, outputs)


def _scaled(pieces: Sequence[tuple[str, int]], scale: float) -> tuple[tuple[str, int], ...]:
    """Ends are scaled, not lengths: many short pieces must not round away."""
    made: list[tuple[str, int]] = []
    end = done = 0
    for key, n in pieces:
        end += n
        if (to := round(end * scale)) > done:
            made.append((key, to - done))
            done = to
    return tuple(made)


def prompts(requests: Sequence[Recorded], measure: Measure, salt: str) -> list[Prompt]:
    """One for each request. Another `salt`, other words throughout."""
    longest: dict[str, int] = {}
    for one in requests:
        for key, n in one.pieces:
            longest[key] = max(n, longest.get(key, 0))
    texts = {key: words(measure.words(n + measure.overhead) + 1, f"{salt}/{key}").split(" ") for key, n in longest.items()}
    return [Prompt(_text(one, measure, texts), max_tokens=one.output_tokens) for one in requests]


def _text(one: Recorded, measure: Measure, texts: dict[str, list[str]]) -> str:
    said: list[str] = []
    end = 0
    for key, n in one.pieces:
        end += n
        said += texts[key][: max(0, measure.words(end) - len(said))]
    return " ".join(said) or "time"
