"""Guessing the next tokens from the text so far (prompt lookup: Saxena 2023), to check several in one step.

Where the last few tokens have occurred before, what followed then is proposed again. The step computes the proposals beside the
token that is due, as a few more tokens of the same row, and they are kept as far as the sampler would have chosen them itself:
each position is sampled with its own logits and its own random number, so the text is, to the token, what it is without.

A proposal costs part of a step whether it is kept or not. A sequence proposes as long as its own share of kept proposals pays
at the present batch size, so whoever never repeats itself soon stops, and a full batch stops nearly everybody.
"""

import math
from dataclasses import dataclass, field
from struct import pack

LONGEST, SHORTEST = 4, 2  # tokens at the end that must have occurred before
MEMORY = 0.7  # of the kept share: how much of it an observation leaves
HOPE = 0.65  # the kept share of a sequence that has not tried yet
RECOVERY = 0.02  # of the way back to HOPE, with each token that was not guessed: texts change
COST = 0.25  # what one more token adds to a step, as a share of one of none: 0.22 on two cores of a Xeon
ITEM = 4  # bytes of a token in `packed`


@dataclass(slots=True)
class Guesses:
    """What one sequence knows for guessing: its tokens as bytes, and how its guesses fared."""

    packed: bytearray = field(default_factory=bytearray)
    kept_share: float = HOPE  # of the tokens proposed: the chance that the next one is kept


def propose(guesses: Guesses, tokens: list[int], most: int, n_rows: int) -> list[int]:
    """Up to `most` tokens that may follow `tokens`, in a step of `n_rows` sequences; [] where guessing does not pay."""
    length = min(most, _worth(guesses.kept_share, n_rows))
    if length < 1:
        guesses.kept_share += RECOVERY * (HOPE - guesses.kept_share)
        return []
    known = len(guesses.packed) // ITEM
    guesses.packed += pack(f"<{len(tokens) - known}i", *tokens[known:])
    at = _earlier(guesses.packed)
    if at is None:
        guesses.kept_share += RECOVERY * (HOPE - guesses.kept_share)
        return []
    # What follows may run into the end of the text: then the text goes round, as it seems to do.
    period = len(tokens) - at
    return [tokens[at + i % period] for i in range(length)]


def observe(guesses: Guesses, proposed: int, kept: int) -> None:
    """`kept` of `proposed` tokens were right; those after the first wrong one say nothing."""
    tried = min(proposed, kept + 1)
    left = MEMORY**tried
    guesses.kept_share = left * guesses.kept_share + (1 - left) * kept / tried


def _worth(kept_share: float, n_rows: int) -> int:
    """How many tokens to propose. The i-th is kept with probability p^i and then saves its sequence 1 of n_rows tokens that the
    step makes; it lengthens a step of 1 + COST * n_rows by COST."""
    pays = COST * n_rows / (1 + COST * n_rows)
    p = min(kept_share, 0.98)
    return int(math.log(pays) / math.log(p)) if p > pays else 0


def _earlier(packed: bytearray) -> int | None:
    """The index after the latest earlier occurrence of the longest possible end of the text."""
    for n in range(LONGEST, SHORTEST - 1, -1):
        end = packed[-n * ITEM :]
        at = len(packed) - ITEM  # an occurrence must end before the text does
        while len(end) == n * ITEM and (at := packed.rfind(end, 0, at)) >= 0:
            if at % ITEM == 0:
                return at // ITEM + n
            at += len(end) - 1  # across two tokens: look on to the left
    return None
