"""`baseload bench hardware`: what a box can do and what that costs, as one report to set beside other boxes'.

The machine's ceilings and the kernels beside them (benchmarks/kernels.py), the engine's reading and writing by batch and
context (benchmarks/engine_speed.py), and from these, with a hardware profile, dollars for a million tokens at each utilisation
beside dated list prices (benchmarks/utilisation.py).
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean, median
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ..kernels.cpu import library as native
from ..kernels.cpu.library import NativeUnavailable
from ..kernels.dispatch import n_threads
from ..ledger.machine_cost import Figure as Known
from ..ledger.machine_cost import Hardware, load, usd_per_hour
from ..ledger.meters import Meter, find
from ..runtime.engine import EngineConfig
from ..runtime.loading import LoadOptions
from ..runtime.store import Store, default_root
from . import kernels
from .command import run_command
from .engine_speed import Cell, Joules, measure_all
from .figures import Figure, interval
from .hardware_page import page
from .machine import NOISY_HOST, describe, versions
from .report_file import save
from .utilisation import Cost, Mix, Retail, beside, cost

SCHEMA = "baseload.bench.hardware/1"
CONVERSATION = "1020:129"  # median lengths of Azure's conversation trace of 2023


@dataclass(frozen=True, slots=True)
class Priced:
    """The money part: of which rates it is made, and how well its inputs are known."""

    mix: Mix
    cell: str  # whose rates
    usd_per_hour: Known
    watts: Known
    own: Cost
    joules_per_output_token: float  # all of the machine's power over the write rate
    retail: list[Retail]
    unpriced: list[str]


@dataclass(frozen=True, slots=True)
class Report:
    """One box."""

    command: str
    created: str  # ISO 8601, UTC
    versions: dict[str, str]
    machine: dict[str, Any]
    model: dict[str, Any]
    engine: dict[str, Any]
    ceilings: dict[str, Any] | None  # None where the native kernels do not run
    linear: list[dict[str, Any]]
    steps_ms: dict[str, dict[str, float]]
    cells: list[Cell]
    left_out: list[str]  # cells that do not fit into the KV cache or the context
    priced: Priced | None  # None without a profile whose power is known
    flags: list[str] = field(default_factory=list)

    @property
    def figures(self) -> list[Figure]:
        """What it claims, for `bench diff`."""
        found = [
            Figure(f"{name}: {what}", "tokens/s", "more", tuple(values))
            for name in dict.fromkeys(cell.name for cell in self.cells)
            for what, values in (
                ("read", [cell.read_tokens_per_s for cell in self.cells if cell.name == name]),
                ("write", [cell.write_tokens_per_s for cell in self.cells if cell.name == name]),
            )
        ]
        if self.ceilings:
            found.append(Figure("ceiling: read", "bytes/s", "more", (self.ceilings["read_bytes_per_s"],)))
            found.append(Figure("ceiling: operations", "1/s", "more", (self.ceilings["operations_per_s"],)))
        if self.priced:
            full = self.priced.own.usd_per_mtok["1.0"]
            found.append(Figure("a million tokens, fully used", "USD", "less", (full,)))
        return found

    def value(self) -> dict[str, Any]:
        """The report as JSON's types."""
        figures = [{**asdict(one), "interval": asdict(one.interval) if one.interval else None} for one in self.figures]
        cells = [{**asdict(cell), "name": cell.name, "flags": cell.flags} for cell in self.cells]
        whole = {"schema": SCHEMA, **asdict(self), "cells": cells, "figures": figures}
        return json.loads(json.dumps(whole, default=str, allow_nan=False))


def best(cells: Sequence[Cell], input_tokens: int) -> tuple[str, float, float]:
    """The cell that writes most, of those whose context is the shortest that holds the input, else the longest measured: its
    name, read and write rate, medians."""
    contexts = {cell.context for cell in cells}
    nearest = min((context for context in contexts if context >= input_tokens), default=max(contexts))
    rates = {
        name: [median(values) for values in zip(*pairs, strict=True)]
        for name in {cell.name for cell in cells if cell.context == nearest}
        if (pairs := [(c.read_tokens_per_s, c.write_tokens_per_s) for c in cells if c.name == name])
    }
    name = max(rates, key=lambda one: rates[one][1])
    return name, rates[name][0], rates[name][1]


def priced(cells: Sequence[Cell], profile: Hardware, mix: Mix, names: Sequence[str]) -> Priced | None:
    """None where the machine's power is unknown: its hours then have no price, and are not taken as cheap. Power is what meters
    told in the cell whose rates are used, else the profile's."""
    name, read, write = best(cells, mix.input_tokens)
    told = [cell.watts for cell in cells if cell.name == name and cell.watts is not None]
    watts = (
        Known(fmean(told), "measured", "the machine's meters") if told else Known(profile.watts, profile.known, profile.source)
    )
    hour = usd_per_hour(profile, watts)
    if hour.value is None or watts.value is None:
        return None
    own = cost(mix, hour.value, read, write)
    retail, unpriced = beside(mix, own, names)
    return Priced(mix, name, hour, watts, own, watts.value / write, retail, unpriced)


def metered(found: Sequence[Meter]) -> Joules:
    """What the meters have counted since they were opened, together; None where one of them has no counter, or is gone."""

    def joules() -> float | None:
        try:
            told = [meter.read().joules for meter in found]
        except OSError:
            return None
        known = [one for one in told if one is not None]
        return sum(known) if known and len(known) == len(told) else None

    return joules


def doubts(cells: Sequence[Cell]) -> list[str]:
    """The cells' flags, in a line where they are many."""
    said = [f"{cell.name}, run {cell.repeat}: {flag}" for cell in cells for flag in cell.flags]
    noisy = [cell.others_cpu for cell in cells if cell.others_cpu is not None and cell.others_cpu > NOISY_HOST]
    if len(noisy) < 3:
        return said
    spread = f"{min(noisy):.0%} to {max(noisy):.0%}"
    quiet = [line for line in said if "the host is noisy" not in line]
    return [*quiet, f"the host is noisy: other processes used {spread} of its cores in {len(noisy)} of {len(cells)} runs"]


def kernel_part(path: Path | None, isa: str, threads: int) -> tuple[dict[str, Any] | None, list[dict[str, Any]], Any]:
    """Ceilings, products and the parts of a step; (None, [], {}) where the native kernels do not run."""
    try:
        isa = isa or native.instruction_sets()[0]
        pool = native.Pool(n_threads(threads))
    except NativeUnavailable:
        return None, [], {}
    try:
        limits = kernels.ceilings(pool, isa)
        linear = [{**asdict(line), "share": line.share} for line in kernels.lines(pool, isa, limits)]
        steps = kernels.parts(pool, isa, path) if path and path.is_file() else {}
    finally:
        pool.close()
    return {**asdict(limits), "isa": isa}, linear, steps


def show(report: Report, console: Console) -> None:
    """The tables."""
    if report.ceilings:
        read, operations = report.ceilings["read_bytes_per_s"] / 1e9, report.ceilings["operations_per_s"] / 1e9
        console.print(f"ceilings: {read:.1f} GB/s read, {operations:,.0f} x 10^9 {report.ceilings['kind']} operations/s")
    table = Table("batch x context", "read, tokens/s", "95%", "write, tokens/s", "95%", "write, for each", box=None)
    for name in dict.fromkeys(cell.name for cell in report.cells):
        mine = [cell for cell in report.cells if cell.name == name]
        shown = []
        for values in ([c.read_tokens_per_s for c in mine], [c.write_tokens_per_s for c in mine]):
            found = interval(values)
            shown += [f"{fmean(values):,.0f}", f"{found.low:,.0f} to {found.high:,.0f}" if found else "too few runs"]
        table.add_row(name, *shown, f"{fmean(c.write_tokens_per_s for c in mine) / mine[0].batch:,.1f}")
    console.print(table)
    if report.left_out:
        console.print(f"Not measured, since they do not fit: {', '.join(report.left_out)}.")
    if report.priced:
        _show_money(report.priced, console)
    for flag in report.flags:
        console.print(f"{flag}.")


def _show_money(money: Priced, console: Console) -> None:
    hour, mix = money.usd_per_hour, money.mix
    console.print(
        f"{hour.value:.4f} USD an hour ({hour.known}: {hour.source}); {money.watts.value:g} W ({money.watts.known}), "
        f"{money.joules_per_output_token:.2f} J for an output token at {money.cell}"
    )
    table = Table("utilisation", *(f"{float(u):.0%}" for u in money.own.usd_per_mtok), box=None)
    table.add_row("USD for 10^6 tokens", *(f"{usd:.3f}" for usd in money.own.usd_per_mtok.values()))
    console.print(table)
    for one in money.retail:
        crossing = (
            f"from {one.break_even:.0%} on"
            if one.break_even <= 1
            else "never: it would take " + f"{one.break_even:.1f} hours an hour"
        )
        console.print(f"{one.name}: {one.usd_per_mtok:.3f} USD ({one.source}, {one.looked_up}); this box is cheaper {crossing}")
    for name in money.unpriced:
        console.print(f"{name}: unpriced")
    console.print(
        f"Of {mix.input_tokens} tokens in and {mix.output_tokens} out, none cached; another model is not the same answer."
    )


def numbers(text: str, name: str) -> tuple[int, ...]:
    """`1,8,32`. Raises typer's error."""
    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or min(found) < 1:
        raise typer.BadParameter(f"{text!r} is not a list of positive whole numbers", param_hint=name)
    return found


def command(
    context: typer.Context,
    model: Annotated[str, typer.Option(help="A model's name, or a file.")] = "smollm2-135m-instruct",
    profile: Annotated[Path | None, typer.Option(help="A hardware profile, as in configs/hardware, for dollars.")] = None,
    batches: Annotated[str, typer.Option(help="Sequences at once; a list.")] = "1,4,16,32",
    contexts: Annotated[str, typer.Option(help="Tokens of each prompt; a list.")] = "128,1024,4096",
    repeats: Annotated[int, typer.Option(min=1, help="Of each cell, in turns; an interval wants 3.")] = 3,
    mix: Annotated[str, typer.Option(help="The priced request: tokens in:out.")] = CONVERSATION,
    retail: Annotated[
        str, typer.Option(help="supplier/model to price beside; a list.")
    ] = "openai/gpt-5-nano,openai/gpt-4o-mini",
    kv_memory_mb: Annotated[int, typer.Option(min=16, help="KV cache.")] = 1024,
    threads: Annotated[int, typer.Option(min=0, help="0: one for each core.")] = 0,
    isa: Annotated[str, typer.Option(help="Instruction set; the machine's best if empty.")] = "",
    with_kernels: Annotated[bool, typer.Option("--kernels/--no-kernels", help="Ceilings and products too.")] = True,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the report as JSON.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write it as one web page.")] = None,
) -> None:
    """Measure this machine: ceilings, kernels, tokens a second, and what a million of them cost."""
    sizes, lengths = numbers(batches, "--batches"), numbers(contexts, "--contexts")
    asked = numbers(mix.replace(":", ","), "--mix")
    if len(asked) != 2:
        raise typer.BadParameter("tokens in:out", param_hint="--mix")
    try:
        hardware = load(profile) if profile else None
        path = Store(default_root()).resolve(model)
    except (ValueError, OSError) as error:
        raise typer.BadParameter(str(error)) from error
    progress = Console(stderr=True, highlight=False, markup=False)
    ceilings, linear, steps = kernel_part(path, isa, threads) if with_kernels else (None, [], {})
    config = EngineConfig(max_batch=max(64, *sizes))
    options = LoadOptions(config, kv_memory_mb, threads, isa=isa or "auto")
    cells, left_out, opened = measure_all(
        path,
        options,
        sizes,
        lengths,
        repeats,
        lambda c: progress.print(f"{c.name}: {c.read_tokens_per_s:,.0f} read, {c.write_tokens_per_s:,.0f} written a second"),
        metered(find()),
    )
    if not cells:
        raise typer.BadParameter("nothing fits into the KV cache", param_hint="--contexts")
    money = priced(cells, hardware, Mix(*asked), [name for name in retail.split(",") if name]) if hardware else None
    flags = doubts(cells)
    if money is None:
        flags.append(
            "no dollars and no joules: " + ("the profile's power is unknown" if hardware else "no --profile was given")
        )
    spec = opened.model.config
    report = Report(
        command=shlex.join(context.obj or ()),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=versions(),
        machine=describe(),
        model={"name": model, "family": spec.family, "digest": opened.model.digest, "bytes": path.stat().st_size},
        engine={
            **asdict(opened.config),
            "max_guess": 0,
            "implementation": opened.implementation,
            "threads": n_threads(threads),
        },
        ceilings=ceilings,
        linear=linear,
        steps_ms=steps,
        cells=cells,
        left_out=left_out,
        priced=money,
        flags=flags,
    )
    show(report, Console(highlight=False, width=140))
    if json_file:
        save(json_file, report.value())
    if html:
        html.write_text(page([report.value()]), "utf-8")


def main(words: Sequence[str] | None = None) -> int:
    """See run_command."""
    return run_command(command, "hardware", words)


if __name__ == "__main__":
    sys.exit(main())
