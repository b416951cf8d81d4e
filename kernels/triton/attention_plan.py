"""Which programs a step's attention takes. Made once a step on the host, for all layers of one window.

Rows of one token (decode) come from as many programs as keep the GPU busy, each with a segment of the row's keys, and are put
together afterwards; longer rows (chunks of prompts) are cut into blocks of queries, each with all its keys.
"""

from dataclasses import dataclass

import numpy as np
import torch

from ..spec import StepBatch

MAX_SEGMENTS = 16
PROGRAMS = 264  # twice an H100's 132 processors: enough programs to have two on each. Not yet measured
LEAST_KEYS = 256  # a segment of fewer keys costs more to put together than it saves; not yet measured


@dataclass(frozen=True, slots=True)
class Launch:
    """Rows that are computed together."""

    rows: torch.Tensor  # [B] int32 on the device
    queries: int  # of the row that has most
    keys: int  # that a query sees at most


@dataclass(frozen=True, slots=True)
class DevicePlan:
    """A step's rows on the device, and the launches that cover them."""

    row_starts: torch.Tensor  # [R + 1] int32
    context_lens: torch.Tensor  # [R] int32
    page_tables: torch.Tensor  # [R, P] int32
    page_size: int
    window: int
    launches: tuple[Launch, ...]


def segments(n_rows: int, n_kv_heads: int, keys: int) -> int:
    """Into how many segments the keys of decode rows are cut: a power of two."""
    found = 1
    while found < MAX_SEGMENTS and n_rows * n_kv_heads * found < PROGRAMS and keys > 2 * found * LEAST_KEYS:
        found *= 2
    return found


def plan_attention(batch: StepBatch, window: int, like: torch.Tensor) -> DevicePlan:
    """The plan for layers of one window (0 = none); tables go to the device of the pool `like`."""

    def put(table: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(table, np.int32)).to(like.device, non_blocking=True)

    lengths, seen = np.diff(batch.row_starts), batch.context_lens
    order = np.argsort(-seen, kind="stable")  # the longest first: what begins last should end soon
    launches = []
    for rows in (order[lengths[order] == 1], order[lengths[order] > 1]):
        if len(rows):
            longest = int(seen[rows[0]])
            launches.append(Launch(put(rows), int(lengths[rows].max()), min(longest, window) if window else longest))
    tables = (put(batch.row_starts), put(batch.context_lens), put(batch.page_tables))
    return DevicePlan(*tables, batch.page_size, window, tuple(launches))
