"""Tokens drawn from logits without sorting them: a program a row.

min_p, top_k and top_p keep the heaviest tokens down to some weight, so instead of sorting, that weight is searched for: the
bits of positive floats are ordered like the floats, and each pass over the row counts and sums what lies above eight values
between the bounds so far. It ends when the bounds enclose what is wanted; mostly after three to six passes, ten at most
(compare Dao et al., FlashInfer's rejection sampling, arXiv 2501.01005, section on sampling). Among equal weights at the
boundary the lowest ids stay, as in runtime/engine/sampler.py, whose distribution this is.

The random number for a token depends on its row's key and position alone (Philox; Salmon et al., SC 2011).
"""
# pyright: reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false
# (kernels are in a language of their own, and a launch takes options that no signature has)

import torch
import triton
import triton.language as tl

from .launch import INTERPRETED

BLOCK = 4096  # logits at a time; not yet measured
FLOOR = tl.constexpr(0x00800000)  # bits of the smallest normal float32: what weighs less (the heaviest weighs 1) has no chance
ABOVE_ONE = tl.constexpr(0x3F800001)  # bits of the next float after 1
PIVOTS = tl.constexpr(8)


@triton.jit
def _weights(logits, row_at, low, vocab, highest, inverse, BLOCK: tl.constexpr):
    """exp((logit - highest) / temperature) of a block; 0 past the vocabulary."""
    at = low + tl.arange(0, BLOCK)
    x = tl.load(logits + row_at + at, mask=at < vocab, other=float("-inf")).to(tl.float32)
    return tl.exp((x - highest) * inverse)


@triton.jit
def _above(logits, row_at, vocab, highest, inverse, bounds, BLOCK: tl.constexpr):
    """How many tokens have weights whose bits are at least each of `bounds` [PIVOTS], and what these weigh together."""
    counts = tl.zeros([PIVOTS], tl.int32)
    masses = tl.zeros([PIVOTS], tl.float32)
    for low in range(0, vocab, BLOCK):
        w = _weights(logits, row_at, low, vocab, highest, inverse, BLOCK)
        is_above = w.to(tl.int32, bitcast=True)[:, None] >= bounds[None, :]
        counts += tl.sum(is_above.to(tl.int32), 0)
        masses += tl.sum(tl.where(is_above, w[:, None], 0.0), 0)
    return counts, masses


@triton.jit
def _narrow(logits, row_at, vocab, highest, inverse, low, high, n_low, n_high, mass_low, mass_high,
            goal_n, goal_mass, BY_MASS: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """Bits low < high: tokens from `low` on reach the goal (a count, or a mass), those from `high` on do not, and what lies
    between is one token, or tokens of one weight, or, for a count, exactly those that the goal still asks for."""
    i = tl.arange(0, PIVOTS).to(tl.int64) + 1
    done = n_low - n_high <= 1 if BY_MASS else n_low == goal_n
    while (high - low > 1) & (not done):
        bounds = (low + (high - low).to(tl.int64) * i // (PIVOTS + 1)).to(tl.int32)
        counts, masses = _above(logits, row_at, vocab, highest, inverse, bounds, BLOCK)
        reached = masses >= goal_mass if BY_MASS else counts >= goal_n
        low = tl.maximum(low, tl.max(tl.where(reached, bounds, 0), 0))
        high = tl.minimum(high, tl.min(tl.where(reached, ABOVE_ONE, bounds), 0))
        n_low = tl.minimum(n_low, tl.min(tl.where(reached, counts, n_low), 0))
        n_high = tl.maximum(n_high, tl.max(tl.where(reached, 0, counts), 0))
        mass_low = tl.minimum(mass_low, tl.min(tl.where(reached, masses, mass_low), 0))
        mass_high = tl.maximum(mass_high, tl.max(tl.where(reached, 0.0, masses), 0))
        done = n_low - n_high <= 1 if BY_MASS else n_low == goal_n
    return low, high, n_low, n_high, mass_low, mass_high


@triton.jit
def _sample(logits, temperatures, top_ks, top_ps, min_ps, uniforms, best_out, finite_out, token_out, vocab, row_stride,
            BLOCK: tl.constexpr):  # fmt: skip
    row = tl.program_id(0)
    row_at = row.to(tl.int64) * row_stride
    at = tl.arange(0, BLOCK)

    highest = tl.full([], float("-inf"), tl.float32)
    best = tl.full([], 0, tl.int32)
    broken = tl.full([], 0, tl.int32)
    for low in range(0, vocab, BLOCK):
        x = tl.load(logits + row_at + low + at, mask=low + at < vocab, other=float("-inf")).to(tl.float32)
        broken += tl.sum((x != x).to(tl.int32), 0)
        x = tl.where(x != x, float("-inf"), x)
        top = tl.max(x, 0)
        first = tl.min(tl.where(x == top, low + at, vocab), 0)
        best = tl.where(top > highest, first, best).to(tl.int32)
        highest = tl.maximum(highest, top)
    finite = (broken == 0) & (highest > float("-inf")) & (highest < float("inf"))
    tl.store(best_out + row, best)
    tl.store(finite_out + row, finite.to(tl.int8))

    temperature = tl.load(temperatures + row)
    token = best
    if finite & (temperature > 0):
        inverse = 1.0 / tl.maximum(temperature, 1e-5)
        top_k, top_p, min_p = tl.load(top_ks + row), tl.load(top_ps + row), tl.load(min_ps + row)
        low = tl.maximum(FLOOR, min_p.to(tl.int32, bitcast=True))
        high = tl.full([], ABOVE_ONE, tl.int32)
        counts, masses = _above(logits, row_at, vocab, highest, inverse, low + tl.zeros([PIVOTS], tl.int32), BLOCK)
        n_low, mass_low = tl.max(counts, 0), tl.max(masses, 0)
        n_high, mass_high = n_low * 0, mass_low * 0
        left = n_low  # of the tokens between low and high, so many stay, lowest ids first
        if (top_k > 0) & (top_k < n_low):
            low, high, n_low, n_high, mass_low, mass_high = _narrow(
                logits, row_at, vocab, highest, inverse, low, high, n_low, n_high, mass_low, mass_high,
                top_k, 0.0, False, BLOCK
            )  # fmt: skip
            left = top_k - n_high
        mass = mass_low
        if left < n_low - n_high:  # equal weights, of which some stay
            mass = mass_high + left * low.to(tl.float32, bitcast=True)
        if top_p < 1:
            floor, allowed, goal = low, left, tl.maximum(top_p * mass, 1e-30)
            if mass_high >= goal:  # nothing at top_k's boundary is needed
                n_low, mass_low, low = n_high, mass_high, high
                high, n_high, mass_high = tl.full([], ABOVE_ONE, tl.int32), n_low * 0, mass_low * 0
            low, high, n_low, n_high, mass_low, mass_high = _narrow(
                logits, row_at, vocab, highest, inverse, low, high, n_low, n_high, mass_low, mass_high, 0, goal, True, BLOCK
            )
            needed = tl.ceil((goal - mass_high) / low.to(tl.float32, bitcast=True)).to(tl.int32)
            left = tl.minimum(tl.maximum(needed, 1), n_low - n_high)
            left = tl.where(low == floor, tl.minimum(left, allowed), left)
            mass = mass_low
            if left < n_low - n_high:
                mass = mass_high + left * low.to(tl.float32, bitcast=True)

        goal = tl.load(uniforms + row) * mass
        passed, seen, found, last = mass * 0, left * 0, best * 0 - 1, best
        for begin in range(0, vocab, BLOCK):
            w = _weights(logits, row_at, begin, vocab, highest, inverse, BLOCK)
            bits = w.to(tl.int32, bitcast=True)
            boundary = (bits >= low) & (bits < high)
            rank = seen + tl.cumsum(boundary.to(tl.int32), 0)
            w = tl.where((bits >= high) | (boundary & (rank <= left)), w, 0.0)
            here = tl.sum(w, 0)
            if (found < 0) & (passed + here > goal):
                beyond = passed + tl.cumsum(w, 0) > goal
                hit = tl.min(tl.where(beyond & (w > 0), begin + at, vocab), 0)
                end = tl.max(tl.where(w > 0, begin + at, 0), 0)  # where the two sums of the block differ in their last bits
                found = tl.where(hit < vocab, hit, end).to(tl.int32)
            last = tl.maximum(last, tl.max(tl.where(w > 0, begin + at, 0), 0)).to(tl.int32)
            passed += here
            seen += tl.sum(boundary.to(tl.int32), 0)
        token = tl.where(found >= 0, found, last)
    tl.store(token_out + row, token)


@triton.jit
def _uniforms(keys, positions, out):
    row = tl.program_id(0)
    tl.store(out + row, tl.rand(tl.load(keys + row), tl.load(positions + row)))


def uniforms(keys: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """A float32 in [0, 1) for each key [L] int64 and position [L] int32: the same for the same two, in any company."""
    out = torch.empty(len(keys), device=keys.device, dtype=torch.float32)
    if len(keys):
        _uniforms[(len(keys),)](keys, positions, out, num_warps=1)
    return out


def sample(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    uniform: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(best int32, finite int8, token int32), [L] each, of logits [L, vocab]: the largest logit's lowest index; whether it is
    finite and the row has no NaN; and the token where `uniform` [L] falls in the truncated distribution's cumulative sum by id.

    temperature [L] float32, 0: the best. top_k [L] int32, 0: all. top_p and min_p [L] float32; 1 and 0: all. A row that is not
    finite draws its best.
    """
    rows, vocab = logits.shape
    best = torch.empty(rows, device=logits.device, dtype=torch.int32)
    finite = torch.empty(rows, device=logits.device, dtype=torch.int8)
    token = torch.empty_like(best)
    block = min(1 << 16, triton.next_power_of_2(vocab)) if INTERPRETED else BLOCK
    if rows:
        _sample[(rows,)](
            logits, temperature, top_k, top_p, min_p, uniform, best, finite, token, vocab, logits.stride(0),
            BLOCK=block, num_warps=8,
        )  # fmt: skip
    return best, finite, token
