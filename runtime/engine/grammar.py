"""Answers that keep to a grammar: which tokens may come next, which must, and how to end in time.

llguidance knows the grammars. Here they meet the engine: a token that the model likes best costs no mask where it is allowed;
tokens that the grammar forces are guesses that always come true; and an answer that nears its last token is led to its end.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ...wire.errors import BadRequest

if TYPE_CHECKING:  # an engine without grammars needs no llguidance
    from llguidance import LLMatcher

QUOTE, BACKSLASH = b'"\\'
OPENING, CLOSING, DIGITS, POINT = b"[{", b"]}", b"0123456789", ord(".")
# Digits of a number with a point, of which so many at least behind it, and of one without. A float64 tells 15 apart, and to end
# a number may take some more.
FRACTION_DIGITS, LEAST_FRACTION, INTEGER_DIGITS = 12, 6, 24
LONG_WAY = 24  # tokens: another walk may be shorter
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
        self.between = [ids[t] for t in (b"}", b"]", b",", b"null", b"0", b'""', b"[]", b"{}", b'"', b"true", b"1") if t in ids]
        self.closers = {ids[t] for t in (b"}", b"]") if t in ids}
        # In a string: what ends it, or gets to its next part.
        self.within = [ids[t] for t in (b'"', b"@", b".", b":") if t in ids]
        self.parts = [ids[t] for t in (b'"', b" ", b"-", b"@", b".", b":", b"/", b"0", b"1", b"a", b"A") if t in ids]


@dataclass(slots=True)
class _Place:
    """Where in JSON a text is: within a string or not, in how many lists and objects, and how far in a number."""

    in_string: bool = False
    escaped: bool = False
    depth: int = 0
    digits: int = 0
    fraction: int = 0  # of them, behind a point
    has_point: bool = False

    @property
    def runs_on(self) -> bool:
        """Whether a number has got longer than what reads it can tell apart."""
        fraction_digits = max(LEAST_FRACTION, FRACTION_DIGITS - (self.digits - self.fraction))
        return self.fraction >= fraction_digits if self.has_point else self.digits >= INTEGER_DIGITS

    def go_on(self, spelled: bytes) -> None:
        for byte in spelled:
            if self.escaped:
                self.escaped = False
            elif byte == BACKSLASH:
                self.escaped = self.in_string
            elif byte == QUOTE:
                self.in_string = not self.in_string
            elif not self.in_string:
                self.depth += (byte in OPENING) - (byte in CLOSING)
                in_number = byte in DIGITS or (byte == POINT and self.digits > 0)
                self.digits = self.digits + (byte != POINT) if in_number else 0
                self.fraction = self.fraction + (byte != POINT) if in_number and self.has_point else 0
                self.has_point = in_number and (self.has_point or byte == POINT)


class Grammar:
    """One answer's grammar, and how far the answer has come in it. The engine's thread alone touches it."""

    def __init__(
        self,
        matcher: "LLMatcher",
        vocabulary: Vocabulary,
        reserve: int = 0,
        place: _Place | None = None,
        *,
        is_json: bool = False,
    ) -> None:
        """`reserve`: with no more tokens than these left, care is taken that the answer ends in time; `is_json`: that its
        numbers end, too."""
        self._is_json = is_json
        self._place = place or _Place()
        self._matcher, self.vocabulary, self.reserve = matcher, vocabulary, reserve
        self._way: list[int] | None = None  # from here to an end, where known
        self._bits = np.zeros(-(-vocabulary.width // 32), np.int32)

    def fork(self) -> "Grammar":
        """The same, for another answer."""
        return Grammar(self._matcher.deep_copy(), self.vocabulary, self.reserve, replace(self._place), is_json=self._is_json)

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
        """`token`, or another if the answer could not end within `left` tokens after it, itself included, or if it made a
        number longer that had better end."""
        if self._is_json and self.reserve and self._place.runs_on and self._spelled(token)[:1].isdigit():
            return token if (way := self._known_way(left)) is None else (way or self.vocabulary.end_ids)[0]
        if left > self.reserve * (1 + max(0, self._place.depth)):  # to get out takes no longer than to get in and out again
            return token
        way = self._known_way(left)
        if way is None:
            self.reserve = 0  # no end can be reached any more: it is not looked for again
            return token
        if way[:1] == [token]:
            return token
        if left == 1 and not way:  # as a number, which could go on for ever: it ends because it may, not for want of tokens
            return self.vocabulary.end_ids[0]
        after = self.fork()
        after.take(token)
        if not after.is_over and after.way(left - 1) is None:
            return (way or self.vocabulary.end_ids)[0]
        return token

    def _known_way(self, most: int) -> list[int] | None:
        """A way that has been begun is followed to its end: the next one might begin anew, and so for ever."""
        self._way = self.way(most) if self._way is None else self._way
        return self._way

    def way(self, most: int) -> list[int] | None:
        """A short way from here to an end, found by closing whatever is open; None if it takes more than `most` tokens."""
        first = self._walk(most, self.vocabulary.within, 2)
        # A pattern may have to be gone through part by part, where the longest tokens would go on in one of them for ever.
        other = self._walk(most, self.vocabulary.parts, 1) if first is None or len(first) > LONG_WAY else None
        return min((found for found in (first, other) if found is not None), key=len, default=None)

    def _walk(self, most: int, within: Sequence[int], at_once: int) -> list[int] | None:
        """Such a way, by the tokens `within` in a string, each `at_once` times in a row: digits could go on for ever."""
        matcher, place, found = self._matcher.deep_copy(), replace(self._place), []
        while not (matcher.is_accepting() or matcher.is_stopped()):
            spent = found[-1] if len(found) >= at_once and len({*found[-at_once:]}) == 1 else None
            step = matcher.compute_ff_tokens() or [self._closing(matcher, within if place.in_string else None, spent)]
            found += step
            if len(found) > most or not matcher.consume_tokens(step):
                return None
            for token in step:
                place.go_on(self._spelled(token))
        return None if matcher.is_error() else found

    def _closing(self, matcher: "LLMatcher", within: Sequence[int] | None, spent: int | None) -> int:
        known = self.vocabulary
        for token in known.between if within is None else within:
            if (token != spent or token in known.closers) and matcher.validate_tokens([token]):
                return token
        # Such as a string of at least so many characters: the longest token gets on furthest.
        return int((known.lengths * self._mask_of(matcher)).argmax())

    def _mask_of(self, matcher: "LLMatcher") -> NDArray[np.bool_]:
        matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        return np.unpackbits(self._bits.view(np.uint8), bitorder="little")[: self.vocabulary.width].view(np.bool_)

    def _spelled(self, token: int) -> bytes:
        return self.vocabulary.spelled[token] if token < len(self.vocabulary.spelled) else b""

    def _check(self) -> None:
        if self._matcher.is_error():
            raise BadRequest(
                "The answer's grammar takes too much work at this point; simplify the schema.", code="grammar_too_complex"
            )
