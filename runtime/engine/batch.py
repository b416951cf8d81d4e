"""The scheduler's plan as arrays: one flat ragged StepBatch."""

import numpy as np

from ...kernels.spec import StepBatch
from .scheduler import Plan


def build_batch(plan: Plan, page_size: int) -> StepBatch:
    """Lay the plan's tokens end to end, one row for each sequence in the plan's order.

    Logits are wanted of the last token of each row that has then caught up: that one can be sampled.
    """
    n_rows = len(plan)
    lengths = np.fromiter((n for _, n in plan), np.int32, n_rows)
    first = np.fromiter((s.computed for s, _ in plan), np.int32, n_rows)
    totals = np.fromiter((len(s.tokens) for s, _ in plan), np.int32, n_rows)
    starts = np.zeros(n_rows + 1, np.int32)
    np.cumsum(lengths, out=starts[1:])
    positions = np.arange(starts[-1], dtype=np.int32) + np.repeat(first - starts[:-1], lengths)
    tables = np.zeros((n_rows, max(len(s.pages) for s, _ in plan)), np.int32)
    for row, (sequence, _) in enumerate(plan):
        tables[row, : len(sequence.pages)] = sequence.pages
    pages = tables[np.repeat(np.arange(n_rows), lengths), positions // page_size].astype(np.int64)
    tokens = [token for s, n in plan for token in s.tokens[s.computed : s.computed + n]]
    caught_up = first + lengths == totals
    return StepBatch(
        tokens=np.array(tokens, np.int32),
        positions=positions,
        slots=pages * page_size + positions % page_size,
        row_starts=starts,
        context_lens=first + lengths,
        page_tables=tables,
        logit_rows=starts[1:][caught_up] - 1,
        full_logits=np.array([s.wants_logits for (s, _), sampled in zip(plan, caught_up, strict=True) if sampled], np.bool_),
        page_size=page_size,
    )
