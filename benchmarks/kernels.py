"""`baseload bench kernels`: the native kernels beside the machine's own ceilings, measured in the same run.

Two ceilings: bytes read from memory in a second by all threads, and operations in a second with nothing to load: integer dot
products, or bfloat16 tiles where the machine has them. A product of M rows does 2 * M operations for each weight and reads
each weight once, so it cannot take less time than the larger of the two allows; its share of that is what a kernel is judged
by. Then the parts of a whole decoder step.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from ..kernels.cpu import library as native
from ..kernels.cpu.pack import Format, Grouped, Layout, Packed, bf16, int8, pack
from ..kernels.cpu.step import NativeStep, layout_of
from ..kernels.dispatch import n_threads
from ..kernels.spec import StepBatch
from ..runtime.models.model_file import load_model
from ..runtime.models.native_weights import native_weights
from .command import run_command
from .machine import describe, versions

SHAPE = (8192, 2048)
COPIES = 8  # of each weight, taken in turn, so that it comes from memory and not from a cache
ROWS = (1, 2, 4, 8, 16, 32, 64)
REPEATS, SECONDS = 7, 0.15
READ_BYTES = 1 << 28
BATCHES = ((1, 160), (8, 160), (32, 160), (1, 4000))  # decode rows, tokens that each sees
CHUNK = 512


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What this machine can do with all threads: measured, not declared."""

    read_bytes_per_s: float
    operations_per_s: float
    kind: str  # int8, or bfloat16 where the machine has tiles

    def seconds(self, nbytes: int, operations: int) -> float:
        """The least time that these allow."""
        return max(nbytes / self.read_bytes_per_s, operations / self.operations_per_s)


@dataclass(frozen=True, slots=True)
class Line:
    """One product: its time, and what that is in bytes and operations."""

    format: str
    rows: int
    seconds: float
    nbytes: int
    operations: int
    least_s: float

    @property
    def share(self) -> float:
        """Of what the ceilings allow."""
        return self.least_s / self.seconds


def best_of(work: Callable[[], object], repeats: int = REPEATS) -> float:
    """Seconds of the fastest run, after one to warm up; short work is repeated within a run."""
    work()
    start = time.perf_counter()
    work()
    n = max(1, int(SECONDS / max(1e-9, time.perf_counter() - start)))

    def run() -> float:
        start = time.perf_counter()
        for _ in range(n):
            work()
        return (time.perf_counter() - start) / n

    return min(run() for _ in range(repeats))


def ceilings(pool: native.Pool, isa: str) -> Ceilings:
    """Measured on `pool`."""
    lib, memory = native.library(), np.ones(READ_BYTES + 64, np.uint8)
    start = memory.ctypes.data + -memory.ctypes.data % 64
    reading = best_of(lambda: lib.bl_read_bytes(pool.handle, start, READ_BYTES))
    rounds = 200_000
    operations = lib.bl_products(pool.handle, isa.encode(), rounds)
    computing = best_of(lambda: lib.bl_products(pool.handle, isa.encode(), rounds))
    kind = "bfloat16" if layout_of(isa) == Layout.TILES else "int8"
    return Ceilings(READ_BYTES / reading, operations / computing, kind)


def weights(layout: Layout) -> dict[str, list[Packed]]:
    """COPIES of each format, random."""
    rng, (out, cols) = np.random.default_rng(0), SHAPE
    codes = rng.integers(0, 256, (out, cols // 32, 16), np.uint8)
    d, m = rng.random((2, out, cols // 32), np.float32).astype(np.float16)
    dense = rng.standard_normal(SHAPE, np.float32)
    made = {"4-bit": Grouped(codes, d, m), "8-bit": int8(dense), "bf16": bf16(dense)}
    return {name: [pack(weight, layout) for _ in range(COPIES)] for name, weight in made.items()}


def linear(pool: native.Pool, isa: str, copies: Sequence[Packed], rows: int) -> float:
    """Seconds of one product of `rows` rows, quantisation of the activations included."""
    lib, weight = native.library(), copies[0]
    x = np.random.default_rng(1).standard_normal((rows, weight.cols), np.float32)
    out = np.empty((rows, weight.rows), np.float32)
    to, source = out.ctypes.data, x.ctypes.data
    descs = (native.Weight * len(copies))(
        *(native.Weight(w.codes.ctypes.data, w.scales.ctypes.data, int(w.format), w.rows, w.cols) for w in copies)
    )

    def each() -> None:
        lib.bl_linear(pool.handle, isa.encode(), ctypes.addressof(descs), len(copies), source, rows, 0, to)

    return best_of(each) / len(copies)


def lines(pool: native.Pool, isa: str, limits: Ceilings) -> list[Line]:
    """Every format and height."""
    found = []
    for name, copies in weights(layout_of(isa)).items():
        nbytes = copies[0].nbytes
        for rows in ROWS:
            operations = 2 * rows * SHAPE[0] * SHAPE[1]
            # Without tiles, whose ceiling is one of bfloat16, a product in that costs as much as two in 8 bits.
            is_dear = copies[0].format == Format.BF16 and layout_of(isa) == Layout.DOTS
            counted = 2 * operations if is_dear else operations
            took = linear(pool, isa, copies, rows)
            found.append(Line(name, rows, took, nbytes, operations, limits.seconds(nbytes, counted)))
    return found


def decode_batch(rows: int, context: int, page_size: int) -> StepBatch:
    """`rows` sequences that take one more token each, after `context` tokens; each on pages of its own."""
    per_row = context // page_size + 1
    tables = np.arange(rows * per_row, dtype=np.int32).reshape(rows, per_row)
    ones = np.ones(rows, np.int32)
    slots = tables[:, context // page_size].astype(np.int64) * page_size + context % page_size
    starts = np.arange(rows + 1, dtype=np.int32)
    return StepBatch(5 * ones, context * ones, slots, starts, (context + 1) * ones, tables, starts[:-1], ones < 0, page_size)


def prefill_batch(tokens: int, page_size: int) -> StepBatch:
    """The first `tokens` tokens of one sequence."""
    positions = np.arange(tokens, dtype=np.int32)
    table = np.arange(-(-tokens // page_size), dtype=np.int32)[None]
    ends = np.array([0, tokens], np.int32)
    last = np.array([tokens - 1], np.int32)
    return StepBatch(positions + 5, positions, positions.astype(np.int64), ends, ends[1:], table, last, last < 0, page_size)


def parts(pool: native.Pool, isa: str, path: Path) -> dict[str, dict[str, float]]:
    """Milliseconds of each part of a step of the model at `path`, by what the step does."""
    model = load_model(path)
    spec, size = model.config.decoder, 32
    longest = max(rows * (context // size + 1) for rows, context in BATCHES)
    step = NativeStep(spec, native_weights(model.weights, spec, layout_of(isa)), longest, size, 8192, pool, isa)
    batches = {f"decode {rows} x {context}": decode_batch(rows, context, size) for rows, context in BATCHES}
    batches[f"prefill {CHUNK}"] = prefill_batch(CHUNK, size)
    found = {}
    for name, batch in batches.items():
        step.run(batch)
        before, start, n = step.times(), time.perf_counter(), 0
        while time.perf_counter() - start < 4 * SECONDS:
            step.run(batch)
            n += 1
        found[name] = {part: (seconds - before[part]) / n * 1e3 for part, seconds in step.times().items()}
    return found


def draw(found: Sequence[Line], limits: Ceilings, to: Path) -> None:
    """The roofline: operations a second over operations a byte, each product a point."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5))
    xs = np.geomspace(1, 1000, 200)
    roof = np.minimum(xs * limits.read_bytes_per_s, limits.operations_per_s) / 1e9
    axes.loglog(xs, roof, color="0.4", label="ceiling, measured")
    for name in dict.fromkeys(line.format for line in found):
        mine = [line for line in found if line.format == name]
        axes.loglog(
            [line.operations / line.nbytes for line in mine],
            [line.operations / line.seconds / 1e9 for line in mine],
            marker="o",
            label=name,
        )
    axes.set_xlabel("operations per byte of weights")
    axes.set_ylabel("10^9 operations per second")
    axes.legend()
    axes.grid(True, which="both", alpha=0.2)
    figure.savefig(to, dpi=120)


def show(found: Sequence[Line], limits: Ceilings, steps: dict[str, dict[str, float]], console: Console) -> None:
    """The tables."""
    read, operations = limits.read_bytes_per_s / 1e9, limits.operations_per_s / 1e9
    console.print(f"ceilings: {read:.1f} GB/s read, {operations:,.0f} x 10^9 {limits.kind} operations/s")
    table = Table("weights", "rows", "ms", "GB/s", "GOP/s", "share of the ceiling", title=f"linear {SHAPE[0]} x {SHAPE[1]}")
    for line in found:
        rates = f"{line.nbytes / line.seconds / 1e9:.1f}", f"{line.operations / line.seconds / 1e9:,.0f}"
        table.add_row(line.format, str(line.rows), f"{line.seconds * 1e3:.2f}", *rates, f"{line.share:.0%}")
    console.print(table)
    if steps:
        names = list(next(iter(steps.values())))
        table = Table("step, ms", *names, "sum", title="parts of a step")
        for what, took in steps.items():
            table.add_row(what, *(f"{took[name]:.2f}" for name in names), f"{sum(took.values()):.2f}")
        console.print(table)


def command(
    model: Annotated[Path | None, typer.Option(help="A model file, to take its step apart.")] = None,
    isa: Annotated[str, typer.Option(help="Instruction set; the machine's best if empty.")] = "",
    threads: Annotated[int, typer.Option(min=0, help="0: one for each core.")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json")] = None,
    png: Annotated[Path | None, typer.Option(help="Write the roofline as a picture.")] = None,
) -> None:
    """Time the native kernels beside this machine's measured ceilings."""
    isa = isa or native.instruction_sets()[0]
    pool = native.Pool(n_threads(threads))
    limits = ceilings(pool, isa)
    found = lines(pool, isa, limits)
    steps = parts(pool, isa, model) if model else {}
    console = Console(highlight=False, width=120)
    console.print(f"{describe()['cpu']}, {pool.n_threads} threads, {isa}")
    show(found, limits, steps, console)
    if json_file:
        whole = {"machine": describe(), "versions": versions(), "isa": isa, "ceilings": asdict(limits)}
        whole |= {"linear": [asdict(line) for line in found], "steps_ms": steps}
        json_file.write_text(json.dumps(whole, indent=1), "utf-8")
    if png:
        draw(found, limits, png)


def main(words: Sequence[str] | None = None) -> int:
    """See run_command."""
    return run_command(command, "kernels", words)


if __name__ == "__main__":
    sys.exit(main())
