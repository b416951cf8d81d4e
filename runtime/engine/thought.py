"""Reasoning before an answer that keeps to a grammar: free until its closing mark, and over in time for the answer."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .grammar import Grammar

ANSWERS_SHARE = 2  # of the tokens that are left at the start, one in so many belongs to the answer


@dataclass(frozen=True, slots=True)
class Marks:
    """What stands around a model's reasoning, as token ids, and the closing one as bytes."""

    opening: tuple[int, ...]
    closing: tuple[int, ...]
    closed: bytes


class AfterThought:
    """A Grammar's face for an answer that may begin with reasoning, or is amid it already (`begun`)."""

    def __init__(self, grammar: Grammar, marks: Marks, *, begun: bool) -> None:
        self._grammar, self._vocabulary, self._marks = grammar, grammar.vocabulary, marks
        self._state: Literal["start", "thought", "answer"] = "thought" if begun else "start"
        self._due: list[int] = []  # of a mark that has been begun, what must follow
        self._tail = b""  # of the reasoning, no longer than a mark
        self._until: int | None = None  # with so many tokens left, the reasoning ends
        self._closes = False  # it is being ended

    @property
    def is_over(self) -> bool:
        """Whether nothing can follow."""
        return self._state == "answer" and self._grammar.is_over

    def allows(self, token: int) -> bool:
        """Whether `token` may come next."""
        if self._due:
            return token == self._due[0]
        if self._state == "thought":
            return token not in self._vocabulary.end_ids
        return self._grammar.allows(token) or self._opens(token)

    def mask(self) -> NDArray[np.bool_]:
        """[width], of the tokens that may come next. Raises BadRequest where the grammar asks for too much work."""
        if self._state == "thought" or self._due:
            allowed = np.full(self._vocabulary.width, not self._due)
            allowed[self._due[:1]] = True
            allowed[self._vocabulary.end_ids] = False
            return allowed
        allowed = self._grammar.mask().copy()
        # A mark that is no token of its own may begin like much else: then only a model that wants to say just that may.
        if self._state == "start" and len(self._marks.opening) == 1:
            allowed[self._marks.opening[0]] = True
        return allowed

    def forced(self, most: int) -> list[int]:
        """Up to `most` tokens that must come next."""
        if self._due:
            return self._due[:most]
        return self._grammar.forced(most) if self._state == "answer" else []

    def steer(self, token: int, left: int) -> int:
        """`token`, or another if the answer could not end within `left` tokens after it, itself included."""
        if self._until is None:
            self._until = max(self._grammar.reserve, left // ANSWERS_SHARE) + len(self._marks.closing)
        if self._due:
            return self._due[0]
        if self._state != "thought":
            if not self._opens(token):
                return self._grammar.steer(token, left)
            if left - len(self._marks.opening) - len(self._marks.closing) > self._grammar.reserve:
                return token
            way = self._grammar.way(left)  # there is no room to reason
            return token if way is None else (way or self._vocabulary.end_ids)[0]
        # A token that closes the reasoning and begins the answer in one has not been held to the grammar.
        self._closes = left <= self._until or bool((self._after(token) or b"").strip())
        return self._marks.closing[0] if self._closes else token

    def take(self, token: int) -> None:
        """`token` has come."""
        if self._opens(token):
            self._state, self._due = "thought", list(self._marks.opening[1:])
        elif self._state != "thought":
            self._state = "answer"
            self._grammar.take(token)
        elif self._after(token) is not None:
            self._state, self._due = "answer", []
        elif self._due:
            self._due = self._due[1:]
            self._tail += self._spelled(token)
        else:
            self._due = list(self._marks.closing[1:]) if self._closes else []
            self._tail = (self._tail + self._spelled(token))[-len(self._marks.closed) :]

    def _opens(self, token: int) -> bool:
        """Whether reasoning begins here. A mark of several tokens may begin like an answer: then it is one."""
        opening = self._marks.opening
        return self._state == "start" and token == opening[0] and (len(opening) == 1 or not self._grammar.allows(token))

    def _after(self, token: int) -> bytes | None:
        """What follows the closing mark, if it ends with this token; None if it does not."""
        if (token,) == self._marks.closing:
            return b""
        text = self._tail + self._spelled(token)
        at = text.find(self._marks.closed)
        return None if at < 0 else text[at + len(self._marks.closed) :]

    def _spelled(self, token: int) -> bytes:
        known = self._vocabulary.spelled
        return known[token] if token < len(known) else b""
