"""GGUF blocks to the groups of 32 that the native kernels compute with, without a detour over floats where the format allows.

Exact: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, BF16; Q4_K and Q5_K but for their scales, which become float16 products. The others (Q2_K,
Q3_K, Q6_K: scales of 16) are rounded to 8 bits, F16 and F32 to bfloat16.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...kernels.cpu.pack import GROUP, Grouped, bf16, int8
from .quants import BF16, F16, F32, Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, Q8_0, dequantize, k_codes, k_scales

Bytes = NDArray[Any]
LEGACY = {Q4_0: 18, Q4_1: 20, Q5_0: 22, Q5_1: 24, Q8_0: 34}  # bytes of a block of 32


def grouped(raw: Bytes, ggml_type: int, shape: tuple[int, int]) -> Grouped:
    """The weight of `raw` [nbytes], [out, in] = `shape`; in must be a multiple of 32."""
    if ggml_type in LEGACY:
        return _legacy(raw.reshape(shape[0], -1, LEGACY[ggml_type]), ggml_type)
    if ggml_type in (Q4_K, Q5_K):
        return _k_quant(raw, ggml_type, shape)
    if ggml_type == BF16:
        return Grouped(raw.view(np.uint16).reshape(shape[0], -1, GROUP))
    weight = dequantize(raw, ggml_type, shape)
    return bf16(weight) if ggml_type in (F16, F32) else int8(weight)


def _legacy(blocks: Bytes, ggml_type: int) -> Grouped:
    """[out, G, bytes]."""
    d = _half(blocks, 0)
    if ggml_type == Q4_0:
        return Grouped(blocks[..., 2:], d)
    if ggml_type == Q4_1:
        return Grouped(blocks[..., 4:], d, _half(blocks, 2))
    if ggml_type == Q8_0:
        return Grouped(blocks[..., 2:] ^ 0x80, d)  # a signed byte + 128
    at = 2 if ggml_type == Q5_0 else 4
    low, high = blocks[..., at + 4 :], np.unpackbits(blocks[..., at : at + 4], axis=-1, bitorder="little") << 4
    codes = np.concatenate((low & 15, low >> 4), -1) | high
    return Grouped(codes + (128 - 16), d) if ggml_type == Q5_0 else Grouped(codes, d, _half(blocks, 2))


def _k_quant(raw: Bytes, ggml_type: int, shape: tuple[int, int]) -> Grouped:
    codes = k_codes(raw, ggml_type).reshape(shape[0], -1, GROUP)
    d, m = (part.reshape(shape[0], -1).astype(np.float16) for part in k_scales(raw, ggml_type))
    if ggml_type == Q4_K:
        codes = codes[..., :16] | codes[..., 16:] << 4
    return Grouped(codes, d, m)


def _half(blocks: Bytes, at: int) -> NDArray[np.float16]:
    return np.ascontiguousarray(blocks[..., at : at + 2]).view(np.float16)[..., 0]
