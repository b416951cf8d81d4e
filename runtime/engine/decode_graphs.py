"""Steps of decode rows alone on a GPU: fixed places for what changes, and one captured graph for each size of batch.

Hundreds of kernels are launched by one call, from the embedding to the drawn token. A step of fewer rows than its graph has is
padded with rows that have no context, write nowhere and whose results nobody reads. Without graphs (a CPU, where Triton
interprets) the same function runs on the same places.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ...kernels.spec import Draws, StepBatch

COLUMNS: tuple[str, ...] = ("tokens", "positions", "slots", "contexts", "draw_at", "top_k", "temperature", "top_p", "min_p")
FLOATS: tuple[str, ...] = ("temperature", "top_p", "min_p")
LEAST_WIDTH = 64  # pages in a row's table; wider ones are powers of two


@dataclass(frozen=True, slots=True)
class Places:
    """A batch of n decode rows on the device, [n] each: int32, but temperature, top_p and min_p float32, keys int64."""

    columns: dict[str, torch.Tensor]
    keys: torch.Tensor
    page_tables: torch.Tensor  # [n, width] int32
    row_starts: torch.Tensor  # [n + 1] int32, 0 .. n
    rows: torch.Tensor  # [n] int32, 0 .. n - 1


Drawn = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]  # best, finite, token [n]; logits [n, vocab]
Step = Callable[[Places], Drawn]


def sizes(max_batch: int) -> list[int]:
    """The numbers of rows that graphs are made for: little padding where steps are short."""
    found = [1, 2, 4, *range(8, min(max_batch, 64) + 1, 8), *range(96, max_batch + 1, 32)]
    return [n for n in found if n < max_batch] + [max_batch]


def is_decode(batch: StepBatch) -> bool:
    """Whether every row has one token, and that one's logits are wanted."""
    return len(batch.tokens) == len(batch.context_lens) == len(batch.logit_rows)


class DecodeGraphs:
    """Runs batches of decode rows. One caller at a time."""

    def __init__(self, step: Step, max_batch: int, device: torch.device, captured: bool) -> None:
        self._step, self._device, self._captured = step, device, captured
        self._sizes = sizes(max_batch)
        self._ready: dict[tuple[int, int], _Ready] = {}
        self._memory = torch.cuda.graph_pool_handle() if captured else None

    def fits(self, batch: StepBatch) -> bool:
        """Whether `batch` can run here."""
        return is_decode(batch) and len(batch.tokens) <= self._sizes[-1]

    def prepare(self) -> None:
        """Compile and capture what the first steps will need: every size of batch, while sequences are short."""
        for n in reversed(self._sizes):  # the largest first: the smaller ones share its memory
            self._get(n, LEAST_WIDTH)

    def run(self, batch: StepBatch) -> Drawn:
        """The batch's results, of its rows alone, still on the device."""
        n = len(batch.tokens)
        size = next(size for size in self._sizes if size >= n)
        width = max(LEAST_WIDTH, 1 << (batch.page_tables.shape[1] - 1).bit_length())
        ready = self._get(size, width)
        ready.fill(batch)
        best, finite, token, logits = ready.run()
        return best[:n], finite[:n], token[:n], logits[:n]

    def _get(self, n: int, width: int) -> "_Ready":
        if (n, width) not in self._ready:
            self._ready[n, width] = _Ready(self._step, n, width, self._device, self._captured, self._memory)
        return self._ready[n, width]


class _Ready:
    """Places for n rows of `width` pages, with their mirror on the host, and the step on them."""

    def __init__(self, step: Step, n: int, width: int, device: torch.device, captured: bool, memory: Any) -> None:
        words = (len(COLUMNS) + 2 + width) * n  # keys take two
        self._host = torch.zeros(words, dtype=torch.int32, pin_memory=captured)
        self._words = torch.zeros(words, dtype=torch.int32, device=device)
        self._n, self._width, self._numpy = n, width, self._host.numpy()
        slots = 2 + COLUMNS.index("slots")
        self._numpy[slots * n : (slots + 1) * n] = -1  # nowhere: a capture runs the step
        self._words.copy_(self._host)
        columns = {name: self._words[i * n : (i + 1) * n] for i, name in enumerate(COLUMNS, 2)}
        starts = torch.arange(n + 1, device=device, dtype=torch.int32)
        tables = self._words[(len(COLUMNS) + 2) * n :].view(n, width)
        floats = {name: columns[name].view(torch.float32) for name in FLOATS}
        places = Places(columns | floats, self._words[: 2 * n].view(torch.int64), tables, starts, starts[:-1])
        self.run: Callable[[], Drawn] = (lambda: step(places)) if not captured else _capture(step, places, memory)

    def fill(self, batch: StepBatch) -> None:
        """Put a batch of at most n rows into its places, by one copy."""
        n, size = len(batch.tokens), self._n
        table = self._numpy[(len(COLUMNS) + 2) * size :].reshape(size, self._width)
        table[:n, : batch.page_tables.shape[1]] = batch.page_tables
        column = dict(zip(COLUMNS, self._numpy[2 * size : (len(COLUMNS) + 2) * size].reshape(-1, size), strict=True))
        for name, values in (("tokens", batch.tokens), ("positions", batch.positions), ("slots", batch.slots)):
            column[name][:n] = values
        column["contexts"][:n] = batch.context_lens
        column["slots"][n:], column["contexts"][n:] = -1, 0
        column["temperature"][:] = 0
        if batch.draws is not None:
            _fill_draws(batch.draws, column, self._numpy[: 2 * size].view(np.int64), n)
        self._words.copy_(self._host, non_blocking=True)


def _fill_draws(draws: Draws, column: dict[str, np.ndarray], keys: np.ndarray, n: int) -> None:
    column["temperature"][:n].view(np.float32)[:] = np.where(draws.wanted, draws.temperature, 0)
    column["top_p"][:n].view(np.float32)[:] = draws.top_p
    column["min_p"][:n].view(np.float32)[:] = draws.min_p
    column["top_k"][:n], column["draw_at"][:n] = draws.top_k, draws.positions
    keys[:n] = draws.keys


def _capture(step: Step, places: Places, memory: Any) -> Callable[[], Drawn]:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # compiles what is not yet, and lets libraries take their workspaces
        step(places)
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    # Another thread may ask for memory meanwhile: another model that loads.
    with torch.cuda.graph(graph, pool=memory, capture_error_mode="thread_local"):
        drawn = step(places)

    def replay() -> Drawn:
        graph.replay()
        return drawn

    return replay
