"""From a file's blocks to the native kernels' groups: what weights mean stays, or moves by a known rounding."""

from collections.abc import Mapping
from typing import Any

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from baseload.kernels.cpu.pack import Format, Grouped, Layout, bf16, int8, pack, unpack
from baseload.kernels.spec import DecoderSpec, LayerSpec
from baseload.runtime.models import quants
from baseload.runtime.models.groups import grouped
from baseload.runtime.models.model_file import load_model
from baseload.runtime.models.native_weights import native_weights
from baseload.runtime.models.weights import expected_shapes

ROUNDING = {"float16": 2.0**-11, "bfloat16": 2.0**-8}  # at most so much of a number
SUBNORMAL = 2.0**-25  # half a step of the least float16 numbers
HALVES = {  # where a block's float16 numbers stand
    quants.Q4_0: (0,),
    quants.Q4_1: (0, 2),
    quants.Q5_0: (0,),
    quants.Q5_1: (0, 2),
    quants.Q8_0: (0,),
    quants.Q2_K: (80, 82),
    quants.Q3_K: (108,),
    quants.Q4_K: (0, 2),
    quants.Q5_K: (0, 2),
    quants.Q6_K: (208,),
}
EXACT = {
    quants.Q4_0: Format.Q4_BIAS,
    quants.Q4_1: Format.Q4_MIN,
    quants.Q5_0: Format.Q8_BIAS,
    quants.Q5_1: Format.Q8_MIN,
    quants.Q8_0: Format.Q8_BIAS,
    quants.BF16: Format.BF16,
}
ROWS, COLS = 37, 512


def blocks(ggml_type: int) -> NDArray[np.uint8]:
    """Random blocks of [ROWS, COLS], whose scales are numbers of some size."""
    rng = np.random.default_rng(ggml_type)
    if ggml_type in (quants.F32, quants.F16, quants.BF16):
        x = rng.standard_normal((ROWS, COLS)).astype(np.float32)
        if ggml_type == quants.BF16:
            return (x.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8).ravel()
        return x.astype(np.float16 if ggml_type == quants.F16 else np.float32).view(np.uint8).ravel()
    size, nbytes = quants.BLOCKS[ggml_type]
    raw = rng.integers(0, 256, (ROWS * COLS // size, nbytes), dtype=np.uint8)
    for at in HALVES[ggml_type]:
        raw[:, at : at + 2] = rng.normal(0, 0.02, (len(raw), 1)).astype(np.float16).view(np.uint8)
    return raw.ravel()


def gguf_py(raw: NDArray[np.uint8], ggml_type: int) -> NDArray[np.float32]:
    kinds = {quants.F32: np.float32, quants.F16: np.float16}
    shaped = raw.view(kinds.get(ggml_type, np.uint8)).reshape(ROWS, -1)
    return gguf.quants.dequantize(shaped, gguf.GGMLQuantizationType(ggml_type)).astype(np.float32).reshape(ROWS, COLS)


@pytest.mark.parametrize("ggml_type", sorted(quants.BLOCKS))
def test_groups_mean_what_gguf_py_says(ggml_type: int):
    raw = blocks(ggml_type)
    weight, theirs = grouped(raw, ggml_type, (ROWS, COLS)), gguf_py(raw, ggml_type)
    ours = unpack(pack(weight, Layout.DOTS))
    if ggml_type in EXACT:
        assert weight.format == EXACT[ggml_type]
        np.testing.assert_array_equal(ours, theirs)
        return
    if ggml_type in (quants.F16, quants.F32):
        assert weight.format == Format.BF16
        assert (np.abs(ours - theirs) <= ROUNDING["bfloat16"] * np.abs(theirs)).all()
        return
    assert weight.d is not None
    d = np.repeat(np.abs(weight.d.astype(np.float32)), 32, 1)
    if ggml_type in (quants.Q4_K, quants.Q5_K):  # the scales' products are rounded to float16
        assert weight.format == (Format.Q4_MIN if ggml_type == quants.Q4_K else Format.Q8_MIN) and weight.m is not None
        m = np.repeat(np.abs(weight.m.astype(np.float32)), 32, 1)
        most = 15 if ggml_type == quants.Q4_K else 31
        slack = (most * d + m) * ROUNDING["float16"] + (most + 1) * SUBNORMAL
        assert (np.abs(ours - theirs) <= slack).all()
    else:  # half a step of 8 bits, and the step's own rounding
        assert weight.format == Format.Q8_BIAS
        assert (np.abs(ours - theirs) <= d / 2 + 127 * (d * ROUNDING["float16"] + SUBNORMAL)).all()


SPEC = DecoderSpec(2, 64, 2, 1, 32, 96, 40, 128, 1e-5, (LayerSpec(),) * 2, qkv_bias=True, qk_norm=True, norm_offset=1.0)


class MixedWeights:
    """Random weights of SPEC; `formats` by the last part of a name, 8 bits for all others."""

    def __init__(self, formats: Mapping[str, Format]) -> None:
        self._formats, self.released = formats, 0

    def names(self) -> frozenset[str]:
        return frozenset(expected_shapes(SPEC))

    def shape(self, name: str) -> tuple[int, ...]:
        return expected_shapes(SPEC)[name]

    def tensor(self, name: str) -> NDArray[np.float32]:
        weight = np.random.default_rng([ord(letter) for letter in name]).standard_normal(self.shape(name)).astype(np.float32)
        weight.flags.writeable = False
        return weight

    def grouped(self, name: str) -> Grouped:
        weight = self.tensor(name)
        match self._formats.get(name.rsplit(".", 1)[-1], Format.Q8_BIAS):
            case Format.BF16:
                return bf16(weight)
            case Format.Q4_BIAS:
                raw = gguf.quants.quantize(weight, gguf.GGMLQuantizationType.Q4_0)
                return grouped(raw.ravel(), quants.Q4_0, (weight.shape[0], weight.shape[1]))
            case _:
                return int8(weight)

    def release(self) -> None:
        self.released += 1


def formats_of(found: Any, *names: str) -> list[Format]:
    return [found.linears[f"layers.1.{name}"].format for name in names]


def test_what_takes_the_same_activations_is_bfloat16_all_or_none():
    mixed = MixedWeights(
        {"v": Format.BF16, "gate": Format.BF16, "up": Format.Q4_BIAS, "down": Format.BF16, "q": Format.Q4_BIAS}
    )
    found = native_weights(mixed, SPEC, Layout.DOTS)
    assert formats_of(found, "q", "k", "v") == [Format.Q4_BIAS, Format.Q8_BIAS, Format.Q8_BIAS]
    assert formats_of(found, "gate", "up", "down") == [Format.Q8_BIAS, Format.Q4_BIAS, Format.BF16]
    gate, want = found.linears["layers.1.gate"], mixed.tensor("layers.1.gate")
    assert np.abs(unpack(gate) - want).max() <= np.abs(want).max() * (1 / 254 + 2**-8)
    alike = native_weights(MixedWeights(dict.fromkeys(("q", "k", "v", "gate", "up"), Format.BF16)), SPEC, Layout.DOTS)
    assert formats_of(alike, "q", "k", "v", "gate", "up") == [Format.BF16] * 5
    assert mixed.released == SPEC.n_layers, "a large file's pages are let go layer by layer"


def test_vectors_are_copied_as_they_multiply():
    weights = MixedWeights({})
    found = native_weights(weights, SPEC, Layout.DOTS)
    assert set(found.vectors) == {name for name, shape in expected_shapes(SPEC).items() if len(shape) == 1}
    np.testing.assert_array_equal(found.vectors["layers.0.q_bias"], weights.tensor("layers.0.q_bias"))
    for name in ("norm", "layers.0.attn_norm", "layers.1.k_norm"):
        np.testing.assert_array_equal(found.vectors[name], weights.tensor(name) + 1)
    assert all(v.flags.writeable and v.flags.c_contiguous for v in found.vectors.values())
    assert found.nbytes == sum(w.nbytes for w in found.linears.values()) + sum(v.nbytes for v in found.vectors.values())
    assert "head" not in found.linears


@pytest.mark.slow
@pytest.mark.parametrize("layout", Layout)
def test_a_real_file_means_the_same_in_both_layouts(layout, smollm2):
    """Rows of q and k are put in another order on both ways."""
    model = load_model(smollm2)
    found = native_weights(model.weights, model.config.decoder, layout)
    for name in ("embed", "layers.0.q", "layers.7.k", "layers.7.v", "layers.29.down"):
        ours, theirs = unpack(found.linears[name]), model.weights.tensor(name)
        assert np.abs(ours - theirs).max() <= np.abs(theirs).max() * 2**-7, name
