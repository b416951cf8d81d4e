"""The GPU's ceilings, and each kernel beside them and beside what torch has for the same work."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import triton

from ..kernels import reference
from ..kernels.spec import StepBatch
from ..kernels.triton import linear_w4, ops, sampling
from ..kernels.triton.attention_plan import plan_attention

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Bed:
    """Where and how things are timed. A smoke run has a CPU, float32 and tiny shapes."""

    smoke: bool

    @property
    def device(self) -> str:
        return "cpu" if self.smoke else "cuda"

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.smoke else torch.bfloat16

    def pick(self, real: int, tiny: int) -> int:
        """A size, as the run is."""
        return tiny if self.smoke else real

    def randn(self, *shape: int) -> torch.Tensor:
        """Normal numbers."""
        return torch.randn(*shape, device=self.device, dtype=self.dtype)

    def seconds(self, work: Callable[[], object]) -> float:
        """The median of repeated runs, caches emptied before each; of a smoke run, the only one."""
        if not self.smoke:
            found: Any = triton.testing.do_bench(work, warmup=10, rep=50, return_mode="median")
            return found / 1e3
        began = time.perf_counter()
        work()
        return time.perf_counter() - began


def machine(smoke: bool) -> list[Row]:
    """Copy bandwidth and dense bfloat16 products: what the rest is measured against."""
    bed = Bed(smoke)
    name = "cpu" if smoke else torch.cuda.get_device_name()
    versions: Row = {"gpu": name, "torch": torch.__version__, "triton": triton.__version__, "cuda": str(torch.version.cuda)}
    n = bed.pick(8192, 64)
    a, b = bed.randn(n, n), bed.randn(n, n)
    return [
        versions,
        {"copy TB/s": copy_bandwidth(bed) / 1e12},
        {"matmul": f"{n}^3 {bed.dtype}".replace("torch.", ""), "TFLOP/s": 2 * n**3 / bed.seconds(lambda: a @ b) / 1e12},
    ]


def copy_bandwidth(bed: Bed) -> float:
    """Bytes read and written a second by a large copy."""
    source = torch.empty(bed.pick(1 << 30, 1 << 16), dtype=torch.uint8, device=bed.device)
    target = torch.empty_like(source)
    return 2 * source.numel() / bed.seconds(lambda: target.copy_(source))


def kernels(smoke: bool) -> list[Row]:
    """Shapes of Llama-3.1-8B. `share`: of the copy bandwidth, counting only bytes that must move."""
    bed = Bed(smoke)
    torch.manual_seed(0)
    bandwidth = copy_bandwidth(bed)
    rows = [*_rowwise(bed), *_decode_attention(bed), _prefill_attention(bed), *_four_bits(bed), *_draws(bed)]
    for row in rows:
        if "bytes" in row:
            row["share"] = row.pop("bytes") / row["us"] * 1e6 / bandwidth
    return rows


def _compared(
    bed: Bed, name: str, ours: Callable[[], object], theirs: Callable[[], object], nbytes: float, error: float | None = None
) -> Row:
    row: Row = {"kernel": name, "us": bed.seconds(ours) * 1e6, "torch us": bed.seconds(theirs) * 1e6, "bytes": nbytes}
    return row if error is None else row | {"error, in roundings": error}


def _roundings(bed: Bed, ours: torch.Tensor, exact: torch.Tensor) -> float:
    scale = torch.finfo(bed.dtype).eps * float(exact.abs().max())
    return float((ours.float() - exact).abs().max()) / scale


def _rowwise(bed: Bed) -> list[Row]:
    tokens, hidden, wide = bed.pick(4096, 4), bed.pick(4096, 64), bed.pick(14336, 96)
    heads, n_kv, dim = bed.pick(32, 2), bed.pick(8, 1), bed.pick(128, 16)
    x, branch, w, gate_up = bed.randn(tokens, hidden), bed.randn(tokens, hidden), bed.randn(hidden), bed.randn(tokens, 2 * wide)
    item = x.element_size()
    qkv, pool = bed.randn(tokens, heads + 2 * n_kv, dim), bed.randn(tokens + 1, 2, n_kv, dim)
    slots, positions = torch.randperm(tokens, device=bed.device), torch.arange(tokens, device=bed.device)
    rope = ops.rope_tables(positions, dim, 5e5, 1.0, (), bed.dtype)
    theirs = reference.rope_tables(positions, dim, 5e5, 1.0, (), bed.dtype)
    norm = reference.rms_norm(x.float(), w.float(), 1e-5)
    act = reference.silu_mul(gate_up.float())
    return [
        _compared(
            bed, "rms_norm", lambda: ops.rms_norm(x, w, 1e-5), lambda: reference.rms_norm(x, w, 1e-5),
            2 * tokens * hidden * item, _roundings(bed, ops.rms_norm(x, w, 1e-5), norm),
        ),
        _compared(
            bed, "add_rms_norm", lambda: ops.add_rms_norm(x, branch, w, 1e-5),
            lambda: reference.add_rms_norm(x, branch, w, 1e-5), 4 * tokens * hidden * item,
        ),
        _compared(
            bed, "silu_mul", lambda: ops.silu_mul(gate_up), lambda: reference.silu_mul(gate_up),
            3 * tokens * wide * item, _roundings(bed, ops.silu_mul(gate_up), act),
        ),
        _compared(
            bed, "rotate_and_write", lambda: ops.rotate_and_write(qkv, None, 1e-5, rope, pool, slots),
            lambda: reference.rotate_and_write(qkv, None, 1e-5, theirs, pool, slots),
            2 * qkv.numel() * item + 2 * tokens * dim * 4,
        ),
    ]  # fmt: skip


def _lay_out(contexts: list[int], queries: int, page: int, seed: int = 0) -> StepBatch:
    """Rows of so many tokens, the last `queries` of each computed in this step, in scattered pages."""
    needed = [-(-context // page) for context in contexts]
    order = np.random.default_rng(seed).permutation(sum(needed)).astype(np.int32)
    tables = np.zeros((len(contexts), max(needed)), np.int32)
    for row, (end, n) in enumerate(zip(np.cumsum(needed), needed, strict=True)):
        tables[row, :n] = order[end - n : end]
    starts = (np.arange(len(contexts) + 1) * queries).astype(np.int32)
    lengths = np.array(contexts, np.int32)
    positions = (lengths[:, None] - queries + np.arange(queries)).ravel().astype(np.int32)
    none = np.zeros(0, np.int32)
    return StepBatch(
        tokens=np.zeros(starts[-1], np.int32), positions=positions, slots=np.zeros(starts[-1], np.int64), row_starts=starts,
        context_lens=lengths, page_tables=tables, logit_rows=none, full_logits=none.astype(np.bool_), page_size=page,
    )  # fmt: skip


def _pages(bed: Bed, batch: StepBatch, n_kv: int, dim: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A pool, and the same keys and values as torch likes them: [R, K, C, D] each, one row's tokens side by side."""
    n_pages = int(batch.page_tables.max()) + 1
    pool = bed.randn(n_pages * batch.page_size + 1, 2, n_kv, dim)
    table = torch.from_numpy(batch.page_tables).long().to(bed.device)
    slots = (table[..., None] * batch.page_size + torch.arange(batch.page_size, device=bed.device)).flatten(1)
    kv = pool[slots[:, : int(batch.context_lens.max())]]
    return pool, kv[:, :, 0].transpose(1, 2).contiguous(), kv[:, :, 1].transpose(1, 2).contiguous()


def _decode_attention(bed: Bed) -> list[Row]:
    heads, n_kv, dim = bed.pick(32, 4), bed.pick(8, 2), bed.pick(128, 16)
    rows = []
    for n, context in ((bed.pick(1, 1), bed.pick(32768, 600)), (bed.pick(64, 2), bed.pick(4096, 40))):
        batch = _lay_out([context] * n, 1, 32)
        pool, k, v = _pages(bed, batch, n_kv, dim)
        q = bed.randn(n, heads, dim)
        plan, scale = plan_attention(batch, 0, pool), dim**-0.5
        exact = F.scaled_dot_product_attention(q[:, :, None].float(), k.float(), v.float(), scale=scale, enable_gqa=True)

        def ours(q: Any = q, pool: Any = pool, plan: Any = plan, scale: float = scale) -> torch.Tensor:
            return ops.paged_attention(q, pool, plan, scale)

        def theirs(q: Any = q, k: Any = k, v: Any = v, scale: float = scale) -> torch.Tensor:
            return F.scaled_dot_product_attention(q[:, :, None], k, v, scale=scale, enable_gqa=True)

        error = _roundings(bed, ours(), exact.flatten(1))
        name = f"decode attention, {n} x {context} (torch: SDPA, not paged)"
        rows.append(_compared(bed, name, ours, theirs, 2 * k.numel() * k.element_size(), error))
    return rows


def _prefill_attention(bed: Bed) -> Row:
    heads, n_kv, dim, n = bed.pick(32, 4), bed.pick(8, 2), bed.pick(128, 16), bed.pick(8192, 40)
    batch = _lay_out([n], n, 32)
    pool, k, v = _pages(bed, batch, n_kv, dim)
    q, plan, scale = bed.randn(n, heads, dim), plan_attention(batch, 0, pool), dim**-0.5
    standing = q.transpose(0, 1)[None].contiguous()

    def theirs() -> torch.Tensor:
        return F.scaled_dot_product_attention(standing, k, v, is_causal=True, scale=scale, enable_gqa=True)

    error = _roundings(bed, ops.paged_attention(q, pool, plan, scale), theirs()[0].transpose(0, 1).flatten(1).float())
    row = _compared(bed, f"prefill attention, {n} (torch: SDPA)", lambda: ops.paged_attention(q, pool, plan, scale), theirs, 0)
    flops = 4 * heads * dim * n * n / 2
    del row["bytes"]
    return row | {"TFLOP/s": flops / row["us"] / 1e6, "error, in roundings": error}


def _four_bits(bed: Bed) -> list[Row]:
    n_out, n_in = bed.pick(28672, 64), bed.pick(4096, 64)
    codes = torch.randint(0, 256, (n_out, n_in // 2), dtype=torch.uint8, device=bed.device)
    scales = torch.rand(n_out, n_in // 32, device=bed.device).half() * 0.01
    packed = linear_w4.Packed4(codes, scales, scales * -8)
    dense = linear_w4.unpack(packed, bed.dtype)
    rows = []
    for n in (1, 16, 64):
        x = bed.randn(n, n_in)
        nbytes = packed.nbytes + (n * n_in + n * n_out) * x.element_size()
        error = _roundings(bed, linear_w4.linear(x, packed), x.float() @ dense.float().T)

        def ours(x: torch.Tensor = x) -> torch.Tensor:
            return linear_w4.linear(x, packed)

        def theirs(x: torch.Tensor = x) -> torch.Tensor:
            return F.linear(x, dense)

        rows.append(_compared(bed, f"4-bit linear, {n} rows (torch: dense)", ours, theirs, nbytes, error))
    return rows


def _draws(bed: Bed) -> list[Row]:
    rows, vocab = bed.pick(256, 2), bed.pick(128256, 100)
    logits = torch.randn(rows, vocab, device=bed.device) * 3
    ones = torch.ones(rows, device=bed.device)
    u = sampling.uniforms(torch.arange(rows, device=bed.device), torch.arange(rows, device=bed.device, dtype=torch.int32))

    def sorting() -> torch.Tensor:
        top, ids = torch.softmax(logits, -1).sort(-1, descending=True)
        top = top.masked_fill(top.cumsum(-1) - top > 0.9, 0.0)
        top[:, 50:] = 0
        return ids.gather(1, torch.multinomial(top, 1))

    kinds = {
        "the best": (ones * 0, 0, 1.0, lambda: logits.argmax(-1)),
        "temperature": (ones, 0, 1.0, lambda: torch.multinomial(torch.softmax(logits, -1), 1)),
        "top_k 50, top_p 0.9": (ones, 50, 0.9, sorting),
    }
    found = []
    for name, (temperature, top_k, top_p, theirs) in kinds.items():
        k, p = torch.full((rows,), top_k, dtype=torch.int32, device=bed.device), ones * top_p

        def ours(temperature: Any = temperature, k: Any = k, p: Any = p) -> object:
            return sampling.sample(logits, temperature, k, p, ones * 0, u)

        found.append(_compared(bed, f"draw, {rows} rows: {name}", ours, theirs, logits.numel() * 4))
    return found
