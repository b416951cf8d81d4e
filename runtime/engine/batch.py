"""The scheduler's plan as arrays: one flat ragged StepBatch."""

import numpy as np

from ...kernels.spec import StepBatch
from .scheduler import Plan


def build_batch(plan: Plan, page_size: int) -> StepBatch:
    """Lay the plan's tokens end to end, one row for each sequence in the plan's order."""
    lengths = np.array([n for _, n in plan], np.int32)
    starts = np.zeros(len(plan) + 1, np.int32)
    np.cumsum(lengths, out=starts[1:])
    first = np.array([s.computed for s, _ in plan], np.int32)
    positions = np.arange(starts[-1], dtype=np.int32) + np.repeat(first - starts[:-1], lengths)
    tables = np.zeros((len(plan), max(len(s.pages) for s, _ in plan)), np.int32)
    for row, (sequence, _) in enumerate(plan):
        tables[row, : len(sequence.pages)] = sequence.pages
    rows = np.repeat(np.arange(len(plan)), lengths)
    pages = tables[rows, positions // page_size].astype(np.int64)
    tokens = [token for s, n in plan for token in s.tokens[s.computed : s.computed + n]]
    ends = [i for i, (s, n) in enumerate(plan) if n == s.missing]  # all of its tokens computed: it can be sampled
    return StepBatch(
        tokens=np.array(tokens, np.int32),
        positions=positions,
        slots=pages * page_size + positions % page_size,
        row_starts=starts,
        context_lens=first + lengths,
        page_tables=tables,
        logit_rows=starts[1:][ends] - 1,
        page_size=page_size,
    )
