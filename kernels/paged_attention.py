"""Paged attention in plain torch: who reads which KV slots is planned once a step, then run once a layer.

A layer's pool is [n_slots + 1, 2, K, D]: keys and values of a token lie side by side, so that one copy writes both and one
gather reads both. The extra last slot is never written and stays zero: padding points at it. (A masked key has weight 0, but
0 * NaN is NaN: padding that pointed at a stranger's page could carry his broken numbers into our row.)

The H query heads that share one of the K key/value heads are treated as further queries of that head, [K, H / K], so keys
are never repeated.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from .spec import DecoderSpec, StepBatch

MASK_LIMIT = 1 << 22  # elements of one chunk's mask; longer chunks are cut
GROUP_BYTES = 2 << 20  # what a group of decode rows gathers should stay in cache until it is used
GROUP_FILL = 0.75  # a decode row joins a group if it fills this share of the longest row's keys


class KvPool:
    """The paged keys and values of all layers. Page p holds slots [p * page_size, (p + 1) * page_size) of every layer."""

    def __init__(self, spec: DecoderSpec, n_pages: int, page_size: int, device: torch.device, dtype: torch.dtype) -> None:
        shape = (spec.n_layers, n_pages * page_size + 1, 2, spec.n_kv_heads, spec.head_dim)
        self._all = torch.empty(shape, device=device, dtype=dtype)  # memory that is never used is never touched
        self._all[:, -1] = 0
        self.layers: tuple[torch.Tensor, ...] = self._all.unbind(0)
        self.page_size = page_size


@dataclass(frozen=True, slots=True)
class Chunk:
    """Neighbouring queries of one row: tokens start : end of T against the row's keys, in order."""

    start: int
    end: int
    slots: slice | torch.Tensor  # of the C keys; a slice (no copy) where the row's pages lie one after the other
    mask: torch.Tensor | None  # [end - start, C], 0 or -inf
    causal: bool  # query i sees keys 0 .. i: no mask is needed


@dataclass(frozen=True, slots=True)
class Group:
    """Decode rows of like length, B of them, their keys gathered side by side and padded to C."""

    tokens: torch.Tensor  # [B] indices into T
    slots: torch.Tensor  # [B * C]
    mask: torch.Tensor | None  # [B, 1, 1, C], 0 or -inf


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """Which queries meet which keys in this step, for all layers that have the same window."""

    groups: tuple[Group, ...]
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True, slots=True)
class _Span:
    """Queries start : end (of T) that see keys low : high (positions in the row); the first query is at `position`."""

    row: int
    start: int
    end: int
    position: int
    low: int
    high: int

    @property
    def keys(self) -> int:
        return self.high - self.low


def plan_attention(batch: StepBatch, window: int, like: torch.Tensor) -> AttentionPlan:
    """Plan a step for layers of one window (0 = none) whose pool is `like`: its device, dtype and token size count."""
    spans = [span for row in range(len(batch.context_lens)) for span in _spans(batch, row, window)]
    group_keys = GROUP_BYTES // (like[0].numel() * like.element_size())
    decodes = _grouped([s for s in spans if s.end - s.start == 1], group_keys)
    groups = tuple(_group(batch, members, like) for members in decodes if len(members) > 1)
    alone = [members[0] for members in decodes if len(members) == 1]
    chunks = [*alone, *(s for s in spans if s.end - s.start > 1)]
    return AttentionPlan(groups, tuple(_chunk(batch, s, window, like) for s in chunks))


def _spans(batch: StepBatch, row: int, window: int) -> Iterator[_Span]:
    """The row's queries, cut where a mask would become too large, with the keys that any of them sees."""
    start, end = int(batch.row_starts[row]), int(batch.row_starts[row + 1])
    context = int(batch.context_lens[row])
    before = context - (end - start)
    step = max(1, MASK_LIMIT // max(context, 1))
    for first in range(start, end, step):
        last = min(first + step, end)
        position = before + first - start
        low = max(0, position - window + 1) if window else 0
        yield _Span(row, first, last, position, low, before + last - start)


def _grouped(spans: list[_Span], group_keys: int) -> list[list[_Span]]:
    """Decode spans put together by length, longest first, so that little is padded and a group's keys fit the cache."""
    groups: list[list[_Span]] = []
    for span in sorted(spans, key=lambda s: -s.keys):
        longest = groups[-1][0].keys if groups else 0
        if span.keys >= GROUP_FILL * longest > 0 and (len(groups[-1]) + 1) * longest <= group_keys:
            groups[-1].append(span)
        else:
            groups.append([span])
    return groups


def _slots(batch: StepBatch, span: _Span) -> NDArray[np.int64] | slice:
    """The flat slots of the span's keys; a slice where they lie one after the other."""
    size = batch.page_size
    first_page = span.low // size
    pages = batch.page_tables[span.row, first_page : -(-span.high // size)].astype(np.int64)
    offset = span.low - first_page * size
    if np.array_equal(pages, np.arange(pages[0], pages[0] + len(pages))):
        begin = int(pages[0]) * size + offset
        return slice(begin, begin + span.keys)
    return (pages[:, None] * size + np.arange(size)).ravel()[offset : offset + span.keys]


def _group(batch: StepBatch, members: list[_Span], like: torch.Tensor) -> Group:
    longest = members[0].keys
    slots = np.full((len(members), longest), like.shape[0] - 1, dtype=np.int64)
    for i, span in enumerate(members):
        found = _slots(batch, span)
        slots[i, : span.keys] = np.arange(found.start, found.stop) if isinstance(found, slice) else found
    tokens = torch.tensor([s.start for s in members], device=like.device)
    mask = None
    if members[-1].keys < longest:
        hidden = np.arange(longest) >= np.array([[s.keys] for s in members])
        mask = _mask(hidden, like)[:, None, None]
    return Group(tokens, torch.from_numpy(slots.ravel()).to(like.device), mask)


def _chunk(batch: StepBatch, span: _Span, window: int, like: torch.Tensor) -> Chunk:
    found = _slots(batch, span)
    slots = found if isinstance(found, slice) else torch.from_numpy(found).to(like.device)
    queries = span.end - span.start
    cut = bool(window) and queries > window
    if queries == 1 or (span.keys == queries and not cut):
        return Chunk(span.start, span.end, slots, None, causal=queries > 1)
    query = np.arange(span.position, span.position + queries)[:, None]
    key = np.arange(span.low, span.high)[None]
    hidden = (key > query) | (key <= query - window) if window else key > query
    return Chunk(span.start, span.end, slots, _mask(hidden, like), causal=False)


def _mask(hidden: NDArray[np.bool_], like: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.where(hidden, np.float32(-np.inf), np.float32(0))).to(like)


def paged_attention(q: torch.Tensor, pool: torch.Tensor, plan: AttentionPlan, scale: float, cap: float = 0.0) -> torch.Tensor:
    """q [T, H, D] against one layer's pool [n_slots + 1, 2, K, D], this step's keys already in it: [T, H * D].

    scores = q . k * scale, soft-capped if `cap`; a query sees the keys of its own row up to itself, within the window.
    """
    tokens, heads, dim = q.shape
    shared = (pool.shape[2], heads // pool.shape[2], dim)
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    for group in plan.groups:
        kv = pool.index_select(0, group.slots).view(len(group.tokens), -1, *pool.shape[1:])
        queries = q.index_select(0, group.tokens).unflatten(1, shared[:2])
        found = _attend(queries, kv[:, :, 0].transpose(1, 2), kv[:, :, 1].transpose(1, 2), group.mask, False, scale, cap)
        out.index_copy_(0, group.tokens, found.flatten(1, 2))
    for chunk in plan.chunks:
        kv = pool[chunk.slots] if isinstance(chunk.slots, slice) else pool.index_select(0, chunk.slots)
        queries = q[chunk.start : chunk.end].unflatten(1, shared[:2]).permute(1, 2, 0, 3)
        k, v = (kv[:, i].transpose(0, 1)[:, None].expand(-1, shared[1], -1, -1) for i in (0, 1))
        found = _attend(queries, k, v, chunk.mask, chunk.causal, scale, cap)
        out[chunk.start : chunk.end] = found.permute(2, 0, 1, 3).flatten(1, 2)
    return out.view(tokens, heads * dim)


def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, causal: bool, scale: float, cap: float
) -> torch.Tensor:
    """Attention of q [.., Q, D] over k, v [.., C, D]; written out where a soft-cap stands between scores and softmax."""
    if not cap:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=scale)
    scores = torch.tanh(q @ k.transpose(-1, -2) * (scale / cap)) * cap
    if causal:
        mask = torch.full(scores.shape[-2:], -torch.inf, device=q.device, dtype=q.dtype).triu_(1)
    return torch.softmax(scores if mask is None else scores + mask, -1) @ v
