"""`baseload bench beside`: several running servers, the same prompts, one driven at a time and in turns.

Each round begins with another server, so that a machine that changes its speed does so to all. A cell is the median over the
rounds; a row in which other programs used the machine is made again, up to twice, and marked if it stays so. The first server
is the one that ratios are to.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Annotated
from urllib.parse import urlsplit

import aiohttp
import typer
import uvloop

from .command import run_command
from .load_client import Target, closed_loop
from .machine import NOISY_HOST, Watch, describe, find_server, versions
from .prompts import Generated
from .report import Row, make_row


@dataclass(frozen=True, slots=True)
class Test:
    """One closed loop, and the figure that is looked at: `value` of its row, in `unit`; `less`: a smaller one is better."""

    title: str
    unit: str
    value: Callable[[Row], float]
    clients: int
    requests: int
    input_tokens: int = 128
    output_tokens: int = 128
    shared_tokens: int = 0  # that all prompts of the run begin with; no server has seen them before
    less: bool = False


def _throughput(row: Row) -> float:
    return row.output_tokens_per_s


def _prefill(row: Row) -> float:
    return (row.prompt_tokens or 0) / max(1, row.ok) / (row.ttft_s.mean or 1)


def _ttft(row: Row) -> float:
    return (row.ttft_s.mean or 0.0) * 1000


TESTS = {
    "s1": Test("1 stream", "tok/s", _throughput, 1, 4),
    "c8": Test("8 streams", "tok/s", _throughput, 8, 24),
    "c32": Test("32 streams", "tok/s", _throughput, 32, 64),
    "p1k": Test("prefill of 1,000", "tok/s", _prefill, 1, 5, input_tokens=1000, output_tokens=1),
    "pre16": Test("16 streams sharing 512 tokens: TTFT", "ms", _ttft, 16, 32, 32, 64, shared_tokens=512, less=True),
}


@dataclass(slots=True)
class Cell:
    """What one server did in one test: a value a round, and whether the machine was quiet."""

    values: list[tuple[float, bool]] = field(default_factory=list)

    def median(self) -> tuple[float, bool]:
        """Of the quiet rounds where there are any; and whether there are."""
        quiet = [value for value, was_quiet in self.values if was_quiet]
        return median(quiet or [value for value, _ in self.values]), bool(quiet)


async def model_of(url: str) -> str:
    """The first model that a server names."""
    async with aiohttp.ClientSession() as session, session.get(f"{url}/v1/models") as response:
        return (await response.json(content_type=None))["data"][0]["id"]


async def once(url: str, model: str, test: Test) -> tuple[float, bool]:
    """A test's figure, and whether the machine was quiet. Raises RuntimeError where a request failed."""
    target = Target(f"{url}/v1", model, "completions", fields={"temperature": 0.0, "ignore_eos": True})
    source = Generated(test.input_tokens, test.output_tokens, 0, secrets.token_hex(6), test.shared_tokens)
    async with target.session() as session:
        async with Watch(find_server(urlsplit(url).port or 80), local=True) as watch:
            results = await closed_loop(session, target, source.stream("row"), test.clients, test.requests)
    row = make_row("closed", test.clients, "cold", results, seen=watch.seen)
    if row.ok < row.requests:
        raise RuntimeError(f"{url}: {row.requests - row.ok} of {row.requests} requests failed: {row.errors}")
    others = watch.seen.others_cpu
    return test.value(row), others is not None and others <= NOISY_HOST


async def beside(servers: dict[str, str], tests: Sequence[str], rounds: int) -> dict[str, dict[str, Cell]]:
    """test -> server -> Cell."""
    models = {name: await model_of(url) for name, url in servers.items()}
    cells = {test: {name: Cell() for name in servers} for test in tests}
    names = list(servers)
    for name in names:  # warms up
        await once(servers[name], models[name], Test("", "", _throughput, 4, 8, 32, 16))
    for n in range(rounds):
        for test in tests:
            for name in names[n % len(names) :] + names[: n % len(names)]:
                value, quiet = await once(servers[name], models[name], TESTS[test])
                for _ in range(0 if quiet else 2):
                    value, quiet = await once(servers[name], models[name], TESTS[test])
                    if quiet:
                        break
                cells[test][name].values.append((value, quiet))
                print(f"round {n + 1}: {TESTS[test].title}: {name} {value:.4g}{'' if quiet else ' *'}", file=sys.stderr)
    return cells


def table(cells: dict[str, dict[str, Cell]]) -> str:
    """A Markdown table: a line for each test, a column for each server, ratios of the first to the others."""
    names = list(next(iter(cells.values())))
    lines = ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for test, row in cells.items():
        first, _ = row[names[0]].median()
        said = []
        for name in names:
            value, quiet = row[name].median()
            ratio = value / first if TESTS[test].less else first / value
            said.append(f"{value:,.4g}{'' if quiet else ' *'}" + (f" ({ratio:.2f}x)" if name != names[0] else ""))
        lines.append(f"| {TESTS[test].title}, {TESTS[test].unit} | " + " | ".join(said) + " |")
    return "\n".join(lines)


def command(
    servers: Annotated[list[str], typer.Argument(help="NAME=URL of each running server; ratios are of the first to it.")],
    tests: Annotated[str, typer.Option(help="Which, of " + ", ".join(TESTS))] = ",".join(TESTS),
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every figure as JSON.")] = None,
) -> None:
    """Measure running OpenAI-compatible servers side by side, in turns."""
    named = dict(server.split("=", 1) for server in servers)
    wanted = [test.strip() for test in tests.split(",")]
    if unknown := set(wanted) - set(TESTS):
        raise typer.BadParameter(f"unknown tests: {', '.join(sorted(unknown))}")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        cells = runner.run(beside(named, wanted, rounds))
    print(table(cells))
    noisy = sum(not quiet for row in cells.values() for cell in row.values() for _, quiet in cell.values)
    print(f"\n{rounds} rounds, medians; {noisy} runs beside other programs' work (cells with no quiet run: *).")
    if json_file:
        values = {test: {name: cell.values for name, cell in row.items()} for test, row in cells.items()}
        json_file.write_text(json.dumps({"machine": describe(), "versions": versions(), "values": values}, indent=1), "utf-8")


def main(words: Sequence[str] | None = None) -> int:
    """See run_command."""
    return run_command(command, "beside", words)


if __name__ == "__main__":
    sys.exit(main())
