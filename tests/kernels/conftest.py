"""Random weights in the kernels' formats, and decoders with them: the native step and its oracle."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch

from baseload.kernels.cpu import library as native
from baseload.kernels.cpu.pack import GROUP, Format, Grouped, bf16, pack
from baseload.kernels.cpu.step import NativeStep, NativeWeights, layout_of
from baseload.kernels.paged_attention import KvPool
from baseload.kernels.spec import DecoderSpec, LayerSpec, StepBatch
from baseload.runtime.models.rounded_decoder import RoundedDecoder
from baseload.runtime.models.weights import expected_shapes

PAGE = 16


def random_grouped(format: Format, rows: int, cols: int, rng: np.random.Generator, std: float = 1.0) -> Grouped:
    """A weight of this format whose values have about this standard deviation; each group has a scale of its own."""
    groups = (rows, cols // GROUP)
    if format == Format.BF16:
        return bf16(rng.standard_normal((rows, cols)).astype(np.float32) * np.float32(std))
    bits = 4 if format in (Format.Q4_MIN, Format.Q4_BIAS) else 8
    codes = rng.integers(0, 256, (*groups, GROUP * bits // 8), dtype=np.uint8)
    d = std * np.sqrt(12) / 2**bits * rng.uniform(0.5, 1.4, groups)
    if format in (Format.Q4_BIAS, Format.Q8_BIAS):
        return Grouped(codes, d.astype(np.float16))
    return Grouped(codes, d.astype(np.float16), (-d * 2**bits * rng.uniform(0.3, 0.7, groups)).astype(np.float16))


def random_weights(
    spec: DecoderSpec, isa: str = "", formats: Mapping[str, Format] | None = None, seed: int = 0
) -> NativeWeights:
    """Weights of a decoder, biases and norms too, as `isa` wants them; `formats` by the last part of the names, "" for all
    others."""
    rng, linears, vectors = np.random.default_rng(seed), {}, {}
    by_name = formats or {}
    for name, shape in expected_shapes(spec).items():
        part = name.rsplit(".", 1)[-1]
        if len(shape) == 2:
            std = 1.0 if part == "embed" else 1.5 / np.sqrt(shape[1])
            weight = random_grouped(by_name.get(part, by_name.get("", Format.Q4_MIN)), *shape, rng, std)
            linears[name] = pack(weight, layout_of(isa))
        else:
            vectors[name] = (rng.standard_normal(shape) * 0.3 + part.endswith("norm")).astype(np.float32)
    return NativeWeights(linears, vectors)


def make_spec(n_layers: int = 5, **changes: Any) -> DecoderSpec:
    """A small decoder; 5 layers have some of each precision of activations."""
    found: dict[str, Any] = {
        "n_layers": n_layers,
        "hidden": 96,
        "n_heads": 4,
        "n_kv_heads": 2,
        "head_dim": 32,
        "intermediate": 160,
        "vocab": 101,
        "context_length": 1024,
        "norm_eps": 1e-5,
        "layers": (LayerSpec(),) * n_layers,
    }
    return DecoderSpec(**(found | changes))


class Oracle:
    """The Python decoder with the native step's roundings, as a thing that runs steps."""

    def __init__(self, spec: DecoderSpec, weights: NativeWeights, n_pages: int = 64, page_size: int = PAGE) -> None:
        self._decoder = RoundedDecoder(spec, weights)
        self._kv = KvPool(spec, n_pages, page_size, torch.device("cpu"), torch.float32)

    def logits(self, batch: StepBatch) -> np.ndarray:
        """[L, vocab] of the batch's rows."""
        return self._decoder.forward(batch, self._kv).numpy()


class Kit:
    """The makers above, for tests."""

    grouped = staticmethod(random_grouped)
    weights = staticmethod(random_weights)
    spec = staticmethod(make_spec)
    oracle = Oracle
    page = PAGE


@pytest.fixture(scope="session")
def kit() -> type[Kit]:
    """Makes weights, decoders and their oracle."""
    return Kit


@pytest.fixture(scope="session")
def threads() -> Iterator[native.Pool]:
    """Two threads that tests share."""
    torch.set_num_threads(1)  # torch's own would wait for them by spinning
    pool = native.Pool(2)
    yield pool
    pool.close()


@pytest.fixture
def step(threads: native.Pool) -> Iterator[Callable[..., NativeStep]]:
    """`step(spec, weights)` makes a NativeStep with 64 pages of 16 tokens; all are freed at the test's end."""
    made: list[NativeStep] = []

    def make(spec: DecoderSpec, weights: NativeWeights, isa: str = "", **options: Any) -> NativeStep:
        given = {"n_pages": 64, "page_size": PAGE, "n_positions": 1024, "pool": threads} | options
        made.append(NativeStep(spec, weights, **given, isa=isa))
        return made[-1]

    yield make
    for one in made:
        one.close()
