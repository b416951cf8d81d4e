"""Fixtures shared by all rooms: the real models, pulled once into the ordinary store, and sequences in scattered pages."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from baseload.kernels.spec import StepBatch
from baseload.runtime.store import Store, default_root

# The GPU's kernels run in Triton's interpreter where there is no GPU. Triton asks when it is first imported, by whomever.
if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct as a GGUF file (98 MB)."""
    return Store(default_root()).ensure("smollm2-135m-instruct")


@pytest.fixture(scope="session")
def gemma3() -> Path:
    """Gemma-3-270M, the base model, as a GGUF file (253 MB); its licence allows tests, not redistribution."""
    return Store(default_root()).ensure("gemma3-270m")


@dataclass
class Row:
    """A sequence: its tokens, how many of them have been computed, and its pages."""

    tokens: list[int]
    computed: int = 0
    pages: list[int] = field(default_factory=list)


class Pages:
    """Deals out pages of a pool, in random order or one after the other, and lays rows' next tokens out as a StepBatch."""

    def __init__(self, n_pages: int, page_size: int, seed: int | None = None) -> None:
        pages = np.arange(n_pages)
        self.page_size = page_size
        self._free = list(pages if seed is None else np.random.default_rng(seed).permutation(pages))

    def step(self, work: Sequence[tuple[Row, int]], logits: str = "last") -> StepBatch:
        """The next n tokens of each row; logits of each row's "last" of these, or of "all"."""
        for row, n in work:
            while len(row.pages) * self.page_size < row.computed + n:
                row.pages.append(int(self._free.pop(0)))
        starts = np.cumsum([0] + [n for _, n in work])
        positions = np.concatenate([np.arange(row.computed, row.computed + n) for row, n in work])
        owners = [row for row, n in work for _ in range(n)]
        tables = np.zeros((len(work), max(len(row.pages) for row, _ in work)), dtype=np.int32)
        for r, (row, n) in enumerate(work):
            tables[r, : len(row.pages)] = row.pages
            row.computed += n
        wanted = (np.arange(starts[-1]) if logits == "all" else starts[1:] - 1).astype(np.int32)
        return StepBatch(
            tokens=np.array([row.tokens[p] for row, p in zip(owners, positions, strict=True)], dtype=np.int32),
            positions=positions.astype(np.int32),
            slots=np.array([self._slot(row, p) for row, p in zip(owners, positions, strict=True)], dtype=np.int64),
            row_starts=starts.astype(np.int32),
            context_lens=np.array([row.computed for row, _ in work], dtype=np.int32),
            page_tables=tables,
            logit_rows=wanted,
            full_logits=np.ones(len(wanted), np.bool_),
            page_size=self.page_size,
        )

    def _slot(self, row: Row, position: int) -> int:
        return row.pages[position // self.page_size] * self.page_size + position % self.page_size


@pytest.fixture(scope="session")
def row() -> Callable[[list[int]], Row]:
    """Makes a Row."""
    return Row


@pytest.fixture(scope="session")
def pages() -> type[Pages]:
    """Makes Pages."""
    return Pages


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long ones are for those who ask."""
    if not os.environ.get("BASELOAD_LONG"):
        skip = pytest.mark.skip(reason="long: set BASELOAD_LONG=1")
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(skip)
