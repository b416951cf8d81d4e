"""Compile every kernel for an H100 on a machine without a GPU, by the launches themselves; prints what each needs.

Run by test_compiles.py in a process of its own: Triton interprets or compiles, as it was imported.
"""

import time
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction


class Absent:
    """A driver for a GPU that is not there."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


absent: Any = Absent()
driver.set_active(absent)
launch = JITFunction.run
hashes: set[str] = set()


def compile_only(self: Any, *args: Any, grid: Any, warmup: bool = False, **options: Any) -> Any:
    began = time.perf_counter()
    compiled: Any = launch(self, *args, grid=grid, warmup=True, **options)
    print(f"{self.__name__} {compiled.metadata.shared} bytes shared, {time.perf_counter() - began:.1f} s", flush=True)
    hashes.add(compiled.hash)
    return compiled


JITFunction.run = compile_only

from baseload.kernels.triton import linear_w4, linear_w8, lora, ops, sampling, shaping  # noqa: E402
from baseload.kernels.triton.attention_plan import DevicePlan, Launch  # noqa: E402


def zeros(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
    return torch.zeros(*shape, dtype=dtype)


def main() -> None:
    dtype = torch.bfloat16
    for heads, n_kv, dim, hidden in ((32, 8, 128, 4096), (9, 3, 64, 576)):
        x, w = zeros(2, hidden, dtype=dtype), zeros(hidden, dtype=dtype)
        ops.rms_norm(x, w, 1e-5)
        ops.add_rms_norm(x, x, w, 1e-5)
        ops.silu_mul(x)
        ops.gelu_tanh_mul(x)
        pool, rope = zeros(64, 2, n_kv, dim, dtype=dtype), ops.rope_tables(zeros(2), dim, 1e4, 1.0, (), dtype)
        for norms in (None, (w[:dim], w[:dim])):
            q = ops.rotate_and_write(zeros(2, heads + 2 * n_kv, dim, dtype=dtype), norms, 1e-6, rope, pool, zeros(2))
        for window, cap in ((0, 0.0), (512, 30.0)):
            launches = Launch(zeros(1), 1, 256), Launch(zeros(1), 1, 8192), Launch(zeros(1), 100, 8192)
            plan = DevicePlan(zeros(2), zeros(1), zeros(1, 4), 16, window, launches)
            ops.paged_attention(q, pool, plan, 0.1, cap)
    known = len(hashes)
    for queries, width in ((2, 1), (99, 5), (1000, 16), (2048, 64)):  # chunks and tables as they come
        plan = DevicePlan(zeros(2), zeros(1), zeros(1, width), 16, 512, (Launch(zeros(1), queries, 8192),))
        ops.paged_attention(q, pool, plan, 0.1, 30.0)
    assert len(hashes) == known, "a step's sizes must not compile anything anew"
    packed = linear_w4.Packed4(
        zeros(256, 128, dtype=torch.uint8), zeros(256, 8, dtype=torch.float16), zeros(256, 8, dtype=torch.float16)
    )
    for rows in (1, 32, 64):
        linear_w4.linear(zeros(rows, 256, dtype=dtype), packed)
    linear_w4.unpack(packed, dtype)
    x, eight = zeros(3, 256, dtype=dtype), zeros(64, 256, dtype=torch.int8)
    linear_w8.linear(x, linear_w8.Packed8(eight, zeros(64, dtype=torch.float32)))
    a, b = zeros(1, 16, 256, dtype=dtype), zeros(1, 256, 16, dtype=dtype)
    lora.add_adapters(x, x, a, b, zeros(1, dtype=torch.float32), zeros(3))
    logits, floats = zeros(2, 128256, dtype=torch.float32), zeros(2, dtype=torch.float32)
    sampling.sample(logits, floats, zeros(2), floats, floats, sampling.uniforms(zeros(2, dtype=torch.int64), zeros(2)))
    shaping.mask(logits, zeros(1, 4008), zeros(2))
    shaping.change(logits, shaping.Changes(zeros(3), zeros(2), floats, floats))


main()
