"""The decoder as one native call, for CPUs. Loads no tensor library."""

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...kernels.cpu.compile import HERE, sources_hash
from ...kernels.cpu.library import Pool
from ...kernels.cpu.step import NativeStep, layout_of, page_bytes
from ...kernels.spec import StepBatch, StepOutput
from ..models.model_file import LoadedModel
from ..models.native_weights import native_weights

MODELS = Path(__file__).parents[1] / "models"
# Python that has a say in a page's bits, beside the C++: what is packed and how, and how finely it is computed.
CODE = (
    *(HERE / name for name in ("pack.py", "step.py")),
    *(MODELS / name for name in ("native_weights.py", "groups.py", "weights.py", "quants.py")),
)


class NativeRunner:
    """A ModelRunner on the native step. Raises kernels.cpu.library.NativeUnavailable for a model that it does not run."""

    def __init__(self, model: LoadedModel, n_pages: int, page_size: int, pool: Pool, isa: str = "") -> None:
        spec = model.config.decoder
        self.vocab = spec.vocab
        self.context_length = spec.context_length
        self.page_bytes, self._page_size = page_bytes(spec, page_size), page_size
        weights = native_weights(model.weights, spec, layout_of(isa))
        self.weight_bytes = weights.nbytes
        longest = min(spec.context_length, n_pages * page_size)
        self._step = NativeStep(spec, weights, n_pages, page_size, longest, pool, isa)
        self._threads = pool.n_threads

    def describe(self) -> str:
        """One line for the start-up log: which kernels run, on what."""
        return f"native step ({self._step.isa}, {self._threads} threads), {self.weight_bytes / 1e6:.0f} MB of weights"

    @property
    def pages(self) -> NDArray[np.uint8]:
        """The pool [n_pages, page_bytes]: see NativeStep."""
        return self._step.pages

    @property
    def layout(self) -> str:
        """All but the weights that a page's bits depend on: equal layouts mean equal pages for equal tokens."""
        code = hashlib.sha256(b"".join(path.read_bytes() for path in CODE)).hexdigest()
        parts = self._step.isa, self._page_size, self.page_bytes, self._step.spec, sources_hash(), code
        return " ".join(map(str, parts))

    def run(self, batch: StepBatch) -> StepOutput:
        """See ModelRunner.run."""
        return self._step.run(batch)

    def close(self) -> None:
        """Let the weights and the pool go."""
        self._step.close()
