"""`baseload bench serving`: latency, throughput and goodput of any OpenAI-compatible server under load."""

from __future__ import annotations

import asyncio
import os
import secrets
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
import uvloop
from rich.console import Console

from .command import run_command
from .load_client import PATHS
from .load_test import Options, run
from .plot import draw
from .report import Report, Row, notes, page, table
from .report_file import save
from .slo import Tier, parse_tiers
from .stats import positive

__all__ = ["Options", "main", "run", "serving"]

SLO_HELP = "Limits for goodput: ttft=0.5,tpot=0.05,e2e=10 in seconds, or mlperf:MODEL (llama3.1-8b, ...)."


def _numbers(text: str, name: str) -> tuple[float, ...]:
    try:
        return tuple(positive(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is not a list of positive numbers", param_hint=name) from error


def read_tiers(text: str) -> tuple[Tier, ...]:
    """The service levels that --slo names. Raises typer's error."""
    try:
        return parse_tiers(text) if text else ()
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--slo") from error


def serving(
    context: typer.Context,
    model: Annotated[str, typer.Option(help="The model's name on that server.")] = "local",
    url: Annotated[str, typer.Option(help="The server.")] = "http://127.0.0.1:8787",
    endpoint: Annotated[str, typer.Option(help="chat or completions.")] = "chat",
    concurrency: Annotated[str, typer.Option(help="Closed loop: how many clients at once; a list.")] = "1,8,32",
    rate: Annotated[str, typer.Option(help="Open loop: requests per second (Poisson); a list.")] = "",
    requests: Annotated[int, typer.Option(min=1, help="Requests for each row.")] = 64,
    duration: Annotated[float | None, typer.Option(min=0.1, help="Seconds for each row, instead of --requests.")] = None,
    warmup: Annotated[int, typer.Option(min=0, help="Requests before the first row that count nowhere.")] = 2,
    input_tokens: Annotated[int, typer.Option(min=1, help="Words of each prompt; about as many tokens.")] = 128,
    output_tokens: Annotated[int, typer.Option(min=1, help="Tokens of each answer.")] = 128,
    shared_prefix_tokens: Annotated[int, typer.Option(min=0, help="Words at a prompt's start that others share.")] = 0,
    prefixes: Annotated[int, typer.Option(min=1, help="How many such shared starts there are.")] = 4,
    prompts: Annotated[Path | None, typer.Option(help="JSON lines with prompt or messages, instead.")] = None,
    seed: Annotated[int, typer.Option(help="Of prompts and arrival times.")] = 0,
    salt: Annotated[bool, typer.Option(help="Make prompts this run's own, so that no cache knows them.")] = True,
    temperature: Annotated[float, typer.Option(min=0)] = 0.0,
    ignore_eos: Annotated[bool, typer.Option(help="Answers of full length, where the server can.")] = True,
    slo: Annotated[str, typer.Option(help=SLO_HELP)] = "",
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each row, in turns; an interval wants 3.")] = 1,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds for one request.")] = 600.0,
    api_key_env: Annotated[str, typer.Option(help="Variable that holds the server's key.")] = "BASELOAD_API_KEY",
    json: Annotated[Path | None, typer.Option(help="Write the report as JSON.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write it as one web page.")] = None,
    png: Annotated[Path | None, typer.Option(help="Write the picture.")] = None,
) -> None:
    """Load an OpenAI-compatible server and report its latency, throughput and goodput."""
    if endpoint not in PATHS:
        raise typer.BadParameter("chat or completions", param_hint="--endpoint")
    if repeats > 1 and not salt:
        raise typer.BadParameter("repetitions without a salt would be answered from a cache", param_hint="--repeats")
    tiers = read_tiers(slo)
    options = Options(
        url=url,
        model=model,
        endpoint=endpoint,
        concurrency=tuple(int(n) for n in _numbers(concurrency, "--concurrency")),
        rates=_numbers(rate, "--rate"),
        requests=requests,
        duration_s=duration,
        warmup=warmup,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        shared_prefix_tokens=shared_prefix_tokens,
        prefixes=prefixes,
        prompts=prompts,
        seed=seed,
        salt=secrets.token_hex(6) if salt else "",
        temperature=temperature,
        ignore_eos=ignore_eos,
        slo=tiers[0].slo if tiers else None,
        timeout_s=timeout,
        api_key=os.environ.get(api_key_env, ""),
        repeats=repeats,
        tiers=tiers,
    )
    report = _run(options, shlex.join(context.obj or ()))
    show(report)
    write(report, json, html, png)
    if not any(row.ok for row in report.rows):
        raise typer.Exit(1)


def _run(options: Options, command: str) -> Report:
    progress = Console(stderr=True, highlight=False)

    def tell(row: Row) -> None:
        name = f"{row.mode} {row.load:g} {row.cache}"
        progress.print(f"{name}: {row.ok} of {row.requests} answered, {row.output_tokens_per_s:.1f} tokens/s", markup=False)

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(run(options, command, tell))
    except (ValueError, OSError) as error:
        raise typer.BadParameter(str(error)) from error


def show(report: Report) -> None:
    """Table and notes on the terminal."""
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console = Console(highlight=False, markup=False, width=400)  # piped: long lines, for grep and awk
    console.print(table(report))
    for note in notes(report):
        console.print(note)


def write(report: Report, json: Path | None, html: Path | None, png: Path | None) -> None:
    """The files that were asked for."""
    if json:
        save(json, report.value())
    if html or png:
        picture = draw(report)
        if png:
            png.write_bytes(picture)
        if html:
            html.write_text(page(report, picture), "utf-8")


def main(words: Sequence[str] | None = None) -> int:
    """See run_command."""
    return run_command(serving, "serving", words)
