"""Linear weights by themselves: packing, and products with quantised activations within a derived error bound.

Sums within a group of 32 are exact. What is rounded are products with scales and the sum over groups: at most one rounding (of
2^-24) of a partial sum for each group and term, and a few of each term; partial sums are no larger than the sum of magnitudes.
"""

import ctypes
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from baseload.kernels.cpu import library as native
from baseload.kernels.cpu.library import instruction_sets
from baseload.kernels.cpu.pack import GROUP, Format, Grouped, Layout, Packed, bf16, int8, pack, tile_integers, unpack
from baseload.kernels.cpu.step import layout_of
from baseload.kernels.rounded import low_byte, quantise_bytes, quantise_coarse, quantise_fine, quantise_row, to_bf16

ISAS = instruction_sets()
ROUNDING = 2.0**-23
TINY = 1e-30  # inputs as small as this may count as zeros
DOUBTFUL = 2.0**-13  # so near to half a step, a fused product rounds otherwise than one in two roundings
COARSE, FINE, BYTES = PRECISIONS = 0, 1, 3  # ops.h's Precision; without tiles, bytes are coarse
INTEGER = [f for f in Format if f != Format.BF16]


def linear(
    pool: native.Pool, isa: str, grouped: Grouped, x: NDArray[np.float32], precision: int = COARSE
) -> NDArray[np.float32]:
    """x [M, in] times the weight, transposed: [M, out]."""
    x, weight = np.ascontiguousarray(x), pack(grouped, layout_of(isa))
    out = np.full((len(x), -(-weight.rows // 16) * 16), 7, np.float32)
    w = native.Weight(weight.codes.ctypes.data, weight.scales.ctypes.data, int(weight.format), weight.rows, weight.cols)
    library = native.library()
    assert (
        library.bl_linear(pool.handle, isa.encode(), ctypes.addressof(w), 1, x.ctypes.data, len(x), precision, out.ctypes.data)
        == 0
    )
    return out[:, : weight.rows]


def unpacked(weight: Grouped) -> NDArray[np.float32]:
    return unpack(pack(weight, Layout.DOTS))


def bits(x: NDArray[np.float32]) -> NDArray[np.uint32]:
    return np.ascontiguousarray(x).view(np.uint32)


# --- packing -------------------------------------------------------------------------------------------------------------


def meant(weight: Grouped) -> tuple[NDArray, NDArray, NDArray]:
    """Codes less their bias [out, G, 32], d and m [out, G, 1], in float64: the weight is d * code + m."""
    if weight.d is None:
        values = (weight.codes.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
        return values, np.ones((*values.shape[:2], 1)), np.zeros((*values.shape[:2], 1))
    small = weight.codes.shape[-1] == GROUP // 2
    codes = np.concatenate((weight.codes & 15, weight.codes >> 4), -1) if small else weight.codes
    bias = 0 if weight.m is not None else 8 if small else 128
    m = np.zeros_like(weight.d) if weight.m is None else weight.m
    return codes.astype(np.float64) - bias, weight.d.astype(np.float64)[..., None], m.astype(np.float64)[..., None]


@given(st.sampled_from(Format), st.sampled_from(Layout), st.integers(1, 70), st.integers(1, 9), st.integers(0, 1 << 30))
@settings(max_examples=200, deadline=None)
def test_what_is_packed_is_unpacked(kit, format, layout, rows, groups, seed):
    weight = kit.grouped(format, rows, 32 * groups, np.random.default_rng(seed))
    packed = pack(weight, layout)
    assert packed.format == weight.format == format and (packed.rows, packed.cols) == weight.shape == (rows, 32 * groups)
    assert all(part.ctypes.data % 64 == 0 for part in (packed.codes, packed.scales) if part.size)
    codes, d, m = meant(weight)
    exact = (d * codes + m).reshape(rows, -1)
    magnitude = (np.abs(d * codes) + np.abs(m)).reshape(rows, -1)
    if layout == Layout.TILES and format != Format.BF16:
        least = 2.0**-100 * 32512  # what reaches no further may count as nothing
        units = 6 if format in (Format.Q4_MIN, Format.Q4_BIAS) else 3
        assert (np.abs(unpack(packed) - exact) <= units / 32512 * np.abs(exact).max(1, keepdims=True) + least).all()
        return
    assert (np.abs(unpack(packed) - exact) <= ROUNDING * magnitude).all()
    if format in (Format.Q4_BIAS, Format.Q8_BIAS, Format.BF16):
        np.testing.assert_array_equal(unpack(packed), exact.astype(np.float32))


def test_outputs_in_another_order(kit):
    for format in Format:
        weight, order = kit.grouped(format, 20, 64, np.random.default_rng(0)), np.random.default_rng(1).permutation(20)
        np.testing.assert_array_equal(unpacked(weight.rows(order)), unpacked(weight)[order])


@given(st.integers(0, 1 << 30), st.sampled_from([1e-6, 1.0, 1e4]))
@settings(max_examples=50, deadline=None)
def test_floats_become_the_nearest_of_their_format(seed, size):
    x = (np.random.default_rng(seed).standard_normal((5, 64)) * size).astype(np.float32)
    x[0, :32] = 0
    np.testing.assert_array_equal(unpacked(bf16(x)), to_bf16(torch.from_numpy(x)).numpy())
    d = int8(x).d
    assert d is not None
    scale = np.repeat(d.astype(np.float32), 32, 1)
    # The scale is itself rounded to float16, by 2^-11 or (subnormal) 2^-25: at the end of 127 steps that is as much more.
    slack = 127 * np.maximum(scale * 2.0**-11, 2.0**-25)
    assert (np.abs(unpacked(int8(x)) - x) <= scale / 2 + slack).all()


# --- products ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Exact:
    """The product in float64, and by how much float32 may miss it."""

    value: NDArray[np.float64]  # [M, out]
    bound: NDArray[np.float64]


def exact_product(weight: Grouped, x: NDArray[np.float32], isa: str, precision: int) -> Exact:
    codes, d, m = meant(weight)
    n_groups = codes.shape[1]
    given = torch.from_numpy(x)
    if weight.d is None:
        rounded, w = to_bf16(given).double().numpy(), unpacked(weight).astype(np.float64)
        return Exact(rounded @ w.T, (x.shape[1] + 1) * (ROUNDING * (np.abs(rounded) @ np.abs(w).T) + TINY))
    if layout_of(isa) == Layout.TILES:
        return exact_tiles(pack(weight, Layout.TILES), given, precision)
    integers, step = (part.double().numpy() for part in (quantise_fine if precision == FINE else quantise_coarse)(given))
    dots = np.matmul(integers.transpose(1, 0, 2), codes.transpose(1, 2, 0)) * d.transpose(1, 2, 0)  # [G, M, out]
    minima = integers.sum(-1, keepdims=True).transpose(1, 0, 2) * m.transpose(1, 2, 0)
    steps = step.transpose(1, 0, 2)
    bound = (n_groups + 3) * ROUNDING * (steps * (np.abs(dots) + np.abs(minima))).sum(0)
    if precision != FINE:
        quotient = np.divide(x.reshape(integers.shape).astype(np.float64), step, out=np.zeros_like(integers), where=step > 0)
        off = np.where(np.abs(np.abs(quotient % 1) - 0.5) < DOUBTFUL, step, 0).reshape(x.shape)
        bound += off @ np.abs(d * codes + m).reshape(len(codes), -1).T
    size = (np.abs(d * codes) + np.abs(m)).sum((1, 2))
    return Exact((steps * (dots + minima)).sum(0), bound + TINY * size)


def exact_tiles(weight: Packed, x: torch.Tensor, precision: int) -> Exact:
    """Sums of integers are exact; then both are rounded to float32, added, and twice multiplied by a scale."""
    integers, step = (part.double() for part in (quantise_bytes if precision == BYTES else quantise_row)(x))
    w, scale = torch.from_numpy(tile_integers(weight)).double(), torch.from_numpy(weight.scales[: weight.rows]).double() / 256
    if precision == BYTES:
        integers = integers * 256
        step = step / 256
    a_low, w_low = low_byte(integers), low_byte(w)
    high, low = (integers - a_low) @ (w - w_low).T, a_low @ (w - w_low).T
    if precision == FINE:
        low += (integers - a_low) @ w_low.T
    return Exact((step * (high + low) * scale).numpy(), (4 * ROUNDING * step * (high.abs() + low.abs()) * scale + TINY).numpy())


KINDS = ("normal", "zeros", "huge", "small", "tiny", "outlier", "negative", "far from zero", "sparse")


def activations(kind: str, shape: tuple[int, int], rng: np.random.Generator) -> NDArray[np.float32]:
    x = rng.standard_normal(shape)
    match kind:
        case "zeros":
            x *= 0
        case "huge":
            x *= 1e30
        case "small":
            x *= 1e-20
        case "tiny":
            x *= 1e-38
        case "outlier":
            x[np.arange(len(x)), rng.integers(0, shape[1], len(x))] *= 1e5
        case "negative":
            x = -np.abs(x)
        case "far from zero":
            x += 50
        case "sparse":
            x *= rng.random(shape) < 0.05
    return x.astype(np.float32)


def rows_of_kinds(shape: tuple[int, int], rng: np.random.Generator) -> NDArray[np.float32]:
    """Every row of one kind or another."""
    return np.concatenate([activations(rng.choice(KINDS), (1, shape[1]), rng) for _ in range(shape[0])])


def any_weight(kit, format: Format, rows: int, cols: int, rng: np.random.Generator) -> Grouped:
    """Signs of all kinds; some scales are zero, large, or too small for a normal float16."""
    weight = kit.grouped(format, rows, cols, rng)
    factors = rng.choice([1, -1, 0, 100, 1e-4], weight.codes.shape[:2], p=[0.4, 0.4, 0.05, 0.05, 0.1]).astype(np.float16)
    if weight.d is None:
        return weight
    return Grouped(weight.codes, weight.d * factors, None if weight.m is None else weight.m * factors)


@given(
    st.sampled_from(Format),
    st.sampled_from(PRECISIONS),
    st.integers(1, 70),
    st.integers(1, 70),
    st.integers(1, 72),
    st.integers(0, 1 << 30),
)
@settings(max_examples=200, deadline=None)
def test_products_keep_their_bound(kit, threads, format, precision, m, n, groups, seed):
    rng = np.random.default_rng(seed)
    weight, x = any_weight(kit, format, n, 32 * groups, rng), rows_of_kinds((m, 32 * groups), rng)
    for isa in ISAS:
        exact = exact_product(weight, x, isa, precision)
        error = np.abs(linear(threads, isa, weight, x, precision) - exact.value)
        worst = np.unravel_index((error - exact.bound).argmax(), error.shape)
        assert (error <= exact.bound).all(), (isa, worst, error[worst], exact.bound[worst], exact.value[worst])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("format", Format)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_codes_and_activations_at_their_ends(kit, threads, isa, format, precision):
    """The largest integers that there can be, of either sign: no sum of them runs over."""
    rng, cols = np.random.default_rng(0), 2304
    base = kit.grouped(format, 32, cols, rng)
    codes = np.where(np.arange(32)[:, None, None] % 2, np.iinfo(base.codes.dtype).max, 0).astype(base.codes.dtype)
    full = base if base.d is None else Grouped(np.broadcast_to(codes, base.codes.shape).copy(), base.d, base.m)
    x = np.ones((9, cols), np.float32)
    x[1::2] = -1
    x[2::3, ::2] *= -1
    exact = exact_product(full, x, isa, precision)
    assert (np.abs(linear(threads, isa, full, x, precision) - exact.value) <= exact.bound).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("format", Format)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_broken_number_breaks_its_own_row_only(kit, threads, isa, format, precision):
    rng = np.random.default_rng(1)
    weight = kit.grouped(format, 40, 96, rng)
    for rows in (1, 3, 7, 33):
        x = rng.standard_normal((rows, 96)).astype(np.float32)
        healthy = linear(threads, isa, weight, x, precision)
        for value in (np.nan, np.inf, -np.inf):
            for column in (0, 15, 16, 31, 70, 95):
                broken, hit = x.copy(), int(rng.integers(rows))
                broken[hit, column] = value
                found = linear(threads, isa, weight, broken, precision)
                assert not np.isfinite(found[hit]).any(), (value, column, hit)
                np.testing.assert_array_equal(bits(np.delete(found, hit, 0)), bits(np.delete(healthy, hit, 0)))


# --- bits ----------------------------------------------------------------------------------------------------------------


# precision of inputs, rows, outputs, groups of inputs, seed
SIZES = (st.sampled_from(PRECISIONS), st.integers(1, 70), st.integers(1, 40), st.integers(1, 60), st.integers(0, 1 << 30))


@given(st.sampled_from(Format), *SIZES)
@settings(max_examples=150, deadline=None)
def test_a_row_has_the_same_bits_in_any_company(kit, threads, format, precision, m, n, groups, seed):
    rng = np.random.default_rng(seed)
    weight, x = any_weight(kit, format, n, 32 * groups, rng), rows_of_kinds((m, 32 * groups), rng)
    order, some = rng.permutation(m), int(rng.integers(1, m + 1))
    for isa in ISAS:
        together = bits(linear(threads, isa, weight, x, precision))
        np.testing.assert_array_equal(bits(linear(threads, isa, weight, x[order][:some], precision)), together[order][:some])
        for r in order[:3]:
            np.testing.assert_array_equal(bits(linear(threads, isa, weight, x[r : r + 1], precision))[0], together[r])


FUSED = [isa for isa in ISAS if isa != "portable" and layout_of(isa) == Layout.DOTS]


@pytest.mark.skipif(len(FUSED) < 2, reason="one instruction set with fused products, or none")
@given(st.sampled_from(INTEGER), *SIZES)
@settings(max_examples=150, deadline=None)
def test_instruction_sets_with_fused_products_give_the_same_bits(kit, threads, format, precision, m, n, groups, seed):
    """Vectors of 512 bits and of 256: the same integers, and the same roundings of them."""
    rng = np.random.default_rng(seed)
    weight, x = any_weight(kit, format, n, 32 * groups, rng), rows_of_kinds((m, 32 * groups), rng)
    first, *others = (bits(linear(threads, isa, weight, x, precision)) for isa in FUSED)
    for other in others:
        np.testing.assert_array_equal(other, first)


@given(st.integers(0, 1 << 30), st.sampled_from([1, 2, 3, 4]))
@settings(max_examples=30, deadline=None)
def test_threads_change_no_bit(kit, threads, seed, n_threads):
    rng = np.random.default_rng(seed)
    weight, x = kit.grouped(Format.Q4_MIN, 500, 128, rng), rows_of_kinds((17, 128), rng)
    pool = native.Pool(n_threads)
    try:
        for isa in ISAS:
            np.testing.assert_array_equal(bits(linear(pool, isa, weight, x)), bits(linear(threads, isa, weight, x)))
    finally:
        pool.close()


def test_an_unknown_instruction_set_is_refused(kit, threads):
    weight, x = kit.grouped(Format.Q4_MIN, 16, 32, np.random.default_rng(0)), np.ones((1, 32), np.float32)
    with pytest.raises(AssertionError):
        linear(threads, "abacus", weight, x)
