"""Logits to tokens, in numpy.

A row's choice depends on its own logits, its request and its position, so the same seed gives the same text in any company:
the random number for the token at position p is drawn from a counter-based generator keyed by (seed, choice, p).

Order, as in vLLM: penalties and biases, temperature, min_p, top_k, top_p. Log-probabilities are those of the model itself,
before all of these.
"""

from collections.abc import Sequence as Rows
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...wire.chat import SamplingParams
from .request import Sequence

Logits = NDArray[np.float32]
FIRST_LOOK = 256  # candidates that nearly always hold all of top_p's mass; more are looked at only if they do not


class BrokenLogits(ArithmeticError):
    """A row has no number that could win: NaN, +inf, or all -inf."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """A chosen token; with logprobs asked for, its own and the most likely ones' (token id, natural log)."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


def sample(logits: Logits, rows: Rows[Sequence], end_ids: frozenset[int]) -> list[Sampled | Exception]:
    """One token for each row of `logits` [L, vocab]. What goes wrong with a row is returned in its place: it must not
    cost the others their step. `end_ids`: the model's end-of-sequence tokens."""
    best = logits.argmax(1)  # one pass for all; a NaN wins, so it is found here too
    top = logits[np.arange(len(rows)), best]
    out: list[Sampled | Exception] = []
    for i, sequence in enumerate(rows):
        try:
            if not np.isfinite(top[i]):
                raise BrokenLogits("the model's logits are not finite")
            token = int(best[i]) if _is_plain(sequence, end_ids) else _choose(logits[i], sequence, end_ids)
            out.append(_with_logprobs(logits[i], token, sequence.request.sampling.logprobs))
        except Exception as error:
            out.append(error)
    return out


def _is_plain(sequence: Sequence, end_ids: frozenset[int]) -> bool:
    """Whether the largest logit is the answer."""
    p = sequence.request.sampling
    shaped = p.repetition_penalty != 1 or p.presence_penalty or p.frequency_penalty or p.logit_bias
    return p.temperature == 0 and not shaped and not _banned(sequence, end_ids)


def _choose(logits: Logits, sequence: Sequence, end_ids: frozenset[int]) -> int:
    params = sequence.request.sampling
    shaped = _shape(logits, sequence, _banned(sequence, end_ids))
    if params.temperature == 0:
        return int(shaped.argmax())
    return _draw(shaped / np.float64(max(params.temperature, 1e-5)), params, _uniform(sequence))


def _banned(sequence: Sequence, end_ids: frozenset[int]) -> tuple[int, ...]:
    """Tokens that may not come yet (min_tokens)."""
    params = sequence.request.sampling
    if sequence.n_output >= params.min_tokens:
        return ()
    return (*end_ids, *params.stop_token_ids)


def _shape(logits: Logits, sequence: Sequence, banned: tuple[int, ...]) -> NDArray[np.float64]:
    """Penalties (repetition over prompt and output, the others over output), biases and bans on a copy."""
    params, shaped = sequence.request.sampling, logits.astype(np.float64)
    if params.repetition_penalty != 1:
        seen = np.unique(sequence.tokens)
        values = shaped[seen]
        shaped[seen] = np.where(values > 0, values / params.repetition_penalty, values * params.repetition_penalty)
    if (params.presence_penalty or params.frequency_penalty) and sequence.n_output:
        said, counts = np.unique(sequence.tokens[sequence.n_prompt :], return_counts=True)
        shaped[said] -= params.presence_penalty + params.frequency_penalty * counts
    if params.logit_bias:
        ids, biases = zip(*params.logit_bias, strict=True)
        np.add.at(shaped, list(ids), biases)
    shaped[list(banned)] = -np.inf
    if not np.isfinite(shaped.max()):
        raise BrokenLogits("no token is left to choose from")
    return shaped


def _draw(scaled: NDArray[np.float64], params: SamplingParams, u: float) -> int:
    """The token where `u` in [0, 1) falls in the truncated distribution's cumulative sum.

    Candidates stand in falling order of probability (ties by id), so that a small change of the tail moves no other token.
    """
    weights = np.exp(scaled - scaled.max())
    if params.min_p:
        weights[weights < params.min_p] = 0  # the largest weight is 1
    if params.top_p >= 1 and not params.top_k:
        sums = np.cumsum(weights)
        return int(np.searchsorted(sums, u * sums[-1], side="right"))
    ids = _candidates(weights, params)
    sums = np.cumsum(weights[ids])
    return int(ids[min(np.searchsorted(sums, u * sums[-1], side="right"), len(ids) - 1)])


def _candidates(weights: NDArray[np.float64], params: SamplingParams) -> NDArray[np.intp]:
    """The ids that top_k and then top_p leave, most likely first. Sorts few: a whole vocabulary takes milliseconds."""
    k = min(params.top_k or len(weights), len(weights))
    look = min(k, FIRST_LOOK)
    while True:
        ids = np.argpartition(-weights, look - 1)[:look] if look < len(weights) else np.arange(len(weights))
        ids = ids[np.lexsort((ids, -weights[ids]))]
        if params.top_p >= 1:
            if look == k:
                return ids
        else:
            # top_p is a share of what top_k left.
            total = weights.sum() if k == len(weights) else weights[np.argpartition(-weights, k - 1)[:k]].sum()
            sums = np.cumsum(weights[ids])
            enough = int(np.searchsorted(sums, params.top_p * total)) + 1
            if enough <= look or look == k:
                return ids[:enough]
        look = min(k, look * 8)


def _uniform(sequence: Sequence) -> float:
    """The random number for this sequence's next position."""
    key = np.array([sequence.seed & (2**64 - 1), sequence.request.choice], np.uint64)
    counter = np.array([len(sequence.tokens), 0, 0, 0], np.uint64)
    return float(np.random.Generator(np.random.Philox(key=key, counter=counter)).random())


def _with_logprobs(logits: Logits, token: int, k: int | None) -> Sampled:
    if k is None:
        return Sampled(token)
    wide = logits.astype(np.float64)
    log_sum = wide.max() + np.log(np.exp(wide - wide.max()).sum())
    ids = np.argpartition(-wide, k - 1)[:k] if k else np.empty(0, np.intp)
    ids = ids[np.lexsort((ids, -wide[ids]))]
    return Sampled(token, float(wide[token] - log_sum), tuple((int(i), float(wide[i] - log_sum)) for i in ids))
