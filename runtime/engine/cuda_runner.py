"""The decoder on a GPU, by our Triton kernels: decode steps as captured graphs, tokens drawn on the device. Imports torch.

A step brings back 12 bytes a row; whole rows of logits only where the host must choose (grammars, penalties, log-probabilities
and biases). Steps do not overlap: the next one is scheduled when this one's tokens are known.
"""

import hashlib
from pathlib import Path

import numpy as np
import torch
import triton

from ...kernels.paged_attention import KvPool
from ...kernels.spec import DecoderSpec, Draws, StepBatch, StepOutput
from ...kernels.triton.attention_plan import DevicePlan, Launch
from ...kernels.triton.linear_w4 import FORMATS, Packed4
from ...kernels.triton.sampling import sample, uniforms
from ..models.decoder import Decoder, Pack
from ..models.weights import GgufWeights, Tensors, expected_shapes
from .config import EngineConfig
from .decode_graphs import DecodeGraphs, Drawn, Places
from .model_runner import page_bytes

HERE = Path(__file__).parent
CODE = (
    *sorted((HERE.parents[1] / "kernels" / "triton").glob("*.py")),
    *(HERE / name for name in ("cuda_runner.py", "decode_graphs.py")),
    *(HERE.parent / "models" / name for name in ("decoder.py", "weights.py", "quants.py")),
)
KEPT_FREE = 0.08  # of the GPU's memory: for graphs, the vendor's workspaces, fragments


class CudaRunner:
    """A ModelRunner on a GPU. `device="cpu"` runs the same code in Triton's interpreter, without graphs: for tests.

    Raises ValueError for a device or dtype that is not to be had.
    """

    def __init__(
        self, spec: DecoderSpec, weights: Tensors, config: EngineConfig, device: str = "cuda", dtype: str = "bfloat16"
    ) -> None:
        pack = _pack(weights, torch.device(device)) if isinstance(weights, GgufWeights) else None
        self.vocab, self.context_length = spec.vocab, spec.context_length
        self.page_bytes = page_bytes(spec, config.page_size, dtype)
        self._decoder = Decoder(spec, weights, device, dtype, triton=True, pack=pack)
        kernels = self._decoder.kernels
        self._pool = KvPool(spec, config.n_pages, config.page_size, kernels.device, kernels.dtype)
        self._page_size, self._on_gpu = config.page_size, kernels.device.type == "cuda"
        self._graphs = DecodeGraphs(self._decode, config.max_batch, kernels.device, self._on_gpu)
        if self._on_gpu:
            self._prepare(min(config.token_budget, self.context_length, config.n_pages * config.page_size))

    @property
    def layout(self) -> str:
        """All but the weights that its numbers depend on."""
        code = hashlib.sha256(b"".join(path.read_bytes() for path in CODE)).hexdigest()
        versions = f"torch {torch.__version__} triton {triton.__version__}"
        return f"{versions} {self.describe()} {self._decoder.spec} {self.page_bytes} {code}"

    def describe(self) -> str:
        """One line for the start-up log."""
        graphs = ", captured graphs" if self._on_gpu else ", interpreted"
        return self._decoder.kernels.describe() + graphs

    @torch.inference_mode()
    def run(self, batch: StepBatch) -> StepOutput:
        """See ModelRunner.run; draws tokens where batch.draws says so."""
        states: torch.Tensor | None = None
        if self._graphs.fits(batch) and not batch.wants_states:
            best, finite, token, logits = self._graphs.run(batch)
        else:  # chunks of prompts, guesses, or texts of which the last state is wanted
            states = self._decoder.states(batch, self._pool)
            best, finite, token, logits = self._drawn(self._decoder.logits(states), batch.draws)
        # one copy for what is always read; it also waits for the step to end
        found = torch.stack((best, finite.int(), token)).cpu().numpy()
        full = np.flatnonzero(batch.full_logits)
        if len(full):
            rows = np.empty((len(batch.logit_rows), self.vocab), np.float32)
            rows[full] = logits[torch.from_numpy(full).to(logits.device)].cpu().numpy()
        else:
            rows = np.broadcast_to(np.float32(0), (len(batch.logit_rows), self.vocab))
        drawn = None if batch.draws is None else np.where(batch.draws.wanted, found[2], np.int32(-1))
        kept = None if states is None or not batch.wants_states else states.float().cpu().numpy()
        return StepOutput(found[0], found[1] != 0, rows, kept, drawn)

    def close(self) -> None:
        """Let graphs, pool and weights go."""
        del self._graphs, self._pool, self._decoder
        if self._on_gpu:
            torch.cuda.empty_cache()

    @torch.inference_mode()
    def _prepare(self, n: int) -> None:
        """Compile and capture before the first request: a step that takes seconds is a stuck one. A chunk of n tokens without
        a past is computed, and written nowhere: if the memory is too small, that is seen here."""
        starts, none = np.array([0, n], np.int32), np.full(n, -1, np.int64)
        table = np.zeros((1, -(-n // self._page_size)), np.int32)
        last, positions = np.array([n - 1], np.int32), np.arange(n, dtype=np.int32)
        tokens, nobody = np.zeros(n, np.int32), np.zeros(1, np.bool_)
        batch = StepBatch(tokens, positions, none, starts, starts[1:], table, last, nobody, self._page_size)
        self._drawn(self._decoder.forward(batch, self._pool), None)
        self._graphs.prepare()

    def _decode(self, places: Places) -> Drawn:
        """A step of decode rows: on the device alone, so that it can be captured."""
        at, spec = places.columns, self._decoder.spec
        keys = places.page_tables.shape[1] * self._page_size
        plans = {
            window: DevicePlan(
                places.row_starts,
                at["contexts"],
                places.page_tables,
                self._page_size,
                window,
                (Launch(places.rows, 1, min(window, keys) if window else keys),),
            )
            for window in {of.window for of in spec.layers}
        }
        tables = self._decoder.tables(at["positions"], at["slots"], plans)
        logits = self._decoder.compute(at["tokens"], tables, None, self._pool)
        uniform = uniforms(places.keys, at["draw_at"])
        best, finite, token = sample(logits, at["temperature"], at["top_k"], at["top_p"], at["min_p"], uniform)
        return best, finite, token, logits

    def _drawn(self, logits: torch.Tensor, draws: Draws | None) -> Drawn:
        """The best token of each row [L, vocab], and where it is wanted one that is drawn."""

        def put(values: np.ndarray, dtype: np.typing.DTypeLike) -> torch.Tensor:
            return torch.from_numpy(np.ascontiguousarray(values, dtype)).to(logits.device, non_blocking=True)

        if draws is None:
            zeros = torch.zeros(len(logits), device=logits.device)
            return *sample(logits, zeros, zeros.int(), zeros, zeros, zeros), logits
        uniform = uniforms(put(draws.keys, np.int64), put(draws.positions, np.int32))
        temperature = put(np.where(draws.wanted, draws.temperature, 0), np.float32)
        top_p, min_p = put(draws.top_p, np.float32), put(draws.min_p, np.float32)
        return *sample(logits, temperature, put(draws.top_k, np.int32), top_p, min_p, uniform), logits


def _pack(weights: GgufWeights, device: torch.device) -> Pack:
    """Weights of 4 bits stay packed, if all that are multiplied as one are."""

    def pack(names: tuple[str, ...]) -> Packed4 | None:
        if any(weights.shape(name)[1] % 32 for name in names):
            return None
        parts = []
        for name in names:
            found = weights.grouped(name)
            if found.format not in FORMATS:
                return None
            parts.append(Packed4.of(found, device))
        joined = (torch.cat([getattr(part, field) for part in parts]) for field in ("codes", "scales", "shifts"))
        return Packed4(*joined)

    return pack


def pages_that_fit(spec: DecoderSpec, config: EngineConfig, device: str = "cuda", dtype: str = "bfloat16") -> int:
    """Pages that the GPU's free memory holds beside dense weights and a step's own tensors; 0 if even these don't fit."""
    free, total = torch.cuda.mem_get_info(device)
    item = 4 if dtype == "float32" else 2
    weights = item * sum(int(np.prod(shape)) for shape in expected_shapes(spec).values())
    logits = 2 * 4 * config.max_batch * spec.vocab  # as the head makes them, and in float32
    widest = max(2 * spec.intermediate, (spec.n_heads + 2 * spec.n_kv_heads) * spec.head_dim)
    hidden = item * config.token_budget * (4 * spec.hidden + 2 * widest)
    left = free - weights - logits - hidden - int(KEPT_FREE * total)
    return max(0, left // page_bytes(spec, config.page_size, dtype))
