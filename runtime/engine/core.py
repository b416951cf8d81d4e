"""The engine without its thread: submit, abort, step. Synchronous, and it knows no clock, so a simulation can drive it."""

import logging
import secrets
from collections.abc import Iterable
from typing import Protocol

from ...wire.chat import Failure, FinishReason, TokenLogprob
from ...wire.errors import BadRequest, ContextLengthExceeded
from .batch import build_batch
from .config import EngineConfig
from .detokenize import Detokenizer, TokenBytes
from .kv_cache import KvCache
from .model_runner import ModelRunner
from .request import GenerationRequest, Sequence, TokenOutput
from .sampler import Sampled, sample
from .scheduler import Plan, Scheduler

log = logging.getLogger("baseload.engine")

BROKEN = Failure("The model failed on this request.", code="engine_error")
Outputs = list[tuple[str, TokenOutput]]  # (request id, what the step brought it)


class EngineTokenizer(TokenBytes, Protocol):
    """What the engine needs of a tokenizer."""

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer."""
        ...


class EngineCore:
    """Requests, pages and the model's steps. One thread at a time."""

    def __init__(self, runner: ModelRunner, tokenizer: EngineTokenizer, config: EngineConfig) -> None:
        self._runner, self._tokenizer, self._config = runner, tokenizer, config
        self._end_ids = frozenset(tokenizer.eos_ids)
        self.cache = KvCache(config.n_pages, config.page_size)
        self.scheduler = Scheduler(config, self.cache)
        self._sequences: dict[str, Sequence] = {}
        self._aborted: list[Sequence] = []
        self.steps = self.prompt_tokens = self.generation_tokens = 0
        self.prefix_query_tokens = self.prefix_hit_tokens = 0

    @property
    def longest(self) -> int:
        """The longest sequence that fits, in tokens: the model's context, or the whole pool if that is smaller."""
        return min(self._runner.context_length, self._config.n_pages * self._config.page_size)

    @property
    def is_busy(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._sequences)

    def check(self, request: GenerationRequest) -> None:
        """Raise BadRequest or ContextLengthExceeded for what can never be answered. Safe from any thread."""
        n, vocab = len(request.prompt_ids), self._runner.vocab
        if n == 0:
            raise BadRequest("The prompt is empty.", param="prompt")
        if n >= self.longest:
            raise ContextLengthExceeded(
                f"This model's maximum context length is {self.longest} tokens. However, your prompt has {n} tokens. "
                "Please shorten it.",
                param="messages",
            )
        if not all(0 <= token < vocab for token in request.prompt_ids):
            raise BadRequest(f"The prompt holds a token id outside the vocabulary of {vocab}.", param="prompt")
        if not all(0 <= token < vocab for token, _ in request.sampling.logit_bias):
            raise BadRequest(f"logit_bias holds a token id outside the vocabulary of {vocab}.", param="logit_bias")
        if not all(0 <= token < vocab for token in request.sampling.stop_token_ids):
            raise BadRequest(f"stop_token_ids holds an id outside the vocabulary of {vocab}.", param="stop_token_ids")

    def submit(self, request: GenerationRequest) -> None:
        """Queue a request that `check` has passed and whose id no other live one has."""
        sampling, prompt = request.sampling, list(request.prompt_ids)
        asked = self.longest if sampling.max_tokens is None else len(prompt) + sampling.max_tokens
        seed = secrets.randbits(63) if sampling.seed is None else sampling.seed
        sequence = Sequence(
            request=request,
            seed=seed,
            max_total=min(asked, self.longest),
            detokenizer=Detokenizer(self._tokenizer, sampling.stop),
            tokens=prompt,
        )
        self._sequences[request.id] = sequence
        self.scheduler.waiting.append(sequence)

    def abort(self, request_id: str) -> None:
        """Mark a request; the end of the step, or the beginning of the next, frees it. An unknown id is one that ended."""
        sequence = self._sequences.get(request_id)
        if sequence is not None and not sequence.aborted:
            sequence.aborted = True
            self._aborted.append(sequence)

    def step(self) -> Outputs:
        """Schedule, run, sample, emit. Never raises for what a request or the model does: that ends in a Failure."""
        self._reap()
        plan = self.scheduler.schedule()
        if not plan:
            return []
        self.steps += 1
        try:
            logits = self._runner.run(build_batch(plan, self._config.page_size))
        except Exception:
            log.exception("a step of the model failed; its %d requests end", len(plan))
            return [self._end(sequence, TokenOutput(failure=BROKEN)) for sequence, _ in plan]
        ready = [sequence for sequence, n in plan if n == sequence.missing]
        self._count(plan)
        self.scheduler.computed(plan)
        outputs = [self._emit(sequence, chosen) for sequence, chosen in self._sampled(logits, ready)]
        self._reap()
        return outputs

    def fail_all(self, failure: Failure) -> Outputs:
        """End everything."""
        return [self._end(sequence, TokenOutput(failure=failure)) for sequence in list(self._sequences.values())]

    def check_integrity(self) -> None:
        """Raise AssertionError unless every page has one owner and every live sequence one place."""
        queued = [*self.scheduler.running, *self.scheduler.waiting]
        assert set(queued) == set(self._sequences.values()) and len(queued) == len(self._sequences), "a sequence is lost"
        self.cache.check_integrity(self.scheduler.running)
        assert not any(s.pages for s in self.scheduler.waiting), "a waiting sequence holds pages"

    # ------------------------------------------------------------------------------------- within a step

    def _reap(self) -> None:
        for sequence in self._aborted:
            self._forget(sequence)
        self._aborted = []

    def _sampled(self, logits: object, ready: list[Sequence]) -> Iterable[tuple[Sequence, Sampled | Exception]]:
        if not ready:
            return []
        try:
            chosen = sample(logits, ready, self._end_ids)  # pyright: ignore[reportArgumentType]
        except Exception as error:  # not one row's fault: all of them end
            chosen = [error] * len(ready)
        return zip(ready, chosen, strict=True)

    def _count(self, plan: Plan) -> None:
        for sequence, n in plan:
            if sequence.n_output == 0 and sequence.computed == sequence.cached_tokens:
                self.prefix_query_tokens += sequence.n_prompt
                self.prefix_hit_tokens += sequence.cached_tokens
            self.prompt_tokens += max(0, min(n, sequence.n_prompt - sequence.computed))

    def _emit(self, sequence: Sequence, chosen: Sampled | Exception) -> tuple[str, TokenOutput]:
        try:
            if isinstance(chosen, Exception):
                raise chosen
            output = self._take(sequence, chosen)
        except Exception:
            log.exception("request %s ends: its next token could not be made", sequence.request.id)
            return self._end(sequence, TokenOutput(failure=BROKEN))
        return self._end(sequence, output) if output.is_last else (sequence.request.id, output)

    def _take(self, sequence: Sequence, chosen: Sampled) -> TokenOutput:
        """The sequence with its new token, and what that means for the client."""
        self.generation_tokens += 1
        sequence.tokens.append(chosen.token)
        params, text = sequence.request.sampling, ""
        stop: str | int | None = None
        if chosen.token in params.stop_token_ids:
            stop = chosen.token
        ended = stop is not None or (chosen.token in self._end_ids and not params.ignore_eos)
        if not ended:
            text = sequence.detokenizer.push(chosen.token, may_stop=sequence.n_output >= params.min_tokens)
            stop = sequence.detokenizer.stopped
        finish: FinishReason | None = "stop" if ended or stop is not None else None
        if finish is None and len(sequence.tokens) >= sequence.max_total:
            finish = "length"
        if finish is not None and sequence.detokenizer.stopped is None:
            text += sequence.detokenizer.flush()
        return TokenOutput(
            text=text,
            token_ids=(chosen.token,),
            logprobs=(self._logprob(chosen),) if chosen.logprob is not None else (),
            finish=finish,
            matched_stop=stop,
            prompt_tokens=sequence.n_prompt,
            cached_tokens=sequence.cached_tokens,
        )

    def _logprob(self, chosen: Sampled) -> TokenLogprob:
        top = tuple(self._named(token, logprob) for token, logprob in chosen.top)
        return self._named(chosen.token, chosen.logprob or 0.0, top)

    def _named(self, token: int, logprob: float, top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
        spelled = self._tokenizer.token_bytes(token)
        return TokenLogprob(spelled.decode("utf-8", "replace"), logprob, spelled, token, top)

    def _end(self, sequence: Sequence, output: TokenOutput) -> tuple[str, TokenOutput]:
        self._forget(sequence)
        return sequence.request.id, output

    def _forget(self, sequence: Sequence) -> None:
        if self._sequences.get(sequence.request.id) is sequence:
            del self._sequences[sequence.request.id]
            self.scheduler.remove(sequence)
