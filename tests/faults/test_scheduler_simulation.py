"""The scheduler, cache and step under seeded arrivals, aborts, faults and tiny pools, on a virtual clock.

The model is a fake that keeps, per KV slot, the token and position written there, and whose next token is a hash of the whole
context as it stands in the pages that it is shown. A page that is shared wrongly, freed too early or filled twice changes the
text. Half of the seeds have a store of pages that outlive the pool, late to copy and seldom to be relied on, which is handed
on to a second engine. Checked: text equal to the same request's alone, one end per request, page counts, bounded waiting.

The full run, 10^5 requests for each of 20 seeds:

    python tests/faults/test_scheduler_simulation.py --requests 100000 --seeds 20
"""

import argparse
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
from numpy.typing import NDArray

from baseload.kernels.spec import StepBatch, StepOutput
from baseload.runtime.engine.config import EngineConfig
from baseload.runtime.engine.core import BROKEN, CANCELLED, EngineCore
from baseload.runtime.engine.request import GenerationRequest, TokenOutput
from baseload.wire.chat import SamplingParams

REQUESTS = int(os.environ.get("BASELOAD_SIMULATION_REQUESTS", "1500"))
SEEDS = int(os.environ.get("BASELOAD_SIMULATION_SEEDS", "3"))

VOCAB, CONTEXT, EOS, POISON = 131, 96, 0, 130
BASE = 0x9E3779B97F4A7C15
POWERS = np.array([pow(BASE, i + 1, 2**64) for i in range(CONTEXT + 64)], np.uint64)


def next_token(context_hash: int) -> int:
    """The fake model's answer to a context; never POISON."""
    return (context_hash ^ (context_hash >> 29)) * 0xBF58476D1CE4E5B9 % 2**64 // 2**40 % (VOCAB - 1)


class ModelDown(RuntimeError):
    """The whole step fails."""


class FakeModel:
    """See above. A context that holds POISON answers NaN; `fail_at` steps raise."""

    vocab, context_length = VOCAB, CONTEXT

    def __init__(self, config: EngineConfig, fail_at: frozenset[int] = frozenset()) -> None:
        slots = np.full(config.n_pages * config.page_size, -1, [("token", np.int64), ("position", np.int64)])
        self.tokens, self.positions = slots["token"], slots["position"]
        self.pages = slots.view(np.uint8).reshape(config.n_pages, -1)
        self.config, self._fail_at, self.steps = config, fail_at, 0

    def run(self, batch: StepBatch) -> StepOutput:
        self.steps += 1
        self._check_shape(batch)
        if self.steps in self._fail_at:
            raise ModelDown
        self.tokens[batch.slots], self.positions[batch.slots] = batch.tokens, batch.positions
        seen = self._contexts(batch)
        rows = np.searchsorted(batch.row_starts, batch.logit_rows, side="right") - 1
        logits = np.zeros((len(rows), VOCAB), np.float32)
        for i, (row, token) in enumerate(zip(rows, batch.logit_rows, strict=True)):
            context = seen[row, : batch.positions[token] + 1]  # not what a row guesses after it
            logits[i, next_token(int((context.astype(np.uint64) * POWERS[: len(context)]).sum()))] = 3
            if (context == POISON).any():
                logits[i] = np.nan
        return StepOutput.of(logits)

    def _check_shape(self, batch: StepBatch) -> None:
        lengths = np.diff(batch.row_starts)
        assert 0 < len(batch.tokens) <= self.config.token_budget and len(lengths) <= self.config.max_batch
        assert (lengths > 0).all() and len(np.unique(batch.slots)) == len(batch.slots), "two tokens write one slot"
        assert (batch.positions[batch.row_starts[1:] - 1] + 1 == batch.context_lens).all()

    def _contexts(self, batch: StepBatch) -> NDArray[np.int64]:
        """[R, C] tokens that each row sees; after its last, anything."""
        size = batch.page_size
        slots = (batch.page_tables[:, :, None] * size + np.arange(size)).reshape(len(batch.page_tables), -1)
        inside = np.arange(slots.shape[1]) < batch.context_lens[:, None]
        assert (self.positions[slots] == np.arange(slots.shape[1]))[inside].all(), "a row sees a slot of another position"
        return self.tokens[slots]


class LateStore:
    """A PageStore that copies pages when it gets round to it, and loses some. `pages` is the pool of who uses it now."""

    def __init__(self, rng: random.Random, most: int) -> None:
        self.pages = np.zeros((0, 0), np.uint8)
        self.kept: dict[bytes, NDArray[np.uint8]] = {}
        self.loads = self.restored = 0
        self._rng, self._most = rng, most
        self._asked: list[tuple[bytes, int, Callable[[], bool]]] = []

    def has(self, key: bytes) -> bool:
        return key in self.kept

    def load(self, key: bytes, page: int) -> bool:
        self.loads += 1
        if self._rng.random() < 0.1:  # broken
            self.kept.pop(key)
            self.pages[page] = 255
            return False
        self.pages[page] = self.kept[key]
        self.restored += 1
        return True

    def keep(self, key: bytes, page: int, depth: int, is_kept: Callable[[], bool]) -> None:
        self._asked.append((key, page, is_kept))

    def discard(self, key: bytes) -> None:
        self.kept.pop(key, None)
        self._asked = [asked for asked in self._asked if asked[0] != key]

    def work(self) -> None:
        """The store's thread has its turn."""
        while self._asked and self._rng.random() < 0.8:
            key, page, is_kept = self._asked.pop(0)
            if is_kept():
                self.kept[key] = self.pages[page].copy()
        while len(self.kept) > self._most:
            self.kept.pop(self._rng.choice(list(self.kept)))


class FakeTokenizer:
    """Tokens are characters; some take two tokens."""

    eos_ids = (EOS,)

    def token_bytes(self, id: int, /) -> bytes:
        return b"\xc3" if id % 16 == 7 else bytes([0xA0 + id % 16]) if id > 100 else bytes([64 + id % 26])


@dataclass
class Expected:
    """What a request must come to, alone; and what has come."""

    request: GenerationRequest
    tokens: list[int]
    reason: str
    arrived: int = 0
    bound: int = 0
    abort_at: int | None = None  # the step before which its client leaves
    got: list[int] = field(default_factory=list)
    text: str = ""
    end: TokenOutput | None = None


def alone(request: GenerationRequest) -> tuple[list[int], str]:
    """The tokens and the end of a greedy request without stop strings, worked out without an engine."""
    context = list(request.prompt_ids)
    if POISON in context:
        return [], "failure"
    context_hash = sum(token * int(POWERS[i]) for i, token in enumerate(context)) % 2**64
    sampling, out = request.sampling, []
    most = min(sampling.max_tokens or CONTEXT, CONTEXT - len(context))
    while len(out) < most:
        token = next_token(context_hash)
        out.append(token)
        if token in sampling.stop_token_ids or (token == EOS and not sampling.ignore_eos):
            return out, "stop"
        context_hash = (context_hash + token * int(POWERS[len(context)])) % 2**64
        context.append(token)
    return out, "length"


class Simulation:
    """One seed: a stream of requests through one EngineCore."""

    def __init__(self, seed: int, n_requests: int) -> None:
        self.rng = rng = random.Random(seed)
        page_size = rng.choice((2, 4, 8))
        # The smallest pool holds one longest sequence and a little more; budgets go from one token a row to whole prompts.
        n_pages = CONTEXT // page_size + rng.randrange(1, 80)
        max_batch = rng.choice((1, 3, 8, 16, 32) if n_requests < 1000 else (8, 16, 32))
        budget = max_batch + rng.choice((1, 7, 40, 200))
        self.config = EngineConfig(n_pages, page_size, max_batch, budget, restored_pages=rng.choice((1, 2, 16)))
        fail_at = frozenset(rng.sample(range(1, n_requests * 4), n_requests // 400))
        self.model = FakeModel(self.config, fail_at)
        self.store = LateStore(rng, rng.choice((10, 100, 1000))) if seed % 2 else None
        self.core = self._start()
        self.n_requests, self.clock, self.next_arrival, self.made = n_requests, 0.0, 0.0, 0
        self.live: dict[str, Expected] = {}
        self.families = [self._family() for _ in range(8)]
        self.last_prompt = [1]
        self.ends: Counter[str] = Counter()
        self.restarts = 0

    def _start(self) -> EngineCore:
        if self.store is not None:
            self.store.pages = self.model.pages
        return EngineCore(self.model, FakeTokenizer(), self.config, self.store)

    def run(self) -> "Simulation":
        while self.made < self.n_requests or self.live:
            if self.store is not None and not self.live and self.rng.random() < 0.02:
                self.store._asked.clear()
                self.core, self.restarts = self._start(), self.restarts + 1
            self._arrive()
            self._step()
            if self.core.steps % 16 == 0 or not self.live:
                self.core.check_integrity()
                self._check_pages()
                self._check_patience()
        assert self.core.cache.n_available == self.config.n_pages, "a page was not given back"
        assert sum(self.ends.values()) == self.n_requests
        return self

    def _tokens(self, n: int) -> list[int]:
        return [self.rng.randrange(1, POISON) for _ in range(n)]

    def _family(self) -> list[int]:
        """A beginning of many prompts; some say the same again and again, so that a page of tokens has many places."""
        n = self.rng.randrange(60)
        return self._tokens(n) if self.rng.random() < 0.6 else [*self._tokens(self.rng.choice((0, 2))), *([7, 8] * 30)][:n]

    def _make(self) -> Expected:
        rng = self.rng
        head = rng.choice(self.families)
        if rng.random() < 0.02:
            self.families[rng.randrange(8)] = self._family()
        prompt = [*head[: rng.randrange(len(head) + 1)], *self._tokens(rng.choice((1, 1, 3, 20)))]
        if rng.random() < 0.15:
            prompt = list(self.last_prompt)
        self.last_prompt = list(prompt)
        if rng.random() < 0.01:
            prompt[rng.randrange(len(prompt))] = POISON
        sampling = SamplingParams(
            temperature=0.0,
            max_tokens=rng.choice((None, 1, 2, 5, 12, 30)),
            stop_token_ids=tuple(self._tokens(3)) if rng.random() < 0.2 else (),
            ignore_eos=rng.random() < 0.3,
        )
        request = GenerationRequest(str(self.made), tuple(prompt), sampling, cache_salt=rng.choice(("", "", "b")))
        return Expected(request, *alone(request))

    def _arrive(self) -> None:
        while self.made < self.n_requests and self.next_arrival <= self.clock:
            expected = self._make()
            self.core.check(expected.request)
            # Each step moves the oldest on by a token at least; so nobody waits for longer than all before need in turn.
            ahead = sum(_most_tokens(e.request) for e in self.live.values())
            expected.arrived, expected.bound = self.model.steps, ahead + _most_tokens(expected.request) + 2
            expected.abort_at = expected.arrived + self.rng.randrange(60) if self.rng.random() < 0.15 else None
            self.live[expected.request.id] = expected
            self.core.submit(expected.request)
            self.made += 1
            # Waves: calm hours, and crowds of dozens at once.
            self.next_arrival += self.rng.expovariate(2.0 if self.made // 300 % 2 else 0.2) * (len(self.live) < 60 or 8)

    def _step(self) -> None:
        if not self.live:
            self.clock = max(self.clock, self.next_arrival)
            return
        leaving = [e for e in self.live.values() if e.abort_at is not None and e.abort_at <= self.model.steps]
        for expected in leaving:
            self.core.abort(expected.request.id)
        before, loads, restored = self.model.steps, self.store and self.store.loads, self.store.restored if self.store else 0
        outputs = self.core.step()
        self.clock += 1
        assert outputs or self.model.steps == before + 1 or (self.store and self.store.loads != loads), "work, but no step"
        if self.store is not None:
            assert self.store.restored - restored <= self.config.restored_pages, "reading held up the step"
            self.store.work()
        for request_id, output in outputs:
            self._take(self.live[request_id], output)
        assert all(e.end is not None for e in leaving), "an abort took longer than a step"

    def _take(self, expected: Expected, output: TokenOutput) -> None:
        assert expected.end is None, "an output after the end"
        expected.got += output.token_ids
        expected.text += output.text
        assert expected.got == expected.tokens[: len(expected.got)], "not the text of the request alone"
        if not output.is_last:
            return
        expected.end = output
        del self.live[expected.request.id]
        kind = self._kind(expected, output)
        self.ends[kind] += 1

    def _kind(self, expected: Expected, output: TokenOutput) -> str:
        if output.failure is not None:
            step_failed = self.model.steps in self.model._fail_at
            allowed = expected.reason == "failure" or step_failed if output.failure is BROKEN else expected.abort_at is not None
            assert allowed and output.failure in (BROKEN, CANCELLED), output.failure
            return "broken" if output.failure is BROKEN else "aborted"
        assert (expected.got, output.finish) == (expected.tokens, expected.reason)
        assert output.cached_tokens < output.prompt_tokens == len(expected.request.prompt_ids)
        assert expected.text == spelled(expected.got, output.finish == "stop"), "not the tokens' text"
        return str(output.finish)

    def _check_patience(self) -> None:
        late = [e.request.id for e in self.live.values() if self.model.steps - e.arrived > e.bound]
        assert not late, f"starved: {late}"

    def _check_pages(self) -> None:
        """What lies in each running sequence's pages is that sequence."""
        size = self.config.page_size
        for sequence in self.core.scheduler.running:
            slots = (np.array(sequence.pages)[:, None] * size + np.arange(size)).ravel()[: sequence.computed]
            assert self.model.tokens[slots].tolist() == sequence.tokens[: sequence.computed]


def _most_tokens(request: GenerationRequest) -> int:
    return min(CONTEXT, len(request.prompt_ids) + (request.sampling.max_tokens or CONTEXT))


def spelled(tokens: list[int], stopped: bool) -> str:
    """The text of an answer; the token that stopped it is not part of it."""
    shown = tokens[:-1] if stopped else tokens
    return b"".join(FakeTokenizer().token_bytes(token) for token in shown).decode("utf-8", "replace")


@pytest.mark.parametrize("seed", range(SEEDS))
def test_any_order_of_arrival_gives_each_request_its_own_text(seed: int):
    simulation = Simulation(seed, REQUESTS).run()
    assert simulation.ends["length"] and simulation.ends["stop"]
    assert simulation.ends["broken"] and simulation.ends["aborted"]


def test_the_simulation_does_push_out_evict_and_share():
    """Over its seeds it must reach what it is there to test."""
    seen: Counter[str] = Counter()
    for seed in range(100, 118):
        simulation = Simulation(seed, 300).run()
        seen["preempted"] += simulation.core.scheduler.preemptions
        seen["cached"] += simulation.core.prefix_hit_tokens
        seen["in the tree at the end"] += simulation.core.cache.tree.n_pages
        seen["restored"] += simulation.store.restored if simulation.store else 0
        seen["restarts"] += simulation.restarts
    assert all(seen[what] for what in ("preempted", "cached", "in the tree at the end", "restored", "restarts")), seen


def test_seeded_sampling_is_the_same_in_any_company():
    """Temperature and a seed: alone in a large pool, and among others in a pool so small that they push each other out."""
    rng = random.Random(5)
    prompts = [[rng.randrange(1, POISON) for _ in range(rng.randrange(1, 40))] for _ in range(40)]
    sampling = SamplingParams(temperature=1.5, seed=11, max_tokens=30, ignore_eos=True)
    requests = [GenerationRequest(f"{i}", tuple(p), sampling, choice=i % 3) for i, p in enumerate(prompts)]
    crowded = EngineConfig(n_pages=30, page_size=4, max_batch=12, token_budget=20)
    together, core = _answers(requests, crowded)
    assert core.scheduler.preemptions > 0
    for request in requests:
        assert _answers([request], EngineConfig())[0][request.id] == together[request.id]


def _answers(requests: list[GenerationRequest], config: EngineConfig) -> tuple[dict[str, list[int]], EngineCore]:
    core = EngineCore(FakeModel(config), FakeTokenizer(), config)
    answers: dict[str, list[int]] = {request.id: [] for request in requests}
    for request in requests:
        core.submit(request)
    while core.is_busy:
        for request_id, output in core.step():
            answers[request_id] += output.token_ids
    core.check_integrity()
    return answers, core


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="The full simulation.")
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    args = parser.parse_args()
    for number in range(args.first, args.first + args.seeds):
        began = time.perf_counter()
        done = Simulation(number, args.requests).run()
        took, steps = time.perf_counter() - began, done.model.steps
        print(f"seed {number}: {steps} steps, {done.core.scheduler.preemptions} pushed out, {dict(done.ends)}, {took:.0f} s")
