"""What a request wants done to its logits before a token is drawn, in place: a grammar's mask, penalties, biases, bans.

Penalties touch the few tokens that a sequence has, so they come as a list a row instead of a table of the vocabulary's size:
a logit becomes l / r or, if negative, l * r (repetition; Keskar et al., arXiv 1909.05858), and then l + shift.
"""
# pyright: reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false
# (kernels are in a language of their own, and a launch takes options that no signature has)

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from .launch import INTERPRETED

BLOCK = 1024  # not yet measured


@dataclass(frozen=True, slots=True)
class Changes:
    """Changes of single logits, row after row: row r's are starts[r] : starts[r + 1]; a token stands once in a row."""

    starts: torch.Tensor  # [L + 1] int32
    tokens: torch.Tensor  # [N] int32
    repetition: torch.Tensor  # [N] float32; 1: none
    shift: torch.Tensor  # [N] float32: biases less penalties; -inf bans


@triton.jit
def _change(logits, starts, tokens, repetition, shift, row_stride, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    begin, end = tl.load(starts + row), tl.load(starts + row + 1)
    for low in range(begin, end, BLOCK):
        at = low + tl.arange(0, BLOCK)
        inside = at < end
        place = logits + row.to(tl.int64) * row_stride + tl.load(tokens + at, mask=inside, other=0)
        x = tl.load(place, mask=inside, other=0.0)
        r = tl.load(repetition + at, mask=inside, other=1.0)
        x = tl.where(x > 0, x / r, x * r) + tl.load(shift + at, mask=inside, other=0.0)
        tl.store(place, x, mask=inside)


@triton.jit
def _mask(logits, masks, mask_of, vocab, row_stride, mask_stride, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    mask = tl.load(mask_of + row)
    if mask >= 0:
        at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        inside = at < vocab
        word = tl.load(masks + mask.to(tl.int64) * mask_stride + at // 32, mask=inside, other=0)
        forbidden = inside & (((word >> (at % 32)) & 1) == 0)
        tl.store(logits + row.to(tl.int64) * row_stride + at, float("-inf"), mask=forbidden)


def change(logits: torch.Tensor, changes: Changes) -> None:
    """Apply `changes` to logits [L, vocab] in place."""
    if len(logits) and len(changes.tokens):
        _change[(len(logits),)](
            logits, changes.starts, changes.tokens, changes.repetition, changes.shift, logits.stride(0), BLOCK=BLOCK
        )


def mask(logits: torch.Tensor, masks: torch.Tensor, mask_of: torch.Tensor) -> None:
    """Put -inf where a row's mask has a 0. masks [M, ceil(vocab / 32)] int32, lowest bit first, as llguidance fills them;
    mask_of [L] int32: which of them a row has, -1: none."""
    rows, vocab = logits.shape
    if rows and len(masks):
        block = triton.next_power_of_2(vocab) if INTERPRETED else BLOCK
        grid = (rows, triton.cdiv(vocab, block))
        _mask[grid](logits, masks, mask_of, vocab, logits.stride(0), masks.stride(0), BLOCK=block)
