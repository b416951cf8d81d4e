"""Linear weights as the native kernels want them (ops.h's Format): panels of 16 outputs, groups of 32 inputs.

A weight is d * (code - bias) + m in one of four formats, or bfloat16: whatever is nearest to what its file holds.
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
    """In which order a panel's codes lie: for dot products, or for tiles (ops.h)."""

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
    """A weight in the kernels' layout: flat `codes` (uint8) and `scales` (float16; empty for bfloat16), 64-byte aligned."""

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
    """Into panels; outputs are filled up with zeros to a whole panel."""
    rows, cols = weight.shape
    codes = _to_tiles(weight) if layout == Layout.TILES else _panels(weight.codes.view(np.uint32))
    scales = [_panels(part[..., None]) for part in (weight.d, weight.m) if part is not None]
    both = np.stack(scales, 2).reshape(-1) if scales else np.empty(0, np.float16)
    return Packed(weight.format, rows, cols, _aligned(codes.reshape(-1).view(np.uint8)), _aligned(both), layout)


def unpack(weight: Packed) -> Array:
    """The weight as float32 [out, in]: what was packed, for tests and for the reference."""
    groups, panels = weight.cols // GROUP, -(-weight.rows // PANEL)
    if weight.layout == Layout.TILES:
        codes = _from_tiles(weight)[: weight.rows]
    else:
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


def _to_tiles(weight: Grouped) -> Array:
    """Codes [panel, G, 16 outputs, ...] in the order of Layout.TILES."""
    split = _split(weight.codes)
    panels, _, groups, n = split.shape
    if weight.format == Format.BF16:
        halves = split.reshape(panels, PANEL, groups, 2, GROUP // 2)
        return np.ascontiguousarray(halves.transpose(0, 2, 1, 4, 3))
    if n == GROUP:
        return np.ascontiguousarray(split.transpose(0, 2, 1, 3))
    # A byte (inputs i and i + 16) of each of four outputs become four bytes: i of two outputs and of two, then i + 16.
    four = split.reshape(panels, 4, 4, groups, n).transpose(2, 0, 3, 1, 4)
    out = np.empty((panels, groups, 4, n, 4), np.uint8)
    for pair in (0, 1):
        even, odd = four[2 * pair], four[2 * pair + 1]
        out[..., pair] = (even & 15) | (odd << 4)
        out[..., 2 + pair] = (even >> 4) | (odd & 0xF0)
    return out


def _from_tiles(weight: Packed) -> Array:
    """As Grouped.codes [out, G, ...], with whole panels."""
    groups, panels = weight.cols // GROUP, -(-weight.rows // PANEL)
    if weight.format == Format.BF16:
        pairs = weight.codes.view(np.uint16).reshape(panels, groups, PANEL, GROUP // 2, 2)
        return np.ascontiguousarray(pairs.transpose(0, 2, 1, 4, 3)).reshape(panels * PANEL, groups, GROUP)
    if weight.format in (Format.Q8_MIN, Format.Q8_BIAS):
        lanes = weight.codes.reshape(panels, groups, PANEL, GROUP).transpose(0, 2, 1, 3)
        return np.ascontiguousarray(lanes).reshape(panels * PANEL, groups, GROUP)
    packed = weight.codes.reshape(panels, groups, 4, GROUP // 2, 4).transpose(0, 2, 1, 3, 4)
    out = np.empty((panels, 4, 4, groups, GROUP // 2), np.uint8)
    for pair in (0, 1):
        low, high = packed[..., pair], packed[..., 2 + pair]
        out[:, :, 2 * pair] = (low & 15) | (high << 4)
        out[:, :, 2 * pair + 1] = (low >> 4) | (high & 0xF0)
    return out.reshape(panels * PANEL, groups, GROUP // 2)


def _aligned(array: Array) -> Array:
    """A copy that begins at a multiple of 64 bytes."""
    room = np.empty(array.nbytes + 64, np.uint8)
    start = -room.ctypes.data % 64
    out = room[start : start + array.nbytes].view(array.dtype)
    out[...] = array
    return out
