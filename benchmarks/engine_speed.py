"""How fast the engine reads and writes, by how many sequences at once and how much each has seen. No server, no sockets.

A cell is B prompts of C made-up tokens, all new to the cache, each answered greedily and without guessing. Reading counts until
the last sequence has its first token; writing is what all of them bring from then until the first of them ends.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..runtime.engine import Engine, EngineConfig
from ..runtime.engine.request import GenerationRequest
from ..runtime.loading import Loader, LoadOptions, OpenedModel
from ..wire.chat import SamplingParams
from .machine import NOISY_HOST, Watch

MEASURED = 32  # tokens of each sequence, at least, that writing is measured over


@dataclass(frozen=True, slots=True)
class Cell:
    """One measurement. Rates are of all sequences together."""

    batch: int
    context: int  # tokens of each prompt
    repeat: int
    read_s: float  # until the last sequence's first token
    read_tokens_per_s: float
    write_s: float
    write_tokens_per_s: float
    cached_tokens: int  # of all prompts; anything but a few is a warm cell
    cache: str  # "cold" | "warm", by that count
    others_cpu: float | None  # share of all cores that other programs used
    watts: float | None = None  # the meters' mean over the cell; None: no meter

    @property
    def name(self) -> str:
        return f"{self.batch} x {self.context}"

    @property
    def flags(self) -> list[str]:
        """What makes it doubtful."""
        said = [f"{self.cached_tokens} prompt tokens came from the cache"] if self.cache == "warm" else []
        if self.others_cpu is not None and self.others_cpu > NOISY_HOST:
            said.append(f"the host is noisy: other processes used {self.others_cpu:.0%} of its cores")
        return said


def output_tokens(batch: int, context: int, config: EngineConfig) -> int:
    """Tokens of each answer, so that the first sequence is still writing long after the last began: those who write take
    their part of each step's budget, and the others' prompts the rest."""
    a_step = max(1, config.token_budget - batch)
    return -(-batch * context // a_step) + batch + MEASURED


def fits(batch: int, context: int, opened: OpenedModel) -> bool:
    """Whether the cell fits into the model's context and the KV cache, without anybody being put off."""
    config, longest = opened.config, context + output_tokens(batch, context, opened.config)
    pages = batch * (-(-longest // config.page_size) + 1)
    return batch <= config.max_batch and longest <= opened.longest and pages <= config.n_pages


Joules = Callable[[], float | None]  # the machine's so far, by its meters; None where they can't tell


def no_meter() -> None:
    """A machine without meters."""


async def measure(engine: Engine, vocab: int, batch: int, context: int, repeat: int, joules: Joules = no_meter) -> Cell:
    """One cell. Raises RuntimeError where a sequence fails."""
    rng = np.random.default_rng(uuid.uuid4().int)
    n = output_tokens(batch, context, engine.config)
    sampling = SamplingParams(temperature=0.0, max_tokens=n, ignore_eos=True)
    prompts = [rng.integers(vocab // 8, vocab // 2, context).tolist() for _ in range(batch)]
    salt = uuid.uuid4().hex
    async with Watch(None, local=False) as watch:
        before, start = joules(), time.perf_counter()
        stories = await asyncio.gather(*(_story(engine, prompt, sampling, salt) for prompt in prompts))
        after, stopped = joules(), time.perf_counter()
    begun = max(times[0][0] for times, _ in stories)
    ended = min(times[-1][0] for times, _ in stories)
    written = sum(tokens for times, _ in stories for at, tokens in times if begun < at <= ended)
    cached = sum(story[1] for story in stories)
    read_s, write_s = begun - start, max(ended - begun, 1e-9)
    cache = "warm" if cached > 0.01 * batch * context else "cold"
    others = watch.seen.others_cpu
    watts = None if before is None or after is None else (after - before) / (stopped - start)
    rates = batch * context / read_s, written / write_s
    return Cell(batch, context, repeat, read_s, rates[0], write_s, rates[1], cached, cache, others, watts)


async def _story(
    engine: Engine, prompt: Sequence[int], sampling: SamplingParams, salt: str
) -> tuple[list[tuple[float, int]], int]:
    """When how many tokens came, and how many of the prompt's were cached."""
    times: list[tuple[float, int]] = []
    cached = 0
    async for output in engine.submit(GenerationRequest(uuid.uuid4().hex, prompt, sampling, cache_salt=salt)):
        if output.failure is not None:
            raise RuntimeError(output.failure.message)
        cached = max(cached, output.cached_tokens)
        if output.token_ids:
            times.append((time.perf_counter(), len(output.token_ids)))
    if len(times) < 2:
        raise RuntimeError("a sequence ended before it could be measured")
    return times, cached


def measure_all(
    path: Path,
    options: LoadOptions,
    batches: Sequence[int],
    contexts: Sequence[int],
    repeats: int,
    tell: Callable[[Cell], None] = lambda cell: None,
    joules: Joules = no_meter,
) -> tuple[list[Cell], list[str], OpenedModel]:
    """Every cell `repeats` times, in turns; and the names of those that do not fit. Raises ModelFileError, RuntimeError."""
    loader = Loader(replace(options, config=replace(options.config, max_guess=0), kv_disk=None))
    try:
        opened = loader.open(path)
        grid = [(batch, context) for context in contexts for batch in batches]
        fitting = [cell for cell in grid if fits(*cell, opened)]
        left_out = [f"{batch} x {context}" for batch, context in grid if (batch, context) not in fitting]
        engine = loader.start(opened)
        cells: list[Cell] = []

        async def run() -> None:
            vocab = opened.model.config.decoder.vocab
            await measure(engine, vocab, 1, 32, 0)  # warms up threads and code
            for repeat in range(1, repeats + 1):
                for batch, context in fitting:
                    cells.append(await measure(engine, vocab, batch, context, repeat, joules))
                    tell(cells[-1])

        try:
            asyncio.run(run())
        finally:
            engine.close()
    finally:
        loader.close()
    return cells, left_out, opened
