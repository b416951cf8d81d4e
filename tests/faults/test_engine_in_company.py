"""A long life of the engine in little time: random requests, aborts and tiny pools, step by step and without a clock.

Unlike test_scheduler_simulation.py this draws with temperature, penalties and stop strings, lets the token budget be smaller
than the batch, and has each request answered by a second engine that serves it alone. The full run:

    BASELOAD_SIM_SEEDS=20 BASELOAD_SIM_REQUESTS=100000
"""

import os
import time
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from baseload.runtime.engine.config import EngineConfig
from baseload.runtime.engine.core import CANCELLED, EngineCore
from baseload.runtime.engine.request import GenerationRequest, TokenOutput
from baseload.wire.chat import SamplingParams

from ..runtime.engine.fake_model import VOCAB, FakeRunner, FakeTokenizer

SEEDS = int(os.environ.get("BASELOAD_SIM_SEEDS", "8"))
REQUESTS = int(os.environ.get("BASELOAD_SIM_REQUESTS", "200"))
MAX_LIVE = 48


@dataclass
class Asked:
    """A live request: what came of it so far, and by which step it must have ended."""

    request: GenerationRequest
    deadline: int
    outputs: list[TokenOutput] = field(default_factory=list)
    aborted: bool = False


class Simulation:
    """One seed's engine, its clients, and a second engine that answers each request alone."""

    def __init__(self, seed: int) -> None:
        self.rng = rng = np.random.default_rng(seed)
        page_size = int(rng.choice([1, 2, 3, 4, 8, 16]))
        n_pages = int(rng.integers(max(3, 24 // page_size), max(4, 256 // page_size)))
        max_batch, token_budget = int(rng.choice([1, 2, 5, 16, 40])), int(rng.choice([1, 3, 8, 32, 128]))
        self.config = EngineConfig(n_pages, page_size, max_batch, token_budget)
        context = int(rng.integers(20, 120))
        self.runner = FakeRunner(context_length=context)
        self.core = EngineCore(self.runner, FakeTokenizer(), self.config)
        alone = replace(self.config, max_batch=1, token_budget=512)
        self.alone = EngineCore(FakeRunner(context_length=context), FakeTokenizer(), alone)
        self.longest = self.core.longest
        self.beginnings = [self._tokens(int(rng.integers(1, self.longest))) for _ in range(6)]
        self.live: dict[str, Asked] = {}
        self.now = self.submitted = self.finished = self.cancelled = self.hits = 0
        self.step_s = 0.0

    def run(self, n_requests: int) -> None:
        """Serve `n_requests`, in waves, and come to rest."""
        rng, rate = self.rng, 0.5
        while self.submitted < n_requests or self.live:
            if rng.random() < 0.01:
                rate = float(rng.choice([0.1, 0.5, 2.0]))
            if len(self.live) < MAX_LIVE:
                for _ in range(min(int(rng.poisson(rate)), n_requests - self.submitted)):
                    self._arrive()
            if self.live and rng.random() < 0.02:
                self._abort()
            self._step()
            if rng.random() < 0.02:
                self.core.check_integrity()
        self._check_rest()

    def _tokens(self, n: int) -> list[int]:
        return self.rng.integers(0, VOCAB, n).tolist()

    def _sampling(self) -> SamplingParams:
        rng = self.rng
        greedy = rng.random() < 0.6
        return SamplingParams(
            temperature=0.0 if greedy else float(rng.uniform(0.2, 2)),
            top_k=int(rng.choice([0, 1, 5, 50])),
            top_p=float(rng.choice([1.0, 0.5, 0.9])),
            repetition_penalty=float(rng.choice([1.0, 1.0, 1.3])),
            seed=int(rng.integers(1000)),
            max_tokens=None if rng.random() < 0.03 else int(min(40, rng.geometric(0.12))),
            min_tokens=int(rng.choice([0, 0, 0, 4])),
            stop=(chr(33 + int(rng.integers(60))),) if rng.random() < 0.1 else (),
            ignore_eos=bool(rng.random() < 0.2),
        )

    def _arrive(self) -> None:
        rng = self.rng
        prompt = self._tokens(int(rng.integers(1, min(30, self.longest))))
        if rng.random() < 0.7:
            beginning = self.beginnings[int(rng.integers(len(self.beginnings)))]
            prompt = beginning[: int(rng.integers(1, len(beginning) + 1))] + prompt[: int(rng.integers(0, 6))]
        salt = str(rng.integers(2))
        request = GenerationRequest(f"r{self.submitted}", prompt[: self.longest - 1], self._sampling(), 0, salt)
        self.core.check(request)
        self.core.submit(request)
        self.submitted += 1
        # Everybody before it may need each token computed alone; what runs beside it may go first once.
        self.live[request.id] = Asked(request, self.now + (len(self.live) + 1 + self.config.max_batch) * self.longest + 1)

    def _abort(self) -> None:
        asked = self.live[list(self.live)[int(self.rng.integers(len(self.live)))]]
        self.core.abort(asked.request.id)
        if self.rng.random() < 0.2:
            self.core.abort(asked.request.id)  # once more changes nothing
        asked.aborted = True

    def _step(self) -> None:
        steps, has_work = self.core.steps, any(not asked.aborted for asked in self.live.values())
        began = time.perf_counter()
        outputs = self.core.step()
        self.step_s += time.perf_counter() - began
        self.now += 1
        assert self.core.steps == steps + has_work, "a step did nothing, or something for nobody"
        assert len(dict(outputs)) == len(outputs), "two outputs of one request in one step"
        for id, output in outputs:
            assert id in self.live, "an output after the last one"
            self._take(self.live[id], output)
        assert not any(asked.aborted for asked in self.live.values()), "an aborted request outlived a step"
        late = [asked.request.id for asked in self.live.values() if self.now > asked.deadline]
        assert not late, f"starved: {late}"
        assert len(self.core.scheduler.running) <= self.config.max_batch

    def _take(self, asked: Asked, output: TokenOutput) -> None:
        if output.is_last:
            del self.live[asked.request.id]
        if asked.aborted:
            assert output.failure == CANCELLED and not output.text and not output.token_ids, "more after an abort"
            self.cancelled += 1
            return
        assert output.failure is None and output.token_ids, output
        asked.outputs.append(output)
        if output.is_last:
            self.finished += 1
            self.hits += output.cached_tokens
            assert said(asked.outputs) == said(self._answer_alone(asked.request)), "company changed an answer"

    def _answer_alone(self, request: GenerationRequest) -> list[TokenOutput]:
        self.alone.submit(replace(request, cache_salt=request.id))
        outputs: list[TokenOutput] = []
        while self.alone.is_busy:
            outputs += [output for _, output in self.alone.step()]
        assert outputs[-1].cached_tokens == 0
        return outputs

    def _check_rest(self) -> None:
        cache = self.core.cache
        self.core.check_integrity()
        assert not self.core.is_busy and not self.core.step()
        assert cache.n_free + cache.tree.n_unused == cache.n_pages == cache.n_available, "a page was lost"
        assert self.finished + self.cancelled == self.submitted


def said(outputs: list[TokenOutput]) -> tuple[object, ...]:
    """An answer as the client sees it."""
    assert [output.is_last for output in outputs].count(True) == 1 and outputs[-1].is_last
    tokens = [token for output in outputs for token in output.token_ids]
    text, end = "".join(output.text for output in outputs), outputs[-1]
    return tokens, text, end.finish, end.matched_stop, end.prompt_tokens


@pytest.mark.timeout(0 if "BASELOAD_SIM_REQUESTS" in os.environ else 300)
@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_busy_life_loses_no_page_and_answers_as_if_each_request_were_alone(seed: int):
    simulation = Simulation(seed)
    simulation.run(REQUESTS)
    core, runner = simulation.core, simulation.runner
    each = 1e6 / core.steps
    print(
        f"\nseed {seed}: {simulation.finished} finished, {simulation.cancelled} cancelled, {core.steps} steps, "
        f"{core.scheduler.preemptions} preemptions, {simulation.hits} tokens from the cache; "
        f"{(simulation.step_s - runner.seconds) * each:.0f} µs/step and {runner.seconds * each:.0f} µs in the model; "
        f"{simulation.config}"
    )
