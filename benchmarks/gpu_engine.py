"""The whole engine on the GPU: is it right, and how fast."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..kernels.spec import DecoderSpec, LayerSpec
from ..runtime.engine.config import EngineConfig
from ..runtime.engine.core import EngineCore
from ..runtime.engine.cuda_runner import CudaRunner
from ..runtime.engine.request import GenerationRequest
from ..runtime.models.load_safetensors import LAYER, TOP
from ..wire.chat import SamplingParams
from .gpu_kernels import Bed, copy_bandwidth
from .gpu_models import RandomWeights, n_weights, spec_of

Row = dict[str, Any]
STREAMS = (1, 8, 32, 128, 256)
PROMPT, OUTPUT = 128, 128  # tokens
NEAR_TIE = 1e-3  # float32 sums in another order decide between logits this close


class Numbers:
    """A tokenizer of numbers."""

    eos_ids = ()

    def token_bytes(self, id: int, /) -> bytes:
        """See engine.core.EngineTokenizer."""
        return b"%d " % id


def engine_config(spec: DecoderSpec, smoke: bool) -> EngineConfig:
    """Room for 256 streams of 256 tokens, or for one long prompt beside 32 streams. Nothing is guessed: the text is random."""
    if smoke:
        return EngineConfig(n_pages=64, page_size=16, max_batch=2, token_budget=32, max_guess=0, draws_on_device=True)
    return EngineConfig(n_pages=3072, page_size=32, max_batch=256, token_budget=2048, max_guess=0, draws_on_device=True)


@dataclass
class Measured:
    """An engine, driven by hand, with the time and the tokens of each step."""

    core: EngineCore
    rng: np.random.Generator
    steps: list[tuple[float, int, bool]] = field(default_factory=list)  # (seconds, tokens, whether all rows decoded)
    first: dict[str, float] = field(default_factory=dict)  # when a request's first token came
    sent: int = 0

    def submit(self, prompt: int, output: int, temperature: float = 0.0) -> str:
        """A request of random tokens; its name."""
        self.sent += 1
        name = f"r{self.sent}"
        vocab = self.core._runner.vocab
        params = SamplingParams(temperature=temperature, top_p=0.95, max_tokens=output, ignore_eos=True, seed=self.sent)
        request = GenerationRequest(name, self.rng.integers(0, vocab, prompt).tolist(), params)
        self.core.check(request)
        self.core.submit(request)
        return name

    def step(self) -> None:
        """One step of the engine."""
        began = time.perf_counter()
        outputs = self.core.step()
        now = time.perf_counter()
        for name, output in outputs:
            if output.failure is not None:
                raise RuntimeError(f"{name} failed: {output.failure}")
            self.first.setdefault(name, now)
        decodes = all(load.prefill == 0 for load in self.core.loads)
        self.steps.append((now - began, sum(len(output.token_ids) for _, output in outputs), decodes))

    def finish(self) -> None:
        """Steps until nothing is left."""
        while self.core.is_busy:
            self.step()


def engine(name: str, smoke: bool) -> Iterator[Row]:
    """Tokens a second at so many streams, a prompt's tokens a second, and a newcomer's first token under load."""
    bed, spec = Bed(smoke), spec_of(name, smoke)
    config = engine_config(spec, smoke)
    began = time.perf_counter()
    runner = CudaRunner(spec, RandomWeights(spec), config, bed.device, "float32" if smoke else "bfloat16")
    yield {"weights": n_weights(spec), "ready after s": time.perf_counter() - began}
    read_s = n_weights(spec) * bed.randn(1).element_size() / copy_bandwidth(bed)
    prompt, output = (8, 3) if smoke else (PROMPT, OUTPUT)
    _streams(runner, config, 1, prompt, min(output, 8), 1.0)  # what is still to be compiled
    for n in (1, 2) if smoke else STREAMS:
        yield _streams(runner, config, n, prompt, output, 0.0, read_s if n == 1 else 0.0)
    yield {"sampled": True} | _streams(runner, config, 2 if smoke else 32, prompt, output, 1.0)
    yield _prefill(runner, config, 40 if smoke else 8192)
    yield _newcomer(runner, config, 1, 20, 4) if smoke else _newcomer(runner, config, 32, 1024, 64)


def _new(runner: CudaRunner, config: EngineConfig) -> Measured:
    return Measured(EngineCore(runner, Numbers(), config), np.random.default_rng(0))


def _streams(
    runner: CudaRunner, config: EngineConfig, n: int, prompt: int, output: int, temperature: float, read_s: float = 0.0
) -> Row:
    run, began = _new(runner, config), time.perf_counter()
    for _ in range(n):
        run.submit(prompt, output, temperature)
    run.finish()
    seconds, decodes = time.perf_counter() - began, [step for step in run.steps if step[2]]
    step_s = float(np.median([step[0] for step in decodes]))
    row: Row = {
        "streams": n,
        "output tokens/s": n * output / seconds,
        "in decode": sum(step[1] for step in decodes) / sum(step[0] for step in decodes),
        "step ms": step_s * 1e3,
    }
    return row | ({"share of weights' bytes / bandwidth": read_s / step_s} if read_s else {})


def _prefill(runner: CudaRunner, config: EngineConfig, n: int) -> Row:
    _first_token(runner, config, n)  # compiles what is not yet
    return {"prompt": n, "prefill tokens/s": n / _first_token(runner, config, n)}


def _first_token(runner: CudaRunner, config: EngineConfig, prompt: int) -> float:
    run, began = _new(runner, config), time.perf_counter()
    name = run.submit(prompt, 1)
    run.finish()
    return run.first[name] - began


def _newcomer(runner: CudaRunner, config: EngineConfig, streams: int, prompt: int, output: int) -> Row:
    """A prompt that comes while others decode."""
    found = []
    for _ in range(3):
        run = _new(runner, config)
        others = [run.submit(prompt // 8, output) for _ in range(streams)]
        while len(run.first) < len(others):
            run.step()
        began, name = time.perf_counter(), run.submit(prompt, 1)
        while name not in run.first:
            run.step()
        found.append(run.first[name] - began)
        run.finish()
    return {"prompt": prompt, "beside streams": streams, "first token ms": float(np.median(found)) * 1e3}


class FromTransformers:
    """The weights of a transformers model in memory, by our names."""

    def __init__(self, model: Any, spec: DecoderSpec) -> None:
        state = {name: tensor.float().cpu().numpy() for name, tensor in model.state_dict().items()}
        self._tensors = {ours: state["model." + theirs] for ours, theirs in TOP.items()} | {"head": state["lm_head.weight"]}
        for i in range(spec.n_layers):
            names = {f"layers.{i}.{ours}": f"model.layers.{i}.{theirs}" for ours, theirs in LAYER.items()}
            self._tensors |= {ours: state[theirs] for ours, theirs in names.items() if theirs in state}

    def tensor(self, name: str) -> NDArray[np.float32]:
        """See weights.Tensors."""
        return self._tensors[name]


def correct(smoke: bool) -> list[Row]:
    """Greedy text of a random Llama in float32, prompts in company, against transformers, which is shown our text and must
    prefer every token of it (or find it next to tied)."""
    from transformers import LlamaConfig, LlamaForCausalLM

    bed = Bed(smoke)
    n_layers, hidden, vocab, tokens = (2, 32, 61, 4) if smoke else (6, 512, 4096, 96)
    heads: Row = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": hidden // 4}
    sizes: Row = {"hidden_size": hidden, "intermediate_size": 2 * hidden, "num_hidden_layers": n_layers, "vocab_size": vocab}
    settings = LlamaConfig(**sizes, **heads, max_position_embeddings=2048, tie_word_embeddings=False)
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = False
    model: Any = LlamaForCausalLM(settings)
    model = model.to(bed.device, torch.float32).eval()
    for weight in model.parameters():
        if weight.dim() == 2:
            torch.nn.init.normal_(weight, std=1.5 * weight.shape[1] ** -0.5)
    layers = (LayerSpec(rope_theta=_theta(settings)),) * n_layers
    spec = DecoderSpec(n_layers, hidden, 4, 2, hidden // 4, 2 * hidden, vocab, 2048, settings.rms_norm_eps, layers, tied=False)
    config = engine_config(spec, smoke)
    runner = CudaRunner(spec, FromTransformers(model, spec), config, bed.device, "float32")
    core, rng = EngineCore(runner, Numbers(), config), np.random.default_rng(1)
    prompts = {f"p{i}": rng.integers(0, vocab, n).tolist() for i, n in enumerate((3, 17) if smoke else (3, 40, 700, 1200))}
    texts: dict[str, list[int]] = {name: [] for name in prompts}
    for name, prompt in prompts.items():
        core.submit(GenerationRequest(name, prompt, SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)))
    while core.is_busy:
        for name, output in core.step():
            texts[name] += output.token_ids
    gaps = [_gap(model, prompts[name], text) for name, text in texts.items()]
    ties, worst = sum(int((gap > 0).sum()) for gap in gaps), max(float(gap.max()) for gap in gaps)
    if worst > NEAR_TIE or any(len(text) != tokens for text in texts.values()):
        raise AssertionError(f"our text parts from transformers': a token is {worst:.3g} below the best")
    return [{"greedy tokens as transformers'": sum(map(len, texts.values())), "near-ties": ties, "worst gap": worst}]


def _theta(settings: Any) -> float:
    found = getattr(settings, "rope_parameters", None) or {}
    return float(found.get("rope_theta", getattr(settings, "rope_theta", 10000.0)))


@torch.inference_mode()
def _gap(model: Any, prompt: list[int], text: list[int]) -> torch.Tensor:
    """How far each token of ours is below the one that transformers likes best."""
    ids = torch.tensor([prompt + text[:-1]], device=model.device)
    logits = model(ids).logits[0, len(prompt) - 1 :].float()
    return logits.max(-1).values - logits.gather(1, torch.tensor(text, device=model.device)[:, None])[:, 0]
