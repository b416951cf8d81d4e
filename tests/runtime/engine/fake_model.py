"""A model of numbers only, which notices when a row is shown pages that are not its own.

Every slot of the pool remembers the token, the position and a hash of the whole context it was written in. Each step checks
that what a row sees through its page table is one unbroken context; the next logits are a hash of it.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from baseload.kernels.spec import StepBatch, StepOutput

VOCAB = 97
EOS = 96
LONG = {85 + i: bytes([byte]) for i, byte in enumerate("é🙂".encode())}  # tokens that are parts of longer characters
Hashes = NDArray[np.uint64]


def mix(x: Hashes) -> Hashes:
    """splitmix64's last steps."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def logits_of(hashes: Hashes, vocab: int) -> NDArray[np.float32]:
    """Logits in [0, 8), one row for each context's hash."""
    spread = mix(hashes[:, None] + np.arange(1, vocab + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    return ((spread >> np.uint64(40)).astype(np.float64) / 2**21).astype(np.float32)


class FakeRunner:
    """A model_runner.ModelRunner. `before_run` may raise or block; a context with the `poison` token has NaN logits."""

    def __init__(
        self,
        vocab: int = VOCAB,
        context_length: int = 256,
        before_run: Callable[[StepBatch], None] = lambda batch: None,
        poison: int | None = None,
    ) -> None:
        self.vocab, self.context_length, self.page_bytes = vocab, context_length, 8
        self.before_run, self.poison = before_run, poison
        self.seconds = 0.0  # spent in here
        self.tokens_run = 0
        self._tokens = np.zeros(0, np.int64)
        self._positions = np.zeros(0, np.int64)
        self._sums = np.zeros(0, np.uint64)  # hash of the context up to and with this slot

    def run(self, batch: StepBatch) -> StepOutput:
        """See ModelRunner.run. AssertionError if the batch is wrong or a row sees what it should not."""
        self.before_run(batch)
        began = time.perf_counter()
        logits = self._run(batch)
        output = StepOutput.of(logits)
        logits[~batch.full_logits] = 1e9  # nobody may look at these
        self.seconds += time.perf_counter() - began
        return output

    def _run(self, batch: StepBatch) -> NDArray[np.float32]:
        size, lens, tables = batch.page_size, batch.context_lens.astype(np.int64), batch.page_tables.astype(np.int64)
        counts = np.diff(batch.row_starts)
        n_rows, n_tokens = len(lens), len(batch.tokens)
        assert counts.min() > 0 and batch.row_starts[0] == 0 and batch.row_starts[-1] == n_tokens, "rows are not end to end"
        assert 0 <= batch.tokens.min() <= batch.tokens.max() < self.vocab, "a token is no token"
        assert len(np.unique(batch.slots)) == n_tokens, "two tokens are written to one slot"
        self._grow((int(tables.max()) + 1) * size)

        # Every context, end to end: which row, which position, which slot.
        first = np.cumsum(lens) - lens
        rows = np.repeat(np.arange(n_rows), lens)
        positions = np.arange(len(rows)) - first[rows]
        slots = tables[rows, positions // size] * size + positions % size
        is_new = positions >= (lens - counts)[rows]
        assert (positions[is_new] == batch.positions).all(), "positions do not go on from what was computed"
        assert (slots[is_new] == batch.slots).all(), "a token is not written where its row will look for it"
        self._check_writers(batch.slots // size, tables, lens, size)

        self._tokens[batch.slots], self._positions[batch.slots] = batch.tokens, batch.positions
        seen = self._tokens[slots]
        assert (self._positions[slots] == positions).all(), "a row sees a page of another position"
        sums = np.cumsum(mix((seen * 2**32 + positions + 1).astype(np.uint64)), dtype=np.uint64)
        sums -= np.concatenate([np.zeros(1, np.uint64), sums[first[1:] - 1]])[rows]
        self._sums[batch.slots] = sums[is_new]
        assert (self._sums[slots] == sums).all(), "a row sees a page of another context"

        self.tokens_run += n_tokens
        logits = logits_of(self._sums[batch.slots[batch.logit_rows]], self.vocab)
        if self.poison is not None:
            sick = np.unique(rows[seen == self.poison])
            logits[np.isin(np.repeat(np.arange(n_rows), counts)[batch.logit_rows], sick)] = np.nan
        return logits

    def _grow(self, n_slots: int) -> None:
        more = n_slots - len(self._tokens)
        if more > 0:
            self._tokens = np.concatenate([self._tokens, np.full(more, -1)])
            self._positions = np.concatenate([self._positions, np.full(more, -1)])
            self._sums = np.concatenate([self._sums, np.zeros(more, np.uint64)])

    @staticmethod
    def _check_writers(written: NDArray[np.int64], tables: NDArray[np.int64], lens: NDArray[np.int64], size: int) -> None:
        used = tables[np.arange(tables.shape[1]) < -(-lens // size)[:, None]]
        readers = np.bincount(used)
        assert (readers[written] == 1).all(), "a page is written that another row reads"


class PagedRunner(FakeRunner):
    """What it remembers lies in `pages`, so a page can be copied out and put back, and a wrong one is noticed."""

    def __init__(self, n_pages: int, page_size: int, context_length: int = 256, **more: Any) -> None:
        super().__init__(context_length=context_length, **more)
        slots = np.zeros(n_pages * page_size, [("token", np.int64), ("position", np.int64), ("sum", np.uint64)])
        self._tokens, self._positions, self._sums = slots["token"], slots["position"], slots["sum"]
        self.pages = slots.view(np.uint8).reshape(n_pages, -1)
        self.page_bytes = self.pages.shape[1]


class FakeTokenizer:
    """A core.EngineTokenizer: one ASCII character a token; the last ones are parts of two longer characters, and the end."""

    eos_ids: tuple[int, ...] = (EOS,)

    def token_bytes(self, id: int, /) -> bytes:
        """See TokenBytes."""
        if id >= 94:
            return b""
        return LONG.get(id) or bytes([33 + id])
