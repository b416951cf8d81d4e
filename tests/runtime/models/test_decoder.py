"""The decoder gives transformers' logits, for every family, however a sequence is cut into steps and scattered over pages."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray

from baseload.kernels.cpu.pack import Grouped, bf16
from baseload.kernels.paged_attention import KvPool
from baseload.kernels.spec import DecoderSpec, LayerSpec
from baseload.runtime.models.config import config_from_hf
from baseload.runtime.models.decoder import Decoder
from baseload.runtime.models.load_safetensors import SafetensorsWeights
from baseload.runtime.models.weights import check_shapes

VOCAB, HIDDEN, LENGTH = 101, 48, 40
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "attn_implementation": "eager",
}
# float32 in another order of summation: about sqrt(hidden * layers) roundings of 6e-8 on logits of order 10, times a margin
TOLERANCE = 1e-4


class DictWeights:
    """Weights held in a dict, in place of a model file."""

    def __init__(self, tensors: Mapping[str, NDArray[np.float32]]) -> None:
        self._tensors = dict(tensors)

    def names(self) -> frozenset[str]:
        return frozenset(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name].shape

    def tensor(self, name: str) -> NDArray[np.float32]:
        return self._tensors[name]

    def grouped(self, name: str) -> Grouped:
        return bf16(self._tensors[name])

    def release(self) -> None:
        pass


NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "mlp_norm",
    "self_attn.q_proj": "q",
    "self_attn.k_proj": "k",
    "self_attn.v_proj": "v",
    "self_attn.o_proj": "o",
    "self_attn.q_norm": "q_norm",
    "self_attn.k_norm": "k_norm",
    "mlp.gate_proj": "gate",
    "mlp.up_proj": "up",
    "mlp.down_proj": "down",
}
GEMMA_NAMES = NAMES | {
    "post_attention_layernorm": "post_attn_norm",
    "pre_feedforward_layernorm": "mlp_norm",
    "post_feedforward_layernorm": "post_mlp_norm",
}


def neutral(model: transformers.PreTrainedModel) -> dict[str, NDArray[np.float32]]:
    """A transformers model's weights under our names."""
    gemma = model.config.model_type.startswith("gemma")
    found = {}
    for name, tensor in model.state_dict().items():
        parts = name.removeprefix("model.").split(".")
        if parts[0] == "layers":
            module, kind = ".".join(parts[2:-1]), parts[-1]
            ours = f"layers.{parts[1]}.{(GEMMA_NAMES if gemma else NAMES)[module]}" + ("_bias" if kind == "bias" else "")
        else:
            ours = {"embed_tokens": "embed", "norm": "norm", "lm_head": "head"}[parts[0]]
        found[ours] = (tensor + 1 if gemma and ours.endswith("norm") else tensor).float().numpy()
    return found


def tiny(family: str) -> tuple[transformers.PreTrainedModel, DecoderSpec]:
    """A small model of the family with every weight random, biases and norms too, and its configuration in our words."""
    config, changes = FAMILIES[family]()
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    for name, weight in model.named_parameters():
        torch.nn.init.normal_(weight, float("norm" in name and "gemma" not in family), 0.2)
    spec = {
        "n_layers": 4,
        "hidden": HIDDEN,
        "n_heads": 6,
        "n_kv_heads": 2,
        "head_dim": HIDDEN // 6,
        "intermediate": 80,
        "vocab": VOCAB,
        "context_length": 256,
        "norm_eps": config.rms_norm_eps,
        "layers": (LayerSpec(),) * 4,
        "tied": config.tie_word_embeddings,
    }
    return model, DecoderSpec(**(spec | changes(model)))


def llama() -> tuple:
    return transformers.LlamaConfig(**SIZES, tie_word_embeddings=True), lambda _: {}


def llama3() -> tuple:
    """Llama 3.1's long-context rope: each frequency has a factor of its own."""
    rope = {"rope_type": "llama3", "rope_theta": 5000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    config = transformers.LlamaConfig(**SIZES, rope_parameters=rope | {"original_max_position_embeddings": 64})
    plain = 5000.0 ** -(torch.arange(0, 8, 2) / 8)

    def changes(model: transformers.PreTrainedModel) -> dict:
        factors = plain / model.get_buffer("model.rotary_emb.inv_freq")
        assert factors.max() > 2 > factors.min(), "the configuration must exercise the factors"
        return {"layers": (LayerSpec(rope_theta=5000.0),) * 4, "rope_long_freqs": tuple(factors.tolist())}

    return config, changes


def linear_rope() -> tuple:
    rope = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
    return transformers.LlamaConfig(**SIZES, rope_parameters=rope), lambda _: {"layers": (LayerSpec(rope_factor=4.0),) * 4}


def mistral() -> tuple:
    config = transformers.MistralConfig(**SIZES, head_dim=8, sliding_window=7)
    return config, lambda _: {"layers": (LayerSpec(window=7),) * 4}


def qwen2() -> tuple:
    return transformers.Qwen2Config(**SIZES, tie_word_embeddings=True), lambda _: {"qkv_bias": True}


def qwen3() -> tuple:
    return transformers.Qwen3Config(**SIZES, head_dim=16), lambda _: {"qk_norm": True, "head_dim": 16}


def gemma3() -> tuple:
    kinds = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
    rope = {
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
    }
    config = transformers.Gemma3TextConfig(
        **SIZES,
        head_dim=16,
        sliding_window=6,
        layer_types=kinds,
        rope_parameters=rope,
        query_pre_attn_scalar=24,
    )
    local, full = LayerSpec(window=6, rope_theta=1e4), LayerSpec(rope_theta=1e6, rope_factor=8.0)
    changes = {
        "layers": tuple(full if kind == "full_attention" else local for kind in kinds),
        "head_dim": 16,
        "activation": "gelu_tanh",
        "qk_norm": True,
        "post_norms": True,
        "embed_scale": HIDDEN**0.5,
        "attn_scale": 24**-0.5,
    }
    return config, lambda _: changes


def gemma2() -> tuple:
    """Not a family that we read from files, but transformers' one judge of the soft-cap on attention scores."""
    config = transformers.Gemma2Config(
        **SIZES,
        head_dim=16,
        sliding_window=6,
        layer_types=["sliding_attention", "full_attention"] * 2,
        query_pre_attn_scalar=24,
        attn_logit_softcapping=3.0,
        final_logit_softcapping=4.0,
    )
    changes = {
        "layers": (LayerSpec(window=6), LayerSpec()) * 2,
        "head_dim": 16,
        "activation": "gelu_tanh",
        "post_norms": True,
        "embed_scale": HIDDEN**0.5,
        "attn_scale": 24**-0.5,
        "attn_softcap": 3.0,
        "final_softcap": 4.0,
    }
    return config, lambda _: changes


FAMILIES: dict[str, Callable[[], tuple]] = {
    f.__name__: f for f in (llama, llama3, linear_rope, mistral, qwen2, qwen3, gemma2, gemma3)
}


@pytest.fixture(scope="module", params=list(FAMILIES))
def family(request) -> tuple[Decoder, list[list[int]], list[NDArray[np.float32]]]:
    """A decoder of each family, three prompts, and transformers' logits for them."""
    model, spec = tiny(request.param)
    generator = np.random.default_rng(7)
    prompts = [generator.integers(0, VOCAB, n).tolist() for n in (LENGTH, 9, 23)]
    with torch.inference_mode():
        expected = [model(torch.tensor([prompt])).logits[0].numpy() for prompt in prompts]
    return Decoder(spec, DictWeights(neutral(model))), prompts, expected


def pool(decoder: Decoder, n_pages: int, page_size: int) -> KvPool:
    return KvPool(decoder.spec, n_pages, page_size, decoder.kernels.device, decoder.kernels.dtype)


def close(ours: torch.Tensor | NDArray, theirs: NDArray) -> None:
    np.testing.assert_allclose(np.asarray(ours), theirs, atol=TOLERANCE * max(1.0, float(np.abs(theirs).max())), rtol=0)


@pytest.mark.parametrize("seed", [None, 3])
def test_whole_prompts_at_once(family, pages, row, seed):
    decoder, prompts, expected = family
    dealt = pages(24, 4, seed)
    batch = dealt.step([(row(prompt), len(prompt)) for prompt in prompts], logits="all")
    close(decoder.forward(batch, pool(decoder, 24, 4)), np.concatenate(expected))


@pytest.mark.parametrize("name", list(FAMILIES))
def test_what_goes_into_the_head(name, pages, row):
    model, spec = tiny(name)
    prompt = np.random.default_rng(8).integers(0, VOCAB, 23).tolist()
    with torch.inference_mode():
        theirs = model(torch.tensor([prompt]), output_hidden_states=True).hidden_states[-1][0, -1:].numpy()
    decoder = Decoder(spec, DictWeights(neutral(model)))
    close(decoder.states(pages(8, 4).step([(row(prompt), 23)]), pool(decoder, 8, 4)), theirs)


@pytest.mark.parametrize("seed", range(4))
def test_rows_cut_and_mixed_at_random(family, pages, row, seed):
    """Each step takes some of the rows and a random number of their tokens: decode rows, chunks and whole prompts mix."""
    decoder, prompts, expected = family
    generator = np.random.default_rng(seed)
    dealt, kv = pages(40, 3, seed), pool(decoder, 40, 3)
    rows = [row(prompt) for prompt in prompts]
    found = [np.zeros_like(e) for e in expected]
    while any(r.computed < len(r.tokens) for r in rows):
        waiting = [i for i, r in enumerate(rows) if r.computed < len(r.tokens) and generator.random() < 0.7]
        if not waiting:
            continue
        sizes = [min(int(generator.choice([1, 1, 2, 5, 13])), len(rows[i].tokens) - rows[i].computed) for i in waiting]
        begins = [rows[i].computed for i in waiting]
        logits = decoder.forward(dealt.step([(rows[i], n) for i, n in zip(waiting, sizes, strict=True)], "all"), kv)
        for i, begin, n, part in zip(waiting, begins, sizes, logits.split(sizes), strict=True):
            found[i][begin : begin + n] = part
    close(np.concatenate(found), np.concatenate(expected))


def test_a_batch_of_decode_rows_of_unlike_lengths(family, pages, row):
    """The rows' last tokens in one step: they are grouped and padded, and nobody's answer changes."""
    decoder, prompts, expected = family
    dealt, kv = pages(80, 4, 5), pool(decoder, 80, 4)
    cuts = [(p, n) for p, prompt in enumerate(prompts) for n in range(2, len(prompt), 5)]
    rows = [row(prompts[p][: n + 1]) for p, n in cuts]
    decoder.forward(dealt.step([(r, len(r.tokens) - 1) for r in rows]), kv)
    logits = decoder.forward(dealt.step([(r, 1) for r in rows]), kv)
    close(logits, np.stack([expected[p][n] for p, n in cuts]))


def test_only_wanted_rows_reach_the_head(family, pages, row):
    decoder, prompts, expected = family
    rows = [row(prompt) for prompt in prompts]
    logits = decoder.forward(pages(40, 4).step([(r, len(r.tokens)) for r in rows]), pool(decoder, 40, 4))
    assert logits.shape == (3, VOCAB) and logits.dtype == torch.float32
    close(logits, np.stack([e[-1] for e in expected]))


def test_bfloat16_is_near(pages, row):
    model, spec = tiny("llama")
    prompt = list(range(LENGTH))
    weights = DictWeights(neutral(model))
    exact, rough = Decoder(spec, weights), Decoder(spec, weights, dtype="bfloat16")
    found = [d.forward(pages(20, 4).step([(row(prompt), LENGTH)]), pool(d, 20, 4)) for d in (exact, rough)]
    assert found[1].dtype == torch.float32
    assert torch.cosine_similarity(found[0], found[1]).item() > 0.995


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "gemma2"])
def test_the_folder_that_transformers_saves_reads_as_the_same_model(name, tmp_path):
    """Configuration and weights from disk are those that gave transformers' logits above."""
    model, spec = tiny(name)
    model.save_pretrained(tmp_path)
    config = config_from_hf(tmp_path)
    assert config.decoder.rope_long_freqs == pytest.approx(spec.rope_long_freqs, rel=1e-5)
    assert replace(config.decoder, rope_long_freqs=()) == replace(spec, rope_long_freqs=())
    weights = SafetensorsWeights(tmp_path, spec, norm_plus_one=config.family == "gemma3")
    check_shapes(weights, spec)
    for ours, tensor in neutral(model).items():
        if not (spec.tied and ours == "head"):
            np.testing.assert_array_equal(weights.tensor(ours), tensor, err_msg=ours)
