"""The scheduler's plan as arrays: one flat ragged StepBatch."""

import numpy as np
from numpy.typing import NDArray

from ...kernels.spec import Draws, StepBatch
from .request import Sequence
from .scheduler import Plan

CHOICE = 0x9E3779B97F4A7C15  # parts the keys of one seed's choices


def build_batch(plan: Plan, page_size: int, draws_on_device: bool = False) -> StepBatch:
    """Lay the plan's tokens end to end, one row for each sequence in the plan's order.

    Logits are wanted of the last token of each row that has then caught up, for that one can be sampled, and of each token
    guessed after it. With `draws_on_device` the batch says how tokens are to be drawn, and those rows' logits stay there.
    """
    n_rows = len(plan)
    lengths = np.fromiter((n + len(s.guessed) for s, n in plan), np.int32, n_rows)
    first = np.fromiter((s.computed for s, _ in plan), np.int32, n_rows)
    starts = np.zeros(n_rows + 1, np.int32)
    np.cumsum(lengths, out=starts[1:])
    positions = np.arange(starts[-1], dtype=np.int32) + np.repeat(first - starts[:-1], lengths)
    tables = np.zeros((n_rows, max(len(s.pages) for s, _ in plan)), np.int32)
    for row, (sequence, _) in enumerate(plan):
        tables[row, : len(sequence.pages)] = sequence.pages
    pages = tables[np.repeat(np.arange(n_rows), lengths), positions // page_size].astype(np.int64)
    tokens = [token for s, n in plan for token in (*s.tokens[s.computed : s.computed + n], *s.guessed)]
    # A row of a chunk wants nothing; one that catches up, its last token and its guesses.
    wanted = np.fromiter((n_logits(s, n) for s, n in plan), np.int32, n_rows)
    ends = np.cumsum(wanted)
    logit_rows = np.arange(ends[-1], dtype=np.int32) + np.repeat(starts[1:] - ends.astype(np.int32), wanted)
    full = np.repeat(np.fromiter((s.wants_logits for s, _ in plan), np.bool_, n_rows), wanted)
    draws = _draws(plan, wanted) if draws_on_device and full.any() else None
    return StepBatch(
        tokens=np.array(tokens, np.int32),
        positions=positions,
        slots=pages * page_size + positions % page_size,
        row_starts=starts,
        context_lens=first + lengths,
        page_tables=tables,
        logit_rows=logit_rows,
        full_logits=full if draws is None else full & ~draws.wanted,
        page_size=page_size,
        wants_states=any(s.request.wants_state for s, _ in plan),
        draws=draws,
    )


def _draws(plan: Plan, wanted: NDArray[np.int32]) -> Draws:
    """A row for each logit row. Guesses are tokens that follow each other, so their draws are those of the next positions."""
    sequences = [s for s, _ in plan]
    params = [s.request.sampling for s in sequences]
    n_rows, ends = len(plan), np.cumsum(wanted)
    first = np.repeat(np.fromiter((len(s.tokens) for s in sequences), np.int32, n_rows), wanted)
    keys = np.fromiter(((s.seed + s.request.choice * CHOICE) % 2**64 for s in sequences), np.uint64, n_rows)
    return Draws(
        wanted=np.repeat(np.fromiter((s.is_plain_draw for s in sequences), np.bool_, n_rows), wanted),
        temperature=np.repeat(np.fromiter((p.temperature for p in params), np.float32, n_rows), wanted),
        top_k=np.repeat(np.fromiter((p.top_k for p in params), np.int32, n_rows), wanted),
        top_p=np.repeat(np.fromiter((p.top_p for p in params), np.float32, n_rows), wanted),
        min_p=np.repeat(np.fromiter((p.min_p for p in params), np.float32, n_rows), wanted),
        keys=np.repeat(keys.view(np.int64), wanted),
        positions=first + np.arange(ends[-1], dtype=np.int32) - np.repeat(ends - wanted, wanted).astype(np.int32),
    )


def n_logits(sequence: Sequence, n: int) -> int:
    """Rows of logits that a sequence gets from a step that computes `n` of its tokens."""
    return 1 + len(sequence.guessed) if n == sequence.missing else 0
