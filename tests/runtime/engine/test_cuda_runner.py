"""The GPU's runner says what torch's says; without a GPU, the same code in Triton's interpreter."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from baseload.kernels.paged_attention import KvPool
from baseload.kernels.spec import DecoderSpec, Draws, LayerSpec, StepBatch
from baseload.runtime.engine.config import EngineConfig
from baseload.runtime.engine.core import EngineCore
from baseload.runtime.engine.request import GenerationRequest
from baseload.runtime.models.decoder import Decoder
from baseload.runtime.models.model_file import load_model
from baseload.runtime.models.weights import Tensors, expected_shapes
from baseload.wire.chat import SamplingParams

pytest.importorskip("triton", reason="the GPU's runner needs Triton (pip install triton)")

from baseload.kernels.triton.linear_w4 import Packed4
from baseload.runtime.engine.cuda_runner import CudaRunner
from baseload.runtime.engine.decode_graphs import sizes

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CONFIG = EngineConfig(n_pages=24, page_size=16, max_batch=4, token_budget=64)
LLAMA = DecoderSpec(
    n_layers=2,
    hidden=32,
    n_heads=4,
    n_kv_heads=2,
    head_dim=16,
    intermediate=48,
    vocab=61,
    context_length=128,
    norm_eps=1e-5,
    layers=(LayerSpec(),) * 2,
)
GEMMA = replace(
    LLAMA,
    layers=(LayerSpec(window=8, rope_theta=1000.0), LayerSpec(rope_factor=2.0)),
    activation="gelu_tanh",
    qk_norm=True,
    post_norms=True,
    embed_scale=32**0.5,
    attn_softcap=20.0,
    final_softcap=10.0,
    rope_long_freqs=(1.0,) * 7 + (4.0,),
)
QWEN = replace(LLAMA, qkv_bias=True, tied=False, n_kv_heads=4)


class RandomWeights:
    """Weights of a spec, drawn from a seed."""

    def __init__(self, spec: DecoderSpec, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self._tensors = {
            name: (rng.standard_normal(shape) * (shape[-1] ** -0.5 if len(shape) == 2 else 0.3)).astype(np.float32)
            + np.float32("norm" in name)
            for name, shape in expected_shapes(spec).items()
        }
        self._tensors["embed"] *= 4

    def tensor(self, name: str) -> NDArray[np.float32]:
        return self._tensors[name]


class Torch:
    """The decoder on plain torch."""

    def __init__(self, spec: DecoderSpec, weights: Tensors) -> None:
        self._decoder = Decoder(spec, weights)
        self._pool = KvPool(spec, CONFIG.n_pages, CONFIG.page_size, torch.device("cpu"), torch.float32)

    def logits(self, batch: StepBatch) -> NDArray[np.float32]:
        return self._decoder.forward(batch, self._pool).numpy()


@pytest.fixture(scope="module", params=[LLAMA, GEMMA, QWEN], ids=["llama", "gemma", "qwen"])
def pair(request: pytest.FixtureRequest) -> tuple[CudaRunner, Torch]:
    """The same weights on both."""
    spec, weights = request.param, RandomWeights(request.param)
    return CudaRunner(spec, weights, CONFIG, DEVICE, "float32"), Torch(spec, weights)


class Numbers:
    """A tokenizer of numbers."""

    eos_ids = (0,)

    def token_bytes(self, id: int, /) -> bytes:
        return b"%d " % id


def asking(batch: StepBatch, full: bool, **draws: Any) -> StepBatch:
    n = len(batch.logit_rows)
    found = {
        "wanted": np.ones(n, np.bool_),
        "temperature": np.ones(n, np.float32),
        "top_k": np.zeros(n, np.int32),
        "top_p": np.ones(n, np.float32),
        "min_p": np.zeros(n, np.float32),
        "keys": np.arange(n, dtype=np.int64),
        "positions": batch.positions[batch.logit_rows] + 1,
    }
    return replace(batch, full_logits=np.full(n, full), draws=Draws(**(found | draws)) if draws else None)


def prompts(row, n: int = 3) -> list:
    rng = np.random.default_rng(5)
    return [row(rng.integers(0, 61, length).tolist()) for length in (9, 1, 20, 4)[:n]]


def test_greedy_text_and_logits_equal_torchs(pair, pages, row):
    """Three prompts at once, one of them in two chunks beside the others' decode steps; then all decode."""
    cuda, plain = pair
    rows, dealt = prompts(row), pages(CONFIG.n_pages, CONFIG.page_size, seed=2)
    work = [(rows[0], 9), (rows[1], 1), (rows[2], 11)]
    for step in range(6):
        batch = dealt.step(work)
        found, exact = cuda.run(asking(batch, full=True)), plain.logits(batch)
        np.testing.assert_allclose(found.logits, exact, atol=2e-4, rtol=0)
        assert found.best.tolist() == exact.argmax(1).tolist() and found.finite.all()
        for r, best in zip(rows, exact.argmax(1).tolist(), strict=True):
            if r.computed == len(r.tokens):
                r.tokens.append(best)
        work = [(r, len(r.tokens) - r.computed) for r in rows]
        assert step > 0 or work[2][1] == 9, "the long prompt's rest comes in the second step"


def test_padding_changes_nothing_and_writes_nowhere(pair, pages, row):
    """Three rows in a graph of four, after a step of four: the fourth's pages stay as they are."""
    cuda, plain = pair
    rows, dealt = prompts(row, 4), pages(CONFIG.n_pages, CONFIG.page_size, seed=3)
    for batch in (dealt.step([(r, len(r.tokens)) for r in rows]),):
        assert cuda.run(asking(batch, full=True)).logits.shape == plain.logits(batch).shape
    for r in rows:
        r.tokens.append(7)
    for work in ([(r, 1) for r in rows[:3]], [(rows[3], 1)]):
        batch = dealt.step(work)
        np.testing.assert_allclose(cuda.run(asking(batch, full=True)).logits, plain.logits(batch), atol=2e-4, rtol=0)


def test_logits_that_nobody_asks_for_stay_on_the_device_and_tokens_are_drawn_there(pages, row):
    cuda, dealt = CudaRunner(LLAMA, RandomWeights(LLAMA), CONFIG, DEVICE, "float32"), pages(24, 16, seed=1)
    rows = prompts(row)
    drawn = cuda.run(asking(dealt.step([(r, len(r.tokens)) for r in rows]), full=False, wanted=np.array([True, False, True])))
    assert not drawn.logits.any() and drawn.drawn is not None and drawn.drawn[1] == -1
    assert all(0 <= t < 61 for t in drawn.drawn[[0, 2]])
    for r in rows:
        r.tokens.append(3)
    batch = dealt.step([(r, 1) for r in rows])
    again: list[Any] = [cuda.run(asking(batch, full=False, keys=np.array([8, 9, 10]))).drawn for _ in range(2)]
    assert again[0].tolist() == again[1].tolist(), "the same keys draw the same tokens"
    cold = cuda.run(asking(batch, full=False, temperature=np.full(3, 1e-6, np.float32)))
    assert cold.drawn is not None and cold.drawn.tolist() == cold.best.tolist()
    one = cuda.run(asking(batch, full=False, top_k=np.ones(3, np.int32)))
    assert one.drawn is not None and one.drawn.tolist() == one.best.tolist()
    tail = cuda.run(replace(asking(batch, full=False), full_logits=np.array([False, True, False])))
    assert tail.logits[1].any() and tail.drawn is None


def test_broken_numbers_reach_no_other_row(pages, row):
    weights = RandomWeights(LLAMA)
    weights.tensor("embed")[5] = np.nan
    cuda, dealt = CudaRunner(replace(LLAMA, tied=False), _headed(weights), CONFIG, DEVICE, "float32"), pages(24, 16)
    rows = [row([1, 2, 3]), row([4, 5, 6]), row([7])]
    assert cuda.run(asking(dealt.step([(r, len(r.tokens)) for r in rows]), full=False)).finite.tolist() == [True, False, True]
    for r in rows:
        r.tokens.append(8)
    assert cuda.run(asking(dealt.step([(r, 1) for r in rows]), full=False)).finite.tolist() == [True, False, True]


def _headed(weights: RandomWeights) -> RandomWeights:
    weights._tensors["head"] = RandomWeights(LLAMA, seed=9).tensor("embed")
    return weights


def test_there_is_a_graph_for_every_number_of_rows_with_little_padding():
    for most in (1, 3, 8, 20, 64, 256):
        found = sizes(most)
        assert found == sorted(set(found)) and found[-1] == most
        assert all(min(s for s in found if s >= n) <= max(1.5 * n, n + 31) for n in range(1, most + 1))


def texts(requests: dict[str, SamplingParams], max_batch: int = 4) -> dict[str, list[int]]:
    """What an engine on the GPU's runner says to each."""
    config = replace(CONFIG, max_batch=max_batch, max_guess=0, draws_on_device=True)
    core = EngineCore(CudaRunner(LLAMA, RandomWeights(LLAMA), config, DEVICE, "float32"), Numbers(), config)
    found: dict[str, list[int]] = {name: [] for name in requests}
    for name, sampling in requests.items():
        core.submit(GenerationRequest(name, [3, 1, len(name)], sampling))
    while core.is_busy:
        for name, output in core.step():
            assert output.failure is None
            found[name] += output.token_ids
        core.check_integrity()
    return found


def test_an_engine_says_the_same_to_a_seed_alone_and_in_company():
    asked = {
        "seed": SamplingParams(temperature=0.9, top_p=0.9, seed=4, max_tokens=3, ignore_eos=True),
        "greedy": SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True),
        "told": SamplingParams(temperature=0.8, logprobs=2, seed=1, max_tokens=3, ignore_eos=True),
    }
    together = texts(asked)
    assert [len(text) for text in together.values()] == [3, 4, 3]
    assert texts({"seed": asked["seed"]}, max_batch=1)["seed"] == together["seed"]


@pytest.mark.slow
def test_a_files_weights_stay_in_four_bits_and_give_torchs_logits(smollm2, pages, row):
    """The first two layers of SmolLM2-135M from its file, in float32."""
    model = load_model(smollm2)
    spec = replace(model.config.decoder, n_layers=2, layers=model.config.decoder.layers[:2])
    cuda, plain = CudaRunner(spec, model.weights, CONFIG, DEVICE, "float32"), Torch(spec, model.weights)
    layer = cuda._decoder._layers[0]
    assert all(isinstance(weight, Packed4) for weight in (layer.qkv, layer.o, layer.gate_up, layer.down))
    text, dealt = row([504, 3575, 282, 4649, 314]), pages(CONFIG.n_pages, CONFIG.page_size, seed=1)
    for n in (4, 1):
        batch = dealt.step([(text, n)])
        ours, exact = cuda.run(asking(batch, full=True)), plain.logits(batch)
        np.testing.assert_allclose(ours.logits, exact, atol=2e-5 * np.abs(exact).max(), rtol=0)
        assert ours.best.tolist() == exact.argmax(1).tolist()
