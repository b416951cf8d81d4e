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
from .stats import Slo, parse_slo, positive

__all__ = ["Options", "main", "run", "serving"]


def _numbers(text: str, name: str) -> tuple[float, ...]:
    try:
        return tuple(positive(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is not a list of positive numbers", param_hint=name) from error


def _slo(text: str) -> Slo | None:
    try:
        return parse_slo(text) if text else None
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
    slo: Annotated[str, typer.Option(help="Limits for goodput in seconds: ttft=0.5,tpot=0.05,e2e=10")] = "",
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds for one request.")] = 600.0,
    api_key_env: Annotated[str, typer.Option(help="Variable that holds the server's key.")] = "BASELOAD_API_KEY",
    json: Annotated[Path | None, typer.Option(help="Write the report as JSON.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write it as one web page.")] = None,
    png: Annotated[Path | None, typer.Option(help="Write the picture.")] = None,
) -> None:
    """Load an OpenAI-compatible server and report its latency, throughput and goodput."""
    if endpoint not in PATHS:
        raise typer.BadParameter("chat or completions", param_hint="--endpoint")
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
        slo=_slo(slo),
        timeout_s=timeout,
        api_key=os.environ.get(api_key_env, ""),
    )
    report = _run(options, shlex.join(context.obj or ()))
    _show(report)
    _write(report, json, html, png)
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


def _show(report: Report) -> None:
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console = Console(highlight=False, markup=False, width=400)  # piped: long lines, for grep and awk
    console.print(table(report))
    for note in notes(report):
        console.print(note)


def _write(report: Report, json: Path | None, html: Path | None, png: Path | None) -> None:
    if json:
        json.write_text(report.json(), "utf-8")
    if html or png:
        picture = draw(report)
        if png:
            png.write_bytes(picture)
        if html:
            html.write_text(page(report, picture), "utf-8")


def main(words: Sequence[str] | None = None) -> int:
    """See run_command."""
    return run_command(serving, "serving", words)
