"""Logits to tokens, in numpy.

A row's choice depends on its own logits, its request and its position, so the same seed gives the same text in any company:
the random number for the token at position p is drawn from a counter-based generator keyed by (seed, choice, p).

Order, as in vLLM: the grammar, bans, penalties and biases, temperature, min_p, top_k, top_p. Log-probabilities are those of
the model itself, before all of these.
"""

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...kernels.spec import StepOutput
from ...wire.chat import SamplingParams
from .grammar import Grammar
from .request import Sequence
from .thought import AfterThought

Logits = NDArray[np.float32]
Ids = Seq[int]
# Candidates for top_k and top_p are looked for among weights (the largest is 1) above the first of these; the next are tried
# only where that leaves out tokens that count. Sorting a whole vocabulary takes milliseconds, the few above 1e-3 far less.
FLOORS = (1e-3, 1e-5, 0.0)
BLOCK = 256  # of a cumulative sum in two levels
LEAST_LOGPROB = -9999.0  # JSON knows no infinity; OpenAI sends this


class BrokenLogits(ArithmeticError):
    """A row has no number that could win: NaN, +inf, or all -inf."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """A chosen token; with logprobs asked for, its own and the most likely ones' (token id, natural log)."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


def sample(result: StepOutput, row: int, sequence: Sequence, end_ids: Ids) -> Sampled:
    """The next token of `sequence` by row `row` of a step's result. `end_ids`: the model's end-of-sequence tokens. Raises
    BrokenLogits."""
    best, logits = int(result.best[row]), result.logits[row]
    if not result.finite[row]:
        raise BrokenLogits("the model's logits are not finite")
    if not sequence.wants_logits:
        return Sampled(best)
    if result.drawn is not None and result.drawn[row] >= 0:
        return Sampled(int(result.drawn[row]))
    params, grammar = sequence.request.sampling, sequence.request.grammar
    if grammar is None:
        banned = (*end_ids, *params.stop_token_ids) if sequence.n_output < params.min_tokens else ()
        token = _choose(logits, best, sequence, banned)
    else:
        # A grammar's own end comes before min_tokens: nothing else might be left to say.
        token = grammar.steer(_within(grammar, logits, best, sequence), sequence.left)
    return Sampled(token) if params.logprobs is None else _with_logprobs(logits, token, params.logprobs)


def margin(logits: Logits, token: int) -> float:
    """How much likelier `token` is than the likeliest other, in nats, before any shaping: below 0 where another is likelier.
    Two passes over a row of logits, tens of microseconds; what a softmax divides by cancels out."""
    own = logits[token]
    logits[token] = -np.inf
    other = logits.max()
    logits[token] = own
    return float(own - other)


def _within(grammar: Grammar | AfterThought, logits: Logits, best: int, sequence: Sequence) -> int:
    """A token that the grammar allows. The model's own choice mostly is one, and then no mask is made: a draw that is taken
    where it is allowed, and else made again among the allowed ones, has the distribution of those."""
    params = sequence.request.sampling
    if not (_is_shaped(params) or _is_truncated(params)):
        token = _choose(logits, best, sequence, ())
        if grammar.allows(token):
            return token
    allowed = np.where(grammar.mask(), logits, np.float32(-np.inf))
    return _choose(allowed, int(allowed.argmax()), sequence, (), draw=1)


def _choose(logits: Logits, best: int, sequence: Sequence, banned: Ids, draw: int = 0) -> int:
    params = sequence.request.sampling
    shaped = _shape(logits, sequence, banned) if banned or _is_shaped(params) else None
    if params.temperature == 0:
        return best if shaped is None else int(shaped.argmax())
    return _draw(logits if shaped is None else shaped, params, _uniform(sequence, draw))


def _is_truncated(p: SamplingParams) -> bool:
    return bool(p.temperature and (p.top_p < 1 or p.top_k or p.min_p))


def _is_shaped(p: SamplingParams) -> bool:
    return bool(p.repetition_penalty != 1 or p.presence_penalty or p.frequency_penalty or p.logit_bias)


def _shape(logits: Logits, sequence: Sequence, banned: Ids) -> Logits:
    """Bans, penalties (repetition over prompt and output, the others over output) and biases, on a copy."""
    params, shaped = sequence.request.sampling, logits.copy()
    shaped[list(banned)] = -np.inf
    if params.repetition_penalty != 1:
        seen = np.fromiter(set(sequence.tokens), np.intp)
        values = shaped[seen]
        shaped[seen] = np.where(values > 0, values / params.repetition_penalty, values * params.repetition_penalty)
    if (params.presence_penalty or params.frequency_penalty) and sequence.n_output:
        said, counts = np.unique(sequence.tokens[sequence.n_prompt :], return_counts=True)
        shaped[said] -= (params.presence_penalty + params.frequency_penalty * counts).astype(np.float32)
    for token, bias in params.logit_bias:
        shaped[token] += bias
    if not np.isfinite(shaped.max()):
        raise BrokenLogits("no token is left to choose from")
    return shaped


def _draw(logits: Logits, params: SamplingParams, u: float) -> int:
    """The token where `u` in [0, 1) falls in the cumulative sum of the truncated distribution."""
    # The largest weight is 1. A temperature near 0 must not overflow: what is far below the largest becomes 0.
    weights = np.exp((logits - logits.max()) * np.float32(1 / max(params.temperature, 1e-5)))
    if params.min_p:
        weights[weights < params.min_p] = 0
    if params.top_p >= 1 and not params.top_k:
        return _at(weights, u)
    ids = _candidates(weights, params)
    return int(ids[_at(weights[ids], u)])


def _at(weights: Logits, u: float) -> int:
    """The index where `u` times the sum falls in the cumulative sum of `weights`. Adds blocks first, then within one."""
    ends = np.cumsum(np.add.reduceat(weights, np.arange(0, len(weights), BLOCK)), dtype=np.float64)
    goal = u * ends[-1]
    block = min(int(np.searchsorted(ends, goal, side="right")), len(ends) - 1)
    inner = weights[block * BLOCK : (block + 1) * BLOCK]
    sums = np.cumsum(inner, dtype=np.float64)
    at = int(np.searchsorted(sums, goal - (ends[block - 1] if block else 0.0), side="right"))
    if at == len(inner):  # rounding carried the goal past the end: the last token that has any weight
        return int(np.flatnonzero(weights[: (block + 1) * BLOCK])[-1])
    return block * BLOCK + at


def _candidates(weights: Logits, params: SamplingParams) -> NDArray[np.intp]:
    """The ids that top_k and then top_p leave, most likely first, ties by id. top_p is a share of what top_k left."""
    k = params.top_k or len(weights)
    ids = np.empty(0, np.intp)
    for floor in FLOORS:
        ids = np.flatnonzero(weights > floor)
        ids = ids[np.argsort(-weights[ids], kind="stable")][:k]
        if params.top_k and len(ids) < k and floor:
            continue
        if params.top_p >= 1:
            break
        sums = np.cumsum(weights[ids], dtype=np.float64)
        share = params.top_p * (sums[-1] if params.top_k else weights.sum(dtype=np.float64))
        enough = int(np.searchsorted(sums, share)) + 1
        if enough <= len(ids):
            return ids[:enough]
    return ids


def _uniform(sequence: Sequence, draw: int) -> float:
    """The random number in [0, 1) for this sequence's next position, and for which draw of it."""
    key = np.array([sequence.seed % 2**64, sequence.request.choice], np.uint64)
    counter = np.array([len(sequence.tokens), draw, 0, 0], np.uint64)
    return float(np.random.Generator(np.random.Philox(key=key, counter=counter)).random())


def _with_logprobs(logits: Logits, token: int, k: int) -> Sampled:
    highest = logits.max()
    log_sum = float(highest) + float(np.log(np.exp(logits - highest).sum(dtype=np.float64)))
    k = min(k, len(logits))
    ids = np.argpartition(logits, len(logits) - k)[len(logits) - k :] if k else np.empty(0, np.intp)
    ids = ids[np.lexsort((ids, -logits[ids]))]
    top = [(int(i), max(LEAST_LOGPROB, float(logits[i]) - log_sum)) for i in ids]
    return Sampled(token, max(LEAST_LOGPROB, float(logits[token]) - log_sum), tuple(top))
