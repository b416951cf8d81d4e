"""One sequence on its way through the engine: what was asked, and how far it has come."""

import math
from array import array
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from ...wire.chat import Failure, FinishReason, SamplingParams, TokenLogprob
from .detokenize import Detokenizer
from .grammar import Grammar
from .prefix_tree import Node
from .speculative import Guesses
from .thought import AfterThought


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """What is asked of the engine. `choice` tells apart the n answers to one prompt, which share a seed but not their luck;
    `cache_salt` keeps prefixes of different owners apart."""

    id: str
    prompt_ids: Seq[int]
    sampling: SamplingParams
    choice: int = 0
    cache_salt: str = ""
    grammar: Grammar | AfterThought | None = None  # of this answer alone
    wants_state: bool = False  # no answer, but what the model makes of the prompt's last token


@dataclass(frozen=True, slots=True)
class TokenOutput:
    """What one step brought one sequence. Exactly one output of a sequence has `finish` or `failure`, and it is the last."""

    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish: FinishReason | None = None
    matched_stop: str | int | None = None
    failure: Failure | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0  # of the prompt, not computed again
    margins: tuple[float, float] | None = None  # of the last output, where asked for: all tokens' mean and least
    device_seconds: float | None = None  # of the last output: the sequence's share of all its steps
    state: NDArray[np.float32] | None = field(default=None, compare=False)  # [hidden], where the request wanted it
    input_seconds: float | None = None  # of them, what computed the prompt

    @property
    def is_last(self) -> bool:
        """Whether the sequence has ended."""
        return self.finish is not None or self.failure is not None


def joined(outputs: Seq[TokenOutput]) -> TokenOutput:
    """What one step brought a sequence, token by token, as one; only the last may be its last."""
    last = outputs[-1]
    if len(outputs) == 1:
        return last
    return replace(
        last,
        text="".join(output.text for output in outputs),
        token_ids=tuple(token for output in outputs for token in output.token_ids),
        logprobs=tuple(logprob for output in outputs for logprob in output.logprobs),
    )


@dataclass(slots=True, eq=False)
class Sequence:
    """A request with its state. The engine's thread alone touches it.

    `computed` counts the tokens whose keys and values lie in `pages`. Both, `nodes` and `saved` belong to the KvCache; nobody
    else changes them. The first `len(nodes)` pages are in the prefix tree and may be shared; the rest are this sequence's own.
    """

    request: GenerationRequest
    seed: int
    max_total: int  # prompt and answer together end here
    detokenizer: Detokenizer
    tokens: list[int]
    n_prompt: int
    computed: int = 0
    pages: "array[int]" = field(default_factory=lambda: array("i"))  # an array: numpy copies it without a look at each number
    nodes: list[Node] = field(default_factory=list)
    cached_tokens: int = 0  # of the prompt, taken from the tree or the store
    restoring: bool = False  # its next pages may be in the store: they are taken from there before it computes
    saved: int = 0  # of `nodes`, those that the store was told to keep
    preempted: bool = False
    aborted: Failure | None = None
    guesses: Guesses = field(default_factory=Guesses)
    guessed: list[int] = field(default_factory=list)  # tokens that this step computes after all known ones, on trial
    margin_sum: float = 0.0  # over the output, where the request asks for margins
    margin_least: float = math.inf
    takes_best: bool = field(init=False)  # nothing in the request asks for more than the most likely token
    draws_plainly: bool = field(init=False)  # nor for more than a draw from the truncated distribution

    def __post_init__(self) -> None:
        p = self.request.sampling
        shaped = p.repetition_penalty != 1 or p.presence_penalty or p.frequency_penalty or p.logit_bias
        plain = p.logprobs is None and not p.margins and not shaped and self.request.grammar is None
        self.takes_best = p.temperature == 0 and plain
        self.draws_plainly = p.temperature > 0 and plain

    def note_margin(self, margin: float) -> None:
        """Of a chosen token, which is not yet in `tokens`."""
        self.margin_sum += margin
        self.margin_least = min(self.margin_least, margin)

    @property
    def margins(self) -> tuple[float, float] | None:
        """Mean and least margin of the output; None where it has none, or was not asked for them."""
        known = self.request.sampling.margins and self.n_output and math.isfinite(self.margin_least)
        return (self.margin_sum / self.n_output, self.margin_least) if known else None

    @property
    def wants_logits(self) -> bool:
        """Whether the next token is chosen from a whole row of logits; else the most likely one is taken."""
        return not self.takes_best or self.n_output < self.request.sampling.min_tokens

    @property
    def is_plain_draw(self) -> bool:
        """Whether temperature, top_k, top_p and min_p are all that the next token's choice depends on."""
        p = self.request.sampling
        return self.draws_plainly and self.n_output >= p.min_tokens

    @property
    def n_output(self) -> int:
        """Tokens generated so far."""
        return len(self.tokens) - self.n_prompt

    @property
    def left(self) -> int:
        """Tokens that may still come."""
        return self.max_total - len(self.tokens)

    @property
    def missing(self) -> int:
        """Tokens to compute until the next one can be sampled; at least 1."""
        return len(self.tokens) - self.computed
