"""The native step beside the Python decoder with the same roundings, for every feature that a family has and every format.

The two add up in different orders, and a float that differs in its last bit may become another integer of 8 bits. Through one
layer that is rare: most rows of logits must agree to a few last bits, and all but for some such roundings. In many layers such
a rounding spreads to all that follows, as it does between two instruction sets: there the bound is that of roundings.
"""

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from baseload.kernels.cpu import step as cpu_step
from baseload.kernels.cpu.library import instruction_sets
from baseload.kernels.cpu.pack import Format, Layout
from baseload.kernels.spec import LayerSpec
from baseload.runtime.models import rounded_decoder
from baseload.runtime.models.model_file import load_model
from baseload.runtime.models.native_weights import native_weights

TYPICAL, WORST = 2e-4, 0.1  # of the logits' standard deviation, in one layer: of the median row, and of the worst
WORST_OF_FIVE = 0.15
ISAS = instruction_sets()
FeatureSet = dict[str, Any]
SLIDING = LayerSpec(window=5, rope_theta=1e4)
GEMMA: FeatureSet = {
    "layers": (SLIDING, SLIDING, LayerSpec(rope_theta=1e6, rope_factor=8.0), SLIDING, SLIDING),
    "head_dim": 256,
    "n_kv_heads": 1,
    "activation": "gelu_tanh",
    "qk_norm": True,
    "post_norms": True,
    "embed_scale": 96**0.5,
    "attn_scale": 24**-0.5,
}
FEATURES: dict[str, FeatureSet] = {
    "llama": {},
    "untied, vocabulary of whole panels": {"tied": False, "vocab": 112},
    "untied, odd vocabulary": {"tied": False, "vocab": 97},
    "llama 3: frequency factors": {"head_dim": 96, "rope_long_freqs": tuple(np.geomspace(1, 8, 48).tolist())},
    "linear rope": {"head_dim": 64, "layers": (LayerSpec(rope_factor=4.0),) * 5},
    "mistral: window": {"layers": (LayerSpec(window=7),) * 5},
    "window of a page and a bit": {
        "layers": (LayerSpec(window=17), LayerSpec(window=70), LayerSpec(), LayerSpec(window=1), LayerSpec())
    },
    "qwen 2.5: bias": {"qkv_bias": True, "n_heads": 6},
    "qwen 3: norms of heads": {"qk_norm": True, "head_dim": 128, "n_kv_heads": 1},
    "gemma 3": GEMMA,
    "gemma 2: soft-caps": GEMMA | {"qk_norm": False, "attn_softcap": 3.0, "final_softcap": 4.0},
} | {f"{n} heads share one": {"n_heads": n, "n_kv_heads": 1} for n in range(1, 9)}
FORMATS = {format.name: {"": format} for format in Format} | {
    "q and k of 4 bits, v of 8": {"v": Format.Q8_BIAS, "down": Format.Q8_MIN, "embed": Format.Q8_BIAS},
    "bfloat16 here and there": {"o": Format.BF16, "embed": Format.BF16, "gate": Format.Q4_BIAS, "up": Format.Q8_MIN},
}


def errors(kit, step, pages, row, spec, weights, isa: str = "") -> np.ndarray:
    """Of each row of logits, in standard deviations: three sequences cut at random, past blocks of 64 keys."""
    rng = np.random.default_rng(5)
    ours, oracle, dealt = step(spec, weights, isa), kit.oracle(spec, weights), pages(64, kit.page, 1)
    rows = [row(rng.integers(0, spec.vocab, n).tolist()) for n in (150, 9, 40)]
    found, expected = [], []
    while waiting := [r for r in rows if r.computed < len(r.tokens)]:
        work = [(r, min(int(rng.choice([1, 2, 7, 64])), len(r.tokens) - r.computed)) for r in waiting]
        batch = dealt.step(work, "all")
        output = ours.run(batch)
        assert output.finite.all() and (output.best == output.logits.argmax(-1)).all()
        found.append(output.logits.copy())
        expected.append(oracle.logits(batch))
    whole = np.concatenate(expected)
    return np.abs(np.concatenate(found) - whole).max(-1) / whole.std()


def check(found: np.ndarray) -> None:
    assert np.median(found) < TYPICAL and found.max() < WORST


@pytest.fixture(params=[(0, 0), (15, 0), (0, 15)], ids=["coarse", "fine", "bytes"])
def precision(request, monkeypatch) -> None:
    """All activations of 8 bits (with tiles, of 16), or all of 16 (and weights too), or with tiles all of one byte."""
    set_precision(monkeypatch, *request.param)


def set_precision(monkeypatch: pytest.MonkeyPatch, fine: int, small: int) -> None:
    for module in (cpu_step, rounded_decoder):
        monkeypatch.setattr(module, "fine_inputs", lambda *_: fine)
        monkeypatch.setattr(module, "byte_inputs", lambda *which: small if which[-1] == Layout.TILES else 0)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("feature", FEATURES)
def test_every_feature_in_one_layer(feature, isa, precision, kit, step, pages, row):
    changes = FEATURES[feature]
    layers = changes.get("layers", (LayerSpec(),))
    spec = kit.spec(1, **changes | {"layers": layers[:1]})
    check(errors(kit, step, pages, row, spec, kit.weights(spec, isa), isa))


@pytest.mark.parametrize("feature", FEATURES)
def test_every_feature_in_five_layers(feature, kit, step, pages, row):
    spec = kit.spec(**FEATURES[feature])
    found = errors(kit, step, pages, row, spec, kit.weights(spec))
    assert found.max() < WORST_OF_FIVE


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("formats", FORMATS)
def test_every_format(formats, isa, precision, kit, step, pages, row):
    spec = kit.spec(1, tied=False)
    check(errors(kit, step, pages, row, spec, kit.weights(spec, isa, FORMATS[formats]), isa))


@pytest.mark.parametrize("fine", [1, 2, 4, 8])
def test_each_linear_has_a_precision_of_its_own(fine, monkeypatch, kit, step, pages, row):
    set_precision(monkeypatch, fine, 15)
    spec = kit.spec(1)
    check(errors(kit, step, pages, row, spec, kit.weights(spec)))


@pytest.mark.parametrize("feature", FEATURES)
def test_greedy_text_is_the_oracles(feature, kit, step, pages, row):
    """Eight sequences of 24 tokens chosen by the native step; the oracle must prefer each of them, near-ties excepted."""
    spec = kit.spec(2, **FEATURES[feature] | {"layers": FEATURES[feature].get("layers", (LayerSpec(),) * 5)[-2:]})
    weights, rng = kit.weights(spec), np.random.default_rng(1)
    rows = [row(rng.integers(0, spec.vocab, n).tolist()) for n in range(1, 9)]
    prompts = [len(r.tokens) for r in rows]
    generate(step(spec, weights), rows, pages(64, kit.page, 2), 24)
    gaps = oracle_gaps(kit.oracle(spec, weights), rows, prompts, pages(64, kit.page))
    assert (gaps > 0).mean() < 0.05 and gaps.max() < WORST, sorted(gaps[gaps > 0])


def generate(ours, rows, dealt, n: int) -> None:
    """`n` tokens for each row, greedily, all in one batch. The logits themselves need not be kept."""
    for _ in range(n):
        batch = dealt.step([(r, len(r.tokens) - r.computed) for r in rows])
        batch.full_logits[:] = False
        output = ours.run(batch)
        assert output.finite.all()
        for r, chosen in zip(rows, output.best.tolist(), strict=True):
            r.tokens.append(chosen)


def oracle_gaps(oracle, rows, prompts: list[int], dealt) -> np.ndarray:
    """By how many standard deviations the oracle prefers another token than the one that was chosen, for each."""
    gaps = []
    for r, prompt in zip(rows, prompts, strict=True):
        again = replace(r, tokens=r.tokens[:-1], computed=0, pages=[])
        logits = oracle.logits(dealt.step([(again, len(again.tokens))], "all"))[prompt - 1 :]
        chosen = logits[np.arange(len(logits)), r.tokens[prompt:]]
        gaps.append((logits.max(-1) - chosen) / logits.std())
    return np.concatenate(gaps)


@pytest.mark.parametrize(
    "changes", [{"hidden": 80}, {"head_dim": 48}, {"head_dim": 544}, {"intermediate": 65568}, {"n_heads": 4096}]
)
def test_a_decoder_of_odd_or_too_large_sizes_is_refused(changes, kit):
    assert cpu_step.unsupported(kit.spec(), 16) is None and cpu_step.unsupported(kit.spec(), 24)
    assert cpu_step.unsupported(kit.spec(**changes), 16)


PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a village by the sea,",
    "def fibonacci(n):\n",
    "Question: What is 17 + 25?\nAnswer:",
    "Dear Sir or Madam,\n\nI am writing to",
    "The three laws of thermodynamics are:\n1.",
    "La capitale de l'Espagne est",
    "A list of prime numbers: 2, 3, 5, 7,",
)


@pytest.mark.slow
@pytest.mark.parametrize("isa", ISAS)
def test_greedy_text_of_a_real_model_is_the_oracles(isa, smollm2, kit, step, pages, row):
    """SmolLM2, 64 tokens of eight prompts. Thirty layers make of two orders of summation two samples of rounding: logits part
    by 0.02 standard deviations. So a token may differ where the two best are as near as a few times that; it is reported."""
    model = load_model(smollm2)
    spec = model.config.decoder
    weights = native_weights(model.weights, spec, cpu_step.layout_of(isa))
    rows = [row(model.tokenizer.encode(prompt, specials=False)) for prompt in PROMPTS]
    prompts = [len(r.tokens) for r in rows]
    generate(step(spec, weights, isa, n_pages=8 * 6, page_size=16), rows, pages(48, 16, 3), 64)
    gaps = oracle_gaps(kit.oracle(spec, weights, 48, 16), rows, prompts, pages(48, 16))
    assert (gaps > 0).mean() < 0.05 and gaps.max() < 0.15
    if gaps.any():
        warnings.warn(
            f"{(gaps > 0).sum()} of {len(gaps)} tokens differ, at near-ties of {sorted(gaps[gaps > 0])}", stacklevel=1
        )
    assert model.tokenizer.decode(rows[0].tokens[prompts[0] :]).startswith(" Paris")
