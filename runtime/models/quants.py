"""GGUF's block formats to float32, vectorised.

A tensor's rows are cut into blocks of 32 (or 256, the K formats) neighbouring weights with shared scales. Layouts are those of
ggml's block structures (ggml-common.h); every formula here is checked against gguf-py in the tests.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[Any]  # uint8; numpy's stubs lose the type in shifts with a plain int
Floats = NDArray[Any]  # float32

F32, F16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 = 0, 1, 2, 3, 6, 7, 8
Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, BF16 = 10, 11, 12, 13, 14, 30
# type -> (weights in a block, bytes of a block)
BLOCKS: dict[int, tuple[int, int]] = {
    F32: (1, 4),
    F16: (1, 2),
    BF16: (1, 2),
    Q4_0: (32, 18),
    Q4_1: (32, 20),
    Q5_0: (32, 22),
    Q5_1: (32, 24),
    Q8_0: (32, 34),
    Q2_K: (256, 84),
    Q3_K: (256, 110),
    Q4_K: (256, 144),
    Q5_K: (256, 176),
    Q6_K: (256, 210),
}
AT_ONCE = 1 << 16  # blocks unpacked at a time: bounds the temporaries to some tens of MB


def dequantize(raw: Bytes, ggml_type: int, shape: tuple[int, ...]) -> Floats:
    """The weights of `raw` [nbytes] as a new float32 array of `shape`. `ggml_type` is one of BLOCKS."""
    if ggml_type == F32:
        return raw.view(np.float32).reshape(shape).copy()
    if ggml_type == F16:
        return raw.view(np.float16).astype(np.float32).reshape(shape)
    if ggml_type == BF16:
        return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(shape)
    size, nbytes = BLOCKS[ggml_type]
    blocks = raw.reshape(-1, nbytes)
    out = np.empty((len(blocks), size), np.float32)
    for at in range(0, len(blocks), AT_ONCE):
        out[at : at + AT_ONCE] = UNPACK[ggml_type](blocks[at : at + AT_ONCE])
    return out.reshape(shape)


# ---------------------------------------------------------------------------------- blocks [n, nbytes] to [n, 32 or 256]


def _half(blocks: Bytes, at: int) -> Floats:
    """The float16 at byte `at` of each block, [n, 1]."""
    return blocks[:, at : at + 2].copy().view(np.float16).astype(np.float32)


def _nibbles(packed: Bytes) -> Bytes:
    """[n, k] bytes to [n, 2k] values: all low halves, then all high ones."""
    return np.concatenate((packed & 15, packed >> 4), 1)


def _fifth_bits(blocks: Bytes, at: int) -> Bytes:
    """The 32 bits at byte `at` as 0 or 16, [n, 32]."""
    return np.unpackbits(blocks[:, at : at + 4], axis=1, bitorder="little") << 4


def _q4_0(b: Bytes) -> Floats:
    return _half(b, 0) * (_nibbles(b[:, 2:]).astype(np.float32) - 8)


def _q4_1(b: Bytes) -> Floats:
    return _half(b, 0) * _nibbles(b[:, 4:]).astype(np.float32) + _half(b, 2)


def _q5_0(b: Bytes) -> Floats:
    return _half(b, 0) * ((_nibbles(b[:, 6:]) | _fifth_bits(b, 2)).astype(np.float32) - 16)


def _q5_1(b: Bytes) -> Floats:
    return _half(b, 0) * (_nibbles(b[:, 8:]) | _fifth_bits(b, 4)).astype(np.float32) + _half(b, 2)


def _q8_0(b: Bytes) -> Floats:
    return _half(b, 0) * b[:, 2:].view(np.int8).astype(np.float32)


def _two_bits(packed: Bytes) -> Bytes:
    """[n, 64] bytes to [n, 16 groups, 16]: each half of 32 bytes holds four runs of 32 values, lowest bits first."""
    shifts = np.array([0, 2, 4, 6], np.uint8)[:, None]
    return ((packed.reshape(-1, 2, 1, 32) >> shifts) & 3).reshape(-1, 16, 16)


def _q2_k(b: Bytes) -> Floats:
    scales, low = b[:, :16], _two_bits(b[:, 16:80]).astype(np.float32)
    d, dmin = _half(b, 80) * (scales & 15), _half(b, 82) * (scales >> 4)
    return (d[:, :, None] * low - dmin[:, :, None]).reshape(-1, 256)


def _q3_k(b: Bytes) -> Floats:
    high = np.unpackbits(b[:, :32, None], axis=2, bitorder="little").transpose(0, 2, 1).reshape(-1, 16, 16)
    values = _two_bits(b[:, 32:96]).astype(np.int8) - ((1 - high) << 2).astype(np.int8)
    packed = b[:, 96:108]
    shifts = np.array([0, 2, 4, 6], np.uint8)[:, None]
    top = ((packed[:, None, 8:] >> shifts) & 3).reshape(-1, 16) << 4
    scales = (_nibbles(packed[:, :8]) | top).astype(np.float32) - 32
    return ((_half(b, 108) * scales)[:, :, None] * values.astype(np.float32)).reshape(-1, 256)


def _scales_and_mins(packed: Bytes) -> tuple[Bytes, Bytes]:
    """The 8 scales and 8 minima of 6 bits each in 12 bytes, [n, 8] each."""
    a, b, c = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate((a & 63, (c & 15) | ((a >> 6) << 4)), 1)
    mins = np.concatenate((b & 63, (c >> 4) | ((b >> 6) << 4)), 1)
    return scales, mins


def k_scales(raw: Bytes, ggml_type: int) -> tuple[Floats, Floats]:
    """d and m [n blocks, 8] float32 of Q4_K or Q5_K: a weight of group g is d[g] * code + m[g]."""
    b = raw.reshape(-1, BLOCKS[ggml_type][1])
    scales, mins = _scales_and_mins(b[:, 4:16])
    return _half(b, 0) * scales, -_half(b, 2) * mins


def k_codes(raw: Bytes, ggml_type: int) -> Bytes:
    """The codes [n blocks, 8 groups, 32] of Q4_K or Q5_K."""
    b = raw.reshape(-1, BLOCKS[ggml_type][1])
    if ggml_type == Q4_K:
        return _nibble_runs(b[:, 16:])
    fifth = np.unpackbits(b[:, 16:48, None], axis=2, bitorder="little").transpose(0, 2, 1) << 4
    return _nibble_runs(b[:, 48:]) | fifth


def _with_mins(b: Bytes, ggml_type: int) -> Floats:
    d, m = k_scales(b, ggml_type)
    return (d[:, :, None] * k_codes(b, ggml_type).astype(np.float32) + m[:, :, None]).reshape(-1, 256)


def _nibble_runs(packed: Bytes) -> Bytes:
    """[n, 128] bytes to [n, 8, 32]: each 32 bytes hold one run in their low halves and the next in their high ones."""
    return _nibbles(packed.reshape(-1, 32)).reshape(-1, 8, 32)


def _q4_k(b: Bytes) -> Floats:
    return _with_mins(b, Q4_K)


def _q5_k(b: Bytes) -> Floats:
    return _with_mins(b, Q5_K)


def _q6_k(b: Bytes) -> Floats:
    low = _nibbles(b[:, :128].reshape(-1, 64)).reshape(-1, 2, 4, 32)
    shifts = np.array([0, 2, 4, 6], np.uint8)[:, None]
    high = (b[:, 128:192].reshape(-1, 2, 1, 32) >> shifts) & 3
    values = (low | (high << 4)).astype(np.float32).reshape(-1, 16, 16) - 32
    scales = _half(b, 208) * b[:, 192:208].view(np.int8).astype(np.float32)
    return (scales[:, :, None] * values).reshape(-1, 256)


UNPACK: dict[int, Callable[[Bytes], Floats]] = {
    Q4_0: _q4_0,
    Q4_1: _q4_1,
    Q5_0: _q5_0,
    Q5_1: _q5_1,
    Q8_0: _q8_0,
    Q2_K: _q2_k,
    Q3_K: _q3_k,
    Q4_K: _q4_k,
    Q5_K: _q5_k,
    Q6_K: _q6_k,
}
