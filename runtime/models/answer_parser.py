"""A model's answer as it comes, told apart: its reasoning, its words, its calls of tools."""

import uuid
from collections.abc import Iterator, Sequence

from ...wire.chat import ReasoningDelta, TextDelta, TokenLogprob, ToolCallDelta
from .tool_dialects import Dialect, Piece
from .tool_dialects.dialect import Reader

THOUGHTS = (("<think>", "</think>"), ("[THINK]", "[/THINK]"))
Delta = TextDelta | ReasoningDelta | ToolCallDelta


def thought_marks(template: str) -> tuple[str, str] | None:
    """What a chat template's model puts around its reasoning; None: it does not reason."""
    return next((marks for marks in THOUGHTS if marks[0] in template), None)


class AnswerParser:
    """One choice's text to deltas. What may be the beginning of a mark is held back until it is known."""

    def __init__(
        self, index: int, dialect: Dialect | None, names: frozenset[str], marks: tuple[str, str] | None, in_thought: bool
    ) -> None:
        """`dialect`: None where there are no tools; `in_thought`: the prompt has begun the reasoning."""
        self._index, self._dialect, self._names, self._marks = index, dialect, names, marks
        self._state = "thought" if in_thought and marks else "start"
        self._reader: Reader | None = None
        self._held = ""
        self._calls = 0
        self._pending_tokens, self._pending_logprobs = 0, []
        self.reasoning_tokens = 0

    @property
    def has_called(self) -> bool:
        """Whether there was a call."""
        return self._calls > 0

    def feed(self, text: str, tokens: int, logprobs: Sequence[TokenLogprob], *, is_last: bool) -> list[Delta]:
        """The deltas that `tokens` more tokens bring, which spell `text`."""
        if self._state == "thought":
            self.reasoning_tokens += tokens
        self._pending_tokens += tokens
        self._pending_logprobs += logprobs
        pieces = list(self._read(text))
        if is_last:
            pieces += self._close()
        return [self._delta(kind, part) for kind, part in pieces if part]

    def _delta(self, kind: str, part: str) -> Delta:
        tokens, self._pending_tokens = self._pending_tokens, 0
        if kind == "thought":
            return ReasoningDelta(part, self._index, tokens)
        if kind == "name":
            self._calls += 1
            return ToolCallDelta(self._calls - 1, f"call_{uuid.uuid4().hex[:24]}", part, "", self._index, tokens)
        if kind == "arguments":
            return ToolCallDelta(self._calls - 1, None, None, part, self._index, tokens)
        logprobs, self._pending_logprobs = tuple(self._pending_logprobs), []
        return TextDelta(part, self._index, tokens, logprobs)

    def _read(self, text: str) -> Iterator[tuple[str, str]]:
        """(kind, part) of what is sure."""
        rest = self._held + text
        self._held = ""
        while rest:
            if self._reader is not None:
                pieces, after = self._reader.feed(rest)
                yield from self._told(pieces)
                if after is None:
                    return
                self._reader, rest = None, after.lstrip() if self.has_called else after
                continue
            marks = self._wanted()
            if self._state == "start" and not (rest := rest.lstrip() if marks else rest):
                return
            at, mark = self._first(rest, marks)
            if mark is None:
                keep = 0 if not marks else _overlap(rest, marks)
                said, self._held = rest[: len(rest) - keep], rest[len(rest) - keep :]
                yield from self._say(said)
                return
            yield from self._say(rest[:at])
            rest = rest[at + len(mark) :]
            if self._marks and mark == self._marks[0]:
                self._state = "thought"
            elif self._marks and mark == self._marks[1]:
                self._state, rest = "start_text", rest
            else:
                self._state = "text"
                self._reader = self._dialect.reader(self._names) if self._dialect else None
                rest = mark + rest if mark == "{" else rest

    def _say(self, part: str) -> Iterator[tuple[str, str]]:
        if self._state == "thought":
            yield "thought", part
            return
        if self._state != "text" and self._state != "start":
            part = part.lstrip()  # between the reasoning and the answer
        if part:
            self._state = "text"
            yield "text", part

    def _wanted(self) -> tuple[str, ...]:
        """The marks that mean something here."""
        if self._state == "thought":
            return (self._marks[1],) if self._marks else ()
        opens = self._dialect.opens if self._dialect else ()
        if self._state == "text":
            return tuple(mark for mark in opens if mark != "{")
        return (*opens, *((self._marks[0],) if self._marks and self._state == "start" else ()))

    def _first(self, text: str, marks: Sequence[str]) -> tuple[int, str | None]:
        found = [(at, mark) for mark in marks if (at := text.find(mark)) >= 0]
        if self._state != "text" and self._state != "thought":  # these stand at the very beginning, or nowhere
            begins = ("{", *(self._marks[:1] if self._marks else ()))
            found = [(at, mark) for at, mark in found if mark not in begins or not text[:at].strip()]
        return min(found) if found else (-1, None)

    def _told(self, pieces: Sequence[Piece]) -> Iterator[tuple[str, str]]:
        for piece in pieces:
            yield piece.kind, piece.text

    def _close(self) -> list[tuple[str, str]]:
        pieces = list(self._told(self._reader.close())) if self._reader else []
        self._reader = None
        held, self._held = self._held, ""
        return [*pieces, *self._say(held)]


def _overlap(text: str, marks: Sequence[str]) -> int:
    """The length of the longest end of `text` that is a beginning of a mark."""
    longest = max(map(len, marks)) - 1
    return next((n for n in range(min(len(text), longest), 0, -1) if any(m.startswith(text[-n:]) for m in marks)), 0)
