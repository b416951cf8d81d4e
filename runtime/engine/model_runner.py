"""The model as the engine sees it: one ragged step in; best tokens and logits out, as numpy. The only file that knows torch."""

from typing import Protocol

from ...kernels.dispatch import DTYPES
from ...kernels.paged_attention import KvPool
from ...kernels.spec import DecoderSpec, StepBatch, StepOutput
from ..models.decoder import Decoder
from ..models.model_file import LoadedModel


class ModelRunner(Protocol):
    """Runs steps against a paged KV pool that it owns. One caller at a time; which pages are whose is the caller's affair."""

    @property
    def vocab(self) -> int:
        """Width of the logits."""
        ...

    @property
    def context_length(self) -> int:
        """The longest sequence, in tokens."""
        ...

    @property
    def page_bytes(self) -> int:
        """Memory of one page over all layers."""
        ...

    def run(self, batch: StepBatch) -> StepOutput:
        """Write the batch's keys and values and return what they say for each of `batch.logit_rows`; rows of logits that
        `batch.full_logits` does not ask for may hold anything.

        A broken number (NaN, infinity) is returned as it is and said to be so in `finite`; one row's broken numbers reach
        no other row.
        """
        ...

    def copy_page(self, src: int, dst: int) -> None:
        """Make page `dst` equal to page `src`."""
        ...


def page_bytes(spec: DecoderSpec, page_size: int, dtype: str = "float32") -> int:
    """Memory of one page of `page_size` tokens over all layers, for choosing `n_pages` before a runner exists."""
    return 2 * spec.n_layers * page_size * spec.n_kv_heads * spec.head_dim * DTYPES[dtype].itemsize


class TorchRunner:
    """A ModelRunner on torch. Weights and pool live on `device` in `dtype`; logits are float32 always.

    Raises ValueError for a device or dtype that is not to be had.
    """

    def __init__(self, model: LoadedModel, n_pages: int, page_size: int, device: str = "cpu", dtype: str = "float32") -> None:
        spec = model.config.decoder
        self.vocab = spec.vocab
        self.context_length = spec.context_length
        self.page_bytes = page_bytes(spec, page_size, dtype)
        self._decoder = Decoder(spec, model.weights, device, dtype)
        kernels = self._decoder.kernels
        self._pool = KvPool(spec, n_pages, page_size, kernels.device, kernels.dtype)

    def describe(self) -> str:
        """One line for the start-up log: which kernels run, on what."""
        return self._decoder.kernels.describe()

    def run(self, batch: StepBatch) -> StepOutput:
        """See ModelRunner.run."""
        return StepOutput.of(self._decoder.forward(batch, self._pool).cpu().numpy())

    def copy_page(self, src: int, dst: int) -> None:
        """See ModelRunner.copy_page."""
        self._pool.copy_page(src, dst)
