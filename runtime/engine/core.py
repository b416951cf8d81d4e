"""The engine without its thread: submit, abort, step. Synchronous, and it knows no clock, so a simulation can drive it."""

import logging
import secrets
from typing import Protocol

import numpy as np

from ...kernels.spec import StepBatch, StepOutput
from ...wire.chat import Failure, TokenLogprob
from ...wire.errors import BadRequest, ContextLengthExceeded
from .batch import build_batch, n_logits
from .config import EngineConfig
from .detokenize import Detokenizer, TokenBytes
from .kv_cache import KvCache
from .kv_store import PageStore
from .request import GenerationRequest, Sequence, TokenOutput, joined
from .sampler import Sampled, margin, sample
from .scheduler import Scheduler
from .speculative import observe
from .step_cost import Load

log = logging.getLogger("baseload.engine")

BROKEN = Failure("The model failed on this request.")
CANCELLED = Failure("The request was cancelled.", 499, "server_error", "cancelled")
Outputs = list[tuple[str, TokenOutput]]  # (request id, what the step brought it)


class EngineTokenizer(TokenBytes, Protocol):
    """What the engine needs of a tokenizer."""

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer."""
        ...


class StepRunner(Protocol):
    """What the engine needs of a model_runner.ModelRunner, which see."""

    @property
    def vocab(self) -> int:
        """Width of the logits."""
        ...

    @property
    def context_length(self) -> int:
        """The longest sequence, in tokens."""
        ...

    def run(self, batch: StepBatch) -> StepOutput:
        """What the model says for `batch.logit_rows`."""
        ...


class EngineCore:
    """Requests, pages and the model's steps. One thread at a time.

    Each submitted request gets exactly one output that is its last.
    """

    def __init__(
        self, runner: StepRunner, tokenizer: EngineTokenizer, config: EngineConfig, store: PageStore | None = None
    ) -> None:
        self._runner, self._tokenizer, self._config = runner, tokenizer, config
        self._end_ids = tuple(token for token in tokenizer.eos_ids if 0 <= token < runner.vocab)
        self.cache = KvCache(config.n_pages, config.page_size, store)
        self.scheduler = Scheduler(config, self.cache)
        self._sequences: dict[str, Sequence] = {}
        self._aborted: list[Sequence] = []
        self.loads: list[Load] = []  # of the last step; whoever has a clock divides its time by them
        self.steps = self.prompt_tokens = self.prefix_hit_tokens = self.generation_tokens = 0
        self.guessed_tokens = self.kept_tokens = 0

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
        n, vocab, sampling = len(request.prompt_ids), self._runner.vocab, request.sampling
        if n == 0:
            raise BadRequest("The prompt is empty.", param="prompt")
        if n >= self.longest:
            raise ContextLengthExceeded(
                f"This model's maximum context length is {self.longest} tokens. However, your prompt has {n} tokens. "
                "Please reduce the length of the prompt.",
                param="messages",
            )
        biased = [token for token, _ in sampling.logit_bias]
        for field, ids in (("prompt", request.prompt_ids), ("logit_bias", biased), ("stop_token_ids", sampling.stop_token_ids)):
            if ids and not 0 <= min(ids) <= max(ids) < vocab:
                raise BadRequest(f"{field} has a token id outside of the vocabulary of {vocab} tokens.", param=field)

    def submit(self, request: GenerationRequest) -> None:
        """Queue a request that `check` has passed and whose id no other live one has."""
        sampling, n_prompt = request.sampling, len(request.prompt_ids)
        asked = self.longest if sampling.max_tokens is None else n_prompt + sampling.max_tokens
        sequence = Sequence(
            request=request,
            seed=secrets.randbits(63) if sampling.seed is None else sampling.seed,
            max_total=min(asked, self.longest),
            detokenizer=Detokenizer(self._tokenizer, sampling.stop),
            tokens=list(request.prompt_ids),
            n_prompt=n_prompt,
        )
        self._sequences[request.id] = sequence
        self.scheduler.waiting.append(sequence)

    def abort(self, request_id: str, why: Failure = CANCELLED) -> None:
        """Mark a request; the next step frees it, and `why` is its last output. An unknown id is one that has ended."""
        sequence = self._sequences.get(request_id)
        if sequence is not None and sequence.aborted is None:
            sequence.aborted = why
            self._aborted.append(sequence)

    def step(self) -> Outputs:
        """Schedule, run, sample, emit. Never raises for what a request or the model does: that ends in a Failure."""
        outputs = self._reap()
        plan = self.scheduler.schedule()
        self.loads = [_load(sequence, n) for sequence, n in plan]
        if not plan:
            return outputs
        self.steps += 1
        try:
            result = self._runner.run(build_batch(plan, self._config.page_size, self._config.draws_on_device))
        except Exception:
            log.exception("a step of the model failed; its %d requests end", len(plan))
            return outputs + [self._fail(sequence, BROKEN) for sequence, _ in plan]
        row = 0
        for sequence, n in plan:
            if n_logits(sequence, n):
                outputs.append(self._emit(sequence, result, row))
                row += 1 + len(sequence.guessed)
            else:
                self.cache.advance(sequence, n)
        return outputs

    def check_integrity(self) -> None:
        """Raise AssertionError unless every page has one owner and every live sequence one place."""
        queued = [*self.scheduler.running, *self.scheduler.waiting]
        assert set(queued) == set(self._sequences.values()) and len(queued) == len(self._sequences), "a sequence is lost"
        assert not any(s.pages or s.computed for s in self.scheduler.waiting), "a waiting sequence holds pages"
        self.cache.check_integrity(self.scheduler.running)

    # ------------------------------------------------------------------------------------- within a step

    def _reap(self) -> Outputs:
        marked, self._aborted = self._aborted, []
        return [self._fail(sequence, sequence.aborted or CANCELLED, trusted=True) for sequence in marked]

    def _emit(self, sequence: Sequence, result: StepOutput, row: int) -> tuple[str, TokenOutput]:
        """Sample from `row` on: the token that is due, and one more for each guess that it proves right."""
        known, guessed, outputs = len(sequence.tokens), sequence.guessed, []
        if sequence.request.wants_state:
            return self._emit_state(sequence, result, row)
        try:
            for i in range(1 + len(guessed)):
                chosen = sample(result, row + i, sequence, self._end_ids)
                if sequence.request.sampling.margins:
                    sequence.note_margin(margin(result.logits[row + i], chosen.token))
                outputs.append(self._take(sequence, chosen))
                if outputs[-1].is_last or guessed[i : i + 1] != [chosen.token]:
                    break
        except BadRequest as error:  # its grammar asks for too much
            return self._fail(sequence, Failure(error.message, error.status, error.kind, error.code))
        except Exception:
            log.exception("request %s ends: its next token could not be made", sequence.request.id)
            return self._fail(sequence, BROKEN)
        if guessed:
            self.guessed_tokens += len(guessed)
            self.kept_tokens += len(outputs) - 1
            observe(sequence.guesses, len(guessed), len(outputs) - 1)
        # What was computed: all that was known, and the guesses that were right.
        self.cache.advance(sequence, known - sequence.computed + len(outputs) - 1)
        self.cache.save(sequence)
        output = joined(outputs)
        if output.is_last:
            self._forget(sequence)
        return sequence.request.id, output

    def _emit_state(self, sequence: Sequence, result: StepOutput, row: int) -> tuple[str, TokenOutput]:
        assert result.states is not None
        state = result.states[row].copy()
        if not np.isfinite(state).all():
            return self._fail(sequence, BROKEN)
        self.cache.advance(sequence, len(sequence.tokens) - sequence.computed)
        self.cache.save(sequence)
        self.prompt_tokens += sequence.n_prompt
        self.prefix_hit_tokens += sequence.cached_tokens
        self._forget(sequence)
        prompt, cached = sequence.n_prompt, sequence.cached_tokens
        return sequence.request.id, TokenOutput(finish="stop", state=state, prompt_tokens=prompt, cached_tokens=cached)

    def _take(self, sequence: Sequence, chosen: Sampled) -> TokenOutput:
        """The sequence with its new token, and what that means for the client."""
        sequence.tokens.append(chosen.token)
        self._count(sequence)
        params, detokenizer, token = sequence.request.sampling, sequence.detokenizer, chosen.token
        text, stop, finish = "", None, None
        grammar = sequence.request.grammar
        if grammar is not None:
            grammar.take(token)
        if token in params.stop_token_ids or (token in self._end_ids and not params.ignore_eos):
            stop = token if token in params.stop_token_ids else None
            finish = "stop"
        else:
            text = detokenizer.push(token, may_stop=sequence.n_output >= params.min_tokens)
            if grammar is not None and grammar.is_over:
                finish = "stop"
            elif sequence.left <= 0:
                finish = "length"
        if finish is not None:
            text += detokenizer.flush()
        if detokenizer.stopped is not None:  # the flush can do that too: half a character is shown as one, which may end it
            stop, finish = detokenizer.stopped, "stop"
        return TokenOutput(
            text=text,
            token_ids=(token,),
            logprobs=self._logprobs(chosen),
            finish=finish,
            matched_stop=stop,
            prompt_tokens=sequence.n_prompt,
            cached_tokens=sequence.cached_tokens,
            margins=sequence.margins if finish is not None else None,
        )

    def _count(self, sequence: Sequence) -> None:
        self.generation_tokens += 1
        if sequence.n_output == 1:
            self.prompt_tokens += sequence.n_prompt
            self.prefix_hit_tokens += sequence.cached_tokens

    def _logprobs(self, chosen: Sampled) -> tuple[TokenLogprob, ...]:
        if chosen.logprob is None:
            return ()
        top = tuple(self._named(token, logprob) for token, logprob in chosen.top)
        return (self._named(chosen.token, chosen.logprob, top),)

    def _named(self, token: int, logprob: float, top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
        spelled = self._tokenizer.token_bytes(token)
        return TokenLogprob(spelled.decode("utf-8", "replace"), logprob, spelled, token, top)

    def _fail(self, sequence: Sequence, why: Failure, *, trusted: bool = False) -> tuple[str, TokenOutput]:
        self._forget(sequence, trusted=trusted)
        output = TokenOutput(failure=why, prompt_tokens=sequence.n_prompt, cached_tokens=sequence.cached_tokens)
        return sequence.request.id, output

    def _forget(self, sequence: Sequence, *, trusted: bool = True) -> None:
        del self._sequences[sequence.request.id]
        self.scheduler.remove(sequence, trusted=trusted)


def _load(sequence: Sequence, n: int) -> Load:
    """A token that follows a sampled one is a decode; all else, guesses on trial too, is computed like a prompt."""
    decode = int(n == sequence.missing and sequence.n_output > 0)
    guessed = len(sequence.guessed)
    return Load(sequence.request.id, n - decode + guessed, decode, guessed)
