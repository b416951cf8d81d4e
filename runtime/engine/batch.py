"""The scheduler's plan as arrays: one flat ragged StepBatch."""

import numpy as np

from ...kernels.spec import StepBatch
from .request import Sequence
from .scheduler import Plan


def build_batch(plan: Plan, page_size: int) -> StepBatch:
    """Lay the plan's tokens end to end, one row for each sequence in the plan's order.

    Logits are wanted of the last token of each row that has then caught up, for that one can be sampled, and of each token
    guessed after it.
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
    return StepBatch(
        tokens=np.array(tokens, np.int32),
        positions=positions,
        slots=pages * page_size + positions % page_size,
        row_starts=starts,
        context_lens=first + lengths,
        page_tables=tables,
        logit_rows=logit_rows,
        full_logits=np.repeat(np.fromiter((s.wants_logits for s, _ in plan), np.bool_, n_rows), wanted),
        page_size=page_size,
        wants_states=any(s.request.wants_state for s, _ in plan),
    )


def n_logits(sequence: Sequence, n: int) -> int:
    """Rows of logits that a sequence gets from a step that computes `n` of its tokens."""
    return 1 + len(sequence.guessed) if n == sequence.missing else 0
