"""Linear weights as the native kernels want them (ops.h's Format): panels of 16 outputs, groups of 32 inputs.

A weight is d * (code - bias) + m in one of four formats, or bfloat16: whatever is nearest to what its file holds. For tiles the
scales of an output's groups become integers too: all its weights are then 16-bit integers times one float32.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

PANEL, GROUP = 16, 32
Array = NDArray[Any]


class Format(IntEnum):
    """ops.h's Format."""

    Q4_MIN = 0
    Q4_BIAS = 1
    Q8_MIN = 2
    Q8_BIAS = 3
    BF16 = 4


class Layout(IntEnum):
    """In which order a panel's codes lie, and with which scales: for dot products, or for tiles (ops.h)."""

    DOTS = 0
    TILES = 1


@dataclass(frozen=True, slots=True)
class Grouped:
    """A weight [out, in] in groups of 32 inputs, G = in / 32, row after row.

    `codes` [out, G, 16] uint8 for 4 bits (byte e holds input e low and input e + 16 high), [out, G, 32] uint8 for 8 bits,
    [out, G, 32] uint16 for bfloat16's bits. `d` and `m` [out, G] float16; `m` None: the format with a bias (8, or 128).
    """

    codes: Array
    d: Array | None = None
    m: Array | None = None

    @property
    def format(self) -> Format:
        """Which of the five it is."""
        if self.d is None:
            return Format.BF16
        if self.codes.shape[-1] == GROUP // 2:
            return Format.Q4_BIAS if self.m is None else Format.Q4_MIN
        return Format.Q8_BIAS if self.m is None else Format.Q8_MIN

    @property
    def shape(self) -> tuple[int, int]:
        """[out, in]."""
        return self.codes.shape[0], self.codes.shape[1] * GROUP

    def rows(self, index: Array) -> "Grouped":
        """The same weight with its outputs in another order."""
        return Grouped(self.codes[index], *(None if part is None else part[index] for part in (self.d, self.m)))


@dataclass(frozen=True, slots=True)
class Packed:
    """A weight in the kernels' layout: flat `codes` (uint8) and `scales` (float16, or float32 for tiles; empty for bfloat16),
    64-byte aligned."""

    format: Format
    rows: int
    cols: int
    codes: Array
    scales: Array
    layout: Layout

    @property
    def nbytes(self) -> int:
        """Of codes and scales."""
        return self.codes.nbytes + self.scales.nbytes


def bf16(weight: Array) -> Grouped:
    """float32 [out, in] rounded to bfloat16 (to even)."""
    bits = np.ascontiguousarray(weight, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return Grouped(rounded.astype(np.uint16).reshape(len(weight), -1, GROUP))


def int8(weight: Array) -> Grouped:
    """float32 [out, in] to 8 bits with a scale for each 32: an error of at most scale / 2 an element."""
    groups = np.asarray(weight, np.float32).reshape(len(weight), -1, GROUP)
    d = (np.abs(groups).max(-1) / 127).astype(np.float16)
    scale = d.astype(np.float32)[..., None]
    codes = np.rint(np.divide(groups, scale, out=np.zeros_like(groups), where=scale > 0)).clip(-127, 127)
    return Grouped((codes + 128).astype(np.uint8), d)


def pack(weight: Grouped, layout: Layout) -> Packed:
    """Into panels; outputs are filled up with zeros to a whole panel, and for tiles inputs to two groups.

    For tiles: an error of at most 6 / 32512 of the output's largest magnitude an element with 4 bits, 3 / 32512 with 8.
    """
    rows, cols = weight.shape
    if layout == Layout.TILES and weight.d is not None:
        codes, scales = _small_tiles(weight) if weight.codes.shape[-1] < GROUP else _byte_tiles(weight)
        return Packed(weight.format, rows, cols, _aligned(codes.reshape(-1)), _aligned(scales), layout)
    codes = _panels(weight.codes.view(np.uint32))
    parts = [_panels(part[..., None]) for part in (weight.d, weight.m) if part is not None]
    both = np.stack(parts, 2).reshape(-1) if parts else np.empty(0, np.float16)
    return Packed(weight.format, rows, cols, _aligned(codes.reshape(-1).view(np.uint8)), _aligned(both), layout)


def unpack(weight: Packed) -> Array:
    """The weight as float32 [out, in]: what was packed, for tests and for the reference."""
    groups, panels = weight.cols // GROUP, -(-weight.rows // PANEL)
    if weight.layout == Layout.TILES and weight.format != Format.BF16:
        return tile_integers(weight) * (weight.scales[: weight.rows, None] * np.float32(2**-8))
    lanes = weight.codes.view(np.uint32).reshape(panels, groups, -1, PANEL).transpose(0, 3, 1, 2)
    codes = np.ascontiguousarray(lanes).reshape(panels * PANEL, groups, -1)[: weight.rows]
    if weight.format == Format.BF16:
        return (codes.view(np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(weight.rows, weight.cols)
    values = codes.view(np.uint8)
    if weight.format in (Format.Q4_MIN, Format.Q4_BIAS):
        values = np.concatenate((values & 15, values >> 4), -1)
    scales = weight.scales.reshape(panels, groups, -1, PANEL).transpose(0, 3, 1, 2).reshape(panels * PANEL, groups, -1)
    d = scales[: weight.rows, :, 0].astype(np.float32)[..., None]
    if weight.format in (Format.Q4_MIN, Format.Q8_MIN):
        out = d * values + scales[: weight.rows, :, 1].astype(np.float32)[..., None]
    else:
        out = d * (values.astype(np.float32) - (8 if weight.format == Format.Q4_BIAS else 128))
    return out.reshape(weight.rows, weight.cols).astype(np.float32)


def _split(parts: Array) -> Array:
    """[out, G, n] to [panel, 16, G, n]."""
    short = -len(parts) % PANEL
    if short:
        parts = np.concatenate((parts, np.zeros((short, *parts.shape[1:]), parts.dtype)))
    return parts.reshape(-1, PANEL, *parts.shape[1:])


def _panels(parts: Array) -> Array:
    """[out, G, n] to [panel, G, n, 16]."""
    return np.ascontiguousarray(_split(parts).transpose(0, 2, 3, 1))


# --- for tiles -----------------------------------------------------------------------------------------------------------

LARGEST = 32512  # of an output's integers: 127 * 256, so that the high byte can be rounded


def _small_tiles(weight: Grouped) -> tuple[Array, Array]:
    """4 bits: an integer is code * D + M."""
    assert weight.d is not None
    low, high = weight.codes & 15, weight.codes >> 4
    d = weight.d.astype(np.float64)
    m = -8 * d if weight.m is None else weight.m.astype(np.float64)
    least, most = np.minimum(low, high).min(-1), np.maximum(low, high).max(-1)
    step = _step(np.maximum(np.abs(d * least + m), np.abs(d * most + m)).max(-1) / LARGEST)
    big_d = np.rint(d / step)
    scales = [big_d]
    if weight.m is not None:
        scales.append(np.rint(m / step + 7.5 * (d / step - big_d)) + 128)
    # Input 8 i + 4 row + 2 h + b of a group of 32 lies in 16-bit word h of dword i, nibble 2 row + b.
    whole = np.stack((low, high), 2).reshape(*low.shape[:2], 4, 2, 2, 2)
    codes = (whole[..., 0] | whole[..., 1] << 4).swapaxes(-1, -2).reshape(*low.shape[:2], 4, 4)
    return _records(codes, scales), _whole_panels(step * 256)


def _byte_tiles(weight: Grouped) -> tuple[Array, Array]:
    """8 bits: an integer is round(code * D / 128) + M. Codes become signed and, where a group's are small, larger."""
    assert weight.d is not None
    d, bias = weight.d.astype(np.float64), 128
    if weight.m is not None and weight.codes.max(initial=0) < 32:
        bias = 16
    codes = weight.codes.astype(np.int16) - bias
    most, least = codes.max(-1), codes.min(-1)
    room = np.minimum(127 // np.maximum(most, 1), 128 // np.maximum(-least, 1))
    larger = np.where((most > 0) | (least < 0), 1 << np.log2(room).astype(np.int16), 0)
    d = d / np.maximum(larger, 1) * (larger > 0)
    codes, most, least = codes * larger[..., None].astype(np.int16), most * larger, least * larger
    m = np.zeros_like(d) if weight.m is None else weight.m.astype(np.float64) + bias * weight.d.astype(np.float64)
    peak = np.maximum(np.abs(d * least + m), np.abs(d * most + m)).max(-1)
    step = _step(np.maximum(peak / LARGEST, np.abs(d).max(-1) * (128 / 32767)))
    scales = [np.rint(d / step * 128)]
    if weight.m is not None:
        scales.append(np.rint(m / step) + 128)
    return _records(codes.astype(np.int8).view(np.uint8).reshape(*d.shape, 8, 4), scales), _whole_panels(step * 256)


def _step(step: Array) -> Array:
    """[out, 1], never 0, as float32 has it."""
    return np.where(step > 0, np.maximum(step, 2.0**-100), 1.0).astype(np.float32).astype(np.float64)[:, None]


def _whole_panels(step: Array) -> Array:
    return _split(step.astype(np.float32)).reshape(-1)


def _records(codes: Array, scales: list[Array]) -> Array:
    """Codes [out, G, dwords, 4] and each scale [out, G] as ops.h has them: [panel, G / 2, bytes]."""
    whole = -(-codes.shape[1] // 2)
    short = 2 * whole - codes.shape[1]
    # Modulo 2^16, in which the kernel computes. A group of nothing: D = 0 and M = 128, which stands for 0.
    numbers = np.stack([part.astype(np.int64).astype(np.uint16) for part in scales], -1)
    if short:
        codes = np.concatenate((codes, np.zeros((len(codes), 1, *codes.shape[2:]), codes.dtype)), 1)
        nothing = np.broadcast_to(np.array([0, 128], np.uint16)[: len(scales)], (len(codes), 1, len(scales)))
        numbers = np.concatenate((numbers, nothing), 1)
    lanes = _split(codes).transpose(0, 2, 3, 1, 4).reshape(-1, whole, 2 * codes.shape[2] * 4 * PANEL)
    beside = np.ascontiguousarray(_split(numbers).transpose(0, 2, 3, 1)).reshape(len(lanes), whole, -1).view(np.uint8)
    return np.concatenate((beside, lanes), -1)


def tile_integers(weight: Packed) -> Array:
    """What a weight for tiles is made of: int32 [out, in]; `scales` / 256 is what one of them stands for."""
    small, has_m = weight.format in (Format.Q4_MIN, Format.Q4_BIAS), weight.format in (Format.Q4_MIN, Format.Q8_MIN)
    panels, whole = -(-weight.rows // PANEL), -(-weight.cols // (2 * GROUP))
    n_scales = 2 if has_m else 1
    records = weight.codes.reshape(panels, whole, -1)
    at = 2 * n_scales * PANEL * 2
    numbers = np.ascontiguousarray(records[..., :at]).view(np.int16).reshape(panels, whole * 2, n_scales, PANEL)
    numbers = numbers.transpose(0, 3, 1, 2).reshape(panels * PANEL, whole * 2, n_scales).astype(np.int32)
    lanes = records[..., at:].reshape(panels, whole * 2, -1, PANEL, 4).transpose(0, 3, 1, 2, 4)
    codes = np.ascontiguousarray(lanes).reshape(panels * PANEL, whole * 2, -1)
    d = numbers[..., :1]
    if small:
        parts = codes.reshape(*codes.shape[:2], 4, 2, 2).swapaxes(-1, -2)  # [.., i, row, h]
        u = np.stack((parts & 15, parts >> 4), -1).reshape(*codes.shape[:2], GROUP).astype(np.int32)
        m = numbers[..., 1:] - 128 if has_m else -8 * d
        values = (u * d + m).astype(np.int16).astype(np.int32)
    else:
        c = codes.view(np.int8).astype(np.int32)
        values = (c * 256 * d + 0x4000 >> 15) + (numbers[..., 1:] - 128 if has_m else 0)
        values = values.astype(np.int16).astype(np.int32)
    return values.reshape(panels * PANEL, -1)[: weight.rows, : weight.cols]


def _aligned(array: Array) -> Array:
    """A copy that begins at a multiple of 64 bytes."""
    room = np.empty(array.nbytes + 64, np.uint8)
    start = -room.ctypes.data % 64
    out = room[start : start + array.nbytes].view(array.dtype)
    out[...] = array
    return out
