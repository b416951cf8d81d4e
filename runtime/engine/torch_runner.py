"""The decoder on torch: for GPUs, for models that the native step does not run, and as its oracle. Imports torch."""

import hashlib
from pathlib import Path

import torch

from ... import kernels
from ...kernels.paged_attention import KvPool
from ...kernels.spec import StepBatch, StepOutput
from ..models.decoder import Decoder
from ..models.model_file import LoadedModel
from .model_runner import page_bytes

KERNELS, MODELS = Path(kernels.__file__).parent, Path(__file__).parents[1] / "models"
CODE = (
    *(KERNELS / name for name in ("paged_attention.py", "reference.py", "torch_kernels.py")),
    *(MODELS / name for name in ("decoder.py", "weights.py", "quants.py")),
)


class TorchRunner:
    """A ModelRunner on torch. Weights and pool live on `device` in `dtype`; logits are float32 always.

    Raises ValueError for a device or dtype that is not to be had.
    """

    def __init__(self, model: LoadedModel, n_pages: int, page_size: int, device: str = "cpu", dtype: str = "float32") -> None:
        spec = model.config.decoder
        self.vocab = spec.vocab
        self.context_length = spec.context_length
        self._spec = spec
        self._decoder = Decoder(spec, model.weights, device, dtype)
        self.page_bytes = page_bytes(spec, page_size, dtype)
        kernels = self._decoder.kernels
        self._pool = KvPool(spec, n_pages, page_size, kernels.device, kernels.dtype)

    @property
    def layout(self) -> str:
        """All but the weights that its numbers depend on."""
        code = hashlib.sha256(b"".join(path.read_bytes() for path in CODE)).hexdigest()
        return f"torch {torch.__version__} {self.describe()} {self._spec} {self.page_bytes} {code}"

    def describe(self) -> str:
        """One line for the start-up log: which kernels run, on what."""
        return self._decoder.kernels.describe()

    def run(self, batch: StepBatch) -> StepOutput:
        """See ModelRunner.run."""
        states = self._decoder.states(batch, self._pool)
        kept = states.float().cpu().numpy() if batch.wants_states else None
        return StepOutput.of(self._decoder.logits(states).cpu().numpy(), kept)

    def close(self) -> None:
        """See DescribedRunner.close. Python lets them go with the runner."""
