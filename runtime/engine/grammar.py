"""Answers that keep to a grammar: which tokens may come next, which must, and how to end in time.

llguidance knows the grammars. Here they meet the engine: a token that the model likes best costs no mask where it is allowed;
tokens that the grammar forces are guesses that always come true; and an answer that nears its last token is led to its end.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from llguidance import LLMatcher
from numpy.typing import NDArray

from ...wire.errors import BadRequest

QUOTE, BACKSLASH = b'"\\'
LONGEST_WAY = 4096  # tokens of an answer's shortest end that are looked for


class Vocabulary:
    """What leading an answer to its end needs to know of the tokens."""

    def __init__(self, spelled: Sequence[bytes], width: int, end_ids: Sequence[int]) -> None:
        """`spelled[id]` are a token's bytes, empty for a control token; `width` that of the logits."""
        self.width, self.end_ids, self.spelled = width, list(end_ids) or [0], spelled
        self.lengths = np.zeros(width, np.int32)
        self.lengths[: len(spelled)] = [len(token) for token in spelled]
        self.lengths[list(end_ids)] = 0
        ids = {token: id for id, token in reversed(list(enumerate(spelled))) if token}
        # In this order: what closes most comes first, what opens something last.
        self.between = [ids[t] for t in (b"}", b"]", b"null", b"0", b'""', b"[]", b"{}", b'"', b"true") if t in ids]
        self.within = [ids[t] for t in (b'"', b"@", b".", b":") if t in ids]  # a string: what ends it, or gets to its next part


@dataclass(slots=True)
class _Place:
    """Where in JSON a text is: within a string or not."""

    in_string: bool = False
    escaped: bool = False

    def go_on(self, spelled: bytes) -> None:
        for byte in spelled:
            if self.escaped:
                self.escaped = False
            elif byte == BACKSLASH:
                self.escaped = self.in_string
            elif byte == QUOTE:
                self.in_string = not self.in_string


class Grammar:
    """One answer's grammar, and how far the answer has come in it. The engine's thread alone touches it."""

    def __init__(self, matcher: LLMatcher, vocabulary: Vocabulary, reserve: int = 0, place: _Place | None = None) -> None:
        """`reserve`: with no more tokens than these left, care is taken that the answer ends in time."""
        self._place = place or _Place()
        self._matcher, self._vocabulary, self.reserve = matcher, vocabulary, reserve
        self._way: list[int] | None = None  # from here to an end, where known
        self._bits = np.zeros(-(-vocabulary.width // 32), np.int32)

    def fork(self) -> "Grammar":
        """The same, for another answer."""
        return Grammar(self._matcher.deep_copy(), self._vocabulary, self.reserve, replace(self._place))

    @property
    def is_over(self) -> bool:
        """Whether nothing can follow."""
        return self._matcher.is_stopped()

    def allows(self, token: int) -> bool:
        """Whether `token` may come next."""
        return self._matcher.validate_tokens([token]) == 1

    def mask(self) -> NDArray[np.bool_]:
        """[width], of the tokens that may come next. Raises BadRequest where the grammar asks for too much work."""
        found = self._mask_of(self._matcher)
        self._check()
        return found

    def take(self, token: int) -> None:
        """`token` has come."""
        self._way = self._way[1:] if self._way and self._way[0] == token else None
        self._place.go_on(self._spelled(token))
        self._matcher.consume_token(token)
        self._check()

    def forced(self, most: int) -> list[int]:
        """Up to `most` tokens that must come next."""
        return self._matcher.compute_ff_tokens()[:most] if most > 0 else []

    def steer(self, token: int, left: int) -> int:
        """`token`, or another if the answer could not end within `left` tokens after it, itself included."""
        if left > self.reserve:
            return token
        way = self._way = self.way(left) if self._way is None else self._way
        if way is None:
            self.reserve = 0  # no end can be reached any more: it is not looked for again
            return token
        if way[:1] == [token]:
            return token
        if left == 1 and not way:  # as a number, which could go on for ever: it ends because it may, not for want of tokens
            return self._vocabulary.end_ids[0]
        after = self.fork()
        after.take(token)
        if not after.is_over and after.way(left - 1) is None:
            return (way or self._vocabulary.end_ids)[0]
        return token

    def way(self, most: int) -> list[int] | None:
        """A short way from here to an end, found by closing whatever is open; None if it takes more than `most` tokens."""
        matcher, place, found = self._matcher.deep_copy(), replace(self._place), []
        while not (matcher.is_accepting() or matcher.is_stopped()):
            step = matcher.compute_ff_tokens() or [self._closing(matcher, place.in_string)]
            found += step
            if len(found) > most or not matcher.consume_tokens(step):
                return None
            for token in step:
                place.go_on(self._spelled(token))
        return None if matcher.is_error() else found

    def _closing(self, matcher: LLMatcher, in_string: bool) -> int:
        known = self._vocabulary
        for token in known.within if in_string else known.between:
            if matcher.validate_tokens([token]):
                return token
        # Such as a string of at least so many characters: the longest token gets on furthest.
        return int((known.lengths * self._mask_of(matcher)).argmax())

    def _mask_of(self, matcher: LLMatcher) -> NDArray[np.bool_]:
        matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        return np.unpackbits(self._bits.view(np.uint8), bitorder="little")[: self._vocabulary.width].view(np.bool_)

    def _spelled(self, token: int) -> bytes:
        return self._vocabulary.spelled[token] if token < len(self._vocabulary.spelled) else b""

    def _check(self) -> None:
        if self._matcher.is_error():
            raise BadRequest(
                "The answer's grammar takes too much work at this point; simplify the schema.", code="grammar_too_complex"
            )
