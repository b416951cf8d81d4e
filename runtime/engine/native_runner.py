"""The decoder as one native call, for CPUs. Loads no tensor library."""

from ...kernels.cpu.library import Pool
from ...kernels.cpu.step import NativeStep, page_bytes
from ...kernels.spec import StepBatch, StepOutput
from ..models.model_file import LoadedModel
from ..models.native_weights import native_weights


class NativeRunner:
    """A ModelRunner on the native step. Raises kernels.cpu.library.NativeUnavailable for a model that it does not run."""

    def __init__(self, model: LoadedModel, n_pages: int, page_size: int, pool: Pool, isa: str = "") -> None:
        spec = model.config.decoder
        self.vocab = spec.vocab
        self.context_length = spec.context_length
        self.page_bytes = page_bytes(spec, page_size)
        weights = native_weights(model.weights, spec)
        self.weight_bytes = weights.nbytes
        longest = min(spec.context_length, n_pages * page_size)
        self._step = NativeStep(spec, weights, n_pages, page_size, longest, pool, isa)
        self._threads = pool.n_threads

    def describe(self) -> str:
        """One line for the start-up log: which kernels run, on what."""
        return f"native step ({self._step.isa}, {self._threads} threads), {self.weight_bytes / 1e6:.0f} MB of weights"

    def run(self, batch: StepBatch) -> StepOutput:
        """See ModelRunner.run."""
        return self._step.run(batch)

    def copy_page(self, src: int, dst: int) -> None:
        """See ModelRunner.copy_page."""
        self._step.copy_page(src, dst)

    def close(self) -> None:
        """Let the weights and the pool go."""
        self._step.close()
