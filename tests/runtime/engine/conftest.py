"""A model and a tokenizer for the engine's tests: no weights, but real pages."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from baseload.kernels.spec import StepBatch, StepOutput
from baseload.runtime.engine.config import EngineConfig
from baseload.runtime.engine.core import EngineCore
from baseload.runtime.engine.detokenize import Detokenizer
from baseload.runtime.engine.request import GenerationRequest, TokenOutput
from baseload.runtime.engine.request import Sequence as EngineSequence
from baseload.wire.chat import SamplingParams

VOCAB = 256


class Tokenizer:
    """Token 0 ends an answer; all others are the byte of their number."""

    eos_ids = (0,)

    def token_bytes(self, id: int, /) -> bytes:
        return bytes([id]) if id else b""


def count_up(context: Sequence[int]) -> int:
    """The next letter after the last, a after z."""
    return 97 + (context[-1] - 96) % 26


class Model:
    """Answers `answer(context)`, the context read back from the pages that the step shows. `hook` sees each batch first."""

    def __init__(
        self, config: EngineConfig, answer: Callable[[Sequence[int]], Any] = count_up, context_length: int = 512
    ) -> None:
        self.vocab, self.context_length = VOCAB, context_length
        self.answer: Callable[[Sequence[int]], Any] = answer
        self.hook: Callable[[StepBatch], None] = lambda batch: None
        self.batches: list[StepBatch] = []
        self._slots = np.full(config.n_pages * config.page_size, -1, np.int64)

    @property
    def n_tokens(self) -> int:
        """Tokens computed so far."""
        return sum(len(batch.tokens) for batch in self.batches)

    def run(self, batch: StepBatch) -> StepOutput:
        self.batches.append(batch)
        self.hook(batch)
        self._slots[batch.slots] = batch.tokens
        rows = np.searchsorted(batch.row_starts, batch.logit_rows, side="right") - 1
        logits = [self._logits(batch, row, int(batch.positions[i]) + 1) for i, row in zip(batch.logit_rows, rows, strict=True)]
        return only_asked(StepOutput.of(np.array(logits, np.float32).reshape(-1, VOCAB)), batch)

    def _logits(self, batch: StepBatch, row: int, seen: int) -> NDArray[np.float32]:
        slots = (batch.page_tables[row][:, None] * batch.page_size + np.arange(batch.page_size)).ravel()
        answer = self.answer(self._slots[slots[:seen]].tolist())
        return answer if isinstance(answer, np.ndarray) else np.eye(1, VOCAB, answer, dtype=np.float32)[0] * 5


def only_asked(output: StepOutput, batch: StepBatch) -> StepOutput:
    """The logits that the batch asked for; nonsense in place of all others."""
    output.logits[~batch.full_logits] = 1e9
    return output


class Bench:
    """A core on a fake model, driven by hand; collects what comes out."""

    def __init__(self, answer: Callable[[Sequence[int]], Any] = count_up, context_length: int = 512, **config: Any) -> None:
        self.config = EngineConfig(**{"n_pages": 64, "page_size": 4, "max_guess": 0, **config})
        self.model = Model(self.config, answer, context_length)
        self.core = EngineCore(self.model, Tokenizer(), self.config)
        self.outputs: dict[str, list[TokenOutput]] = {}

    def submit(self, name: str, prompt: str | bytes = "hello", choice: int = 0, salt: str = "", **sampling: Any) -> None:
        prompt = prompt.encode() if isinstance(prompt, str) else prompt
        params = SamplingParams(**{"temperature": 0.0, "max_tokens": 5, **sampling})
        request = GenerationRequest(name, list(prompt), params, choice, salt)
        self.core.check(request)
        self.core.submit(request)
        self.outputs[name] = []

    def step(self, n: int = 1) -> None:
        for _ in range(n):
            for name, output in self.core.step():
                self.outputs[name].append(output)
            self.core.check_integrity()

    def finish(self) -> None:
        while self.core.is_busy:
            self.step()
        ends = {name: sum(o.is_last for o in outputs) for name, outputs in self.outputs.items()}
        assert all(n == 1 for n in ends.values()) and all(o[-1].is_last for o in self.outputs.values()), ends
        assert self.core.cache.n_available == self.config.n_pages

    def text(self, name: str) -> str:
        return "".join(output.text for output in self.outputs[name])

    def end(self, name: str) -> TokenOutput:
        assert self.outputs[name][-1].is_last
        return self.outputs[name][-1]


def make_sequence(
    prompt: Sequence[int], salt: str = "", output: Sequence[int] = (), choice: int = 0, **sampling: Any
) -> EngineSequence:
    """A sequence that nobody has scheduled yet."""
    request = GenerationRequest("x", list(prompt), SamplingParams(**sampling), choice, salt)
    seed = sampling.get("seed") or 0
    return EngineSequence(request, seed, 10_000, Detokenizer(Tokenizer()), [*prompt, *output], len(prompt))


@pytest.fixture(scope="session")
def bench() -> type[Bench]:
    """Makes a Bench."""
    return Bench


@pytest.fixture(scope="session")
def sequence() -> Callable[..., EngineSequence]:
    """Makes a Sequence."""
    return make_sequence
