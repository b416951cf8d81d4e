"""`baseload bench replay`: a recorded workload, as it came, against any OpenAI-compatible server.

Requests leave when the trace says (divided by --speed), however busy the server is, and latencies count from then. Their text
is made up: as long as recorded, and alike where the recorded prompts were. Each repetition has words of its own, so it begins
with a cold cache and warms it as the trace does; a warm row has seen all its prompts just before.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
import uvloop
from rich.console import Console

from .command import run_command
from .load_client import PATHS, Target, closed_loop, open_loop
from .load_test import about, base_url, seen_at
from .machine import Watch, describe, versions
from .report import Report, Row, make_row
from .serving import SLO_HELP, read_tiers, show, write
from .slo import Tier
from .trace_prompts import Fitted, Measure, fit, measured, prompts
from .traces import Recorded, read_trace, shared_tokens

LENGTH_OFF = 0.05  # share by which prompts may miss the trace's lengths before a row says so
REUSE_OFF = 0.02


@dataclass(frozen=True, slots=True)
class Options:
    """One replay."""

    target: Target
    trace: str  # the file's name
    speed: float = 1.0
    caches: tuple[str, ...] = ("cold",)
    repeats: int = 1
    context: int | None = None  # None: what the server says of the model
    length_scale: float = 1.0
    salt: str = ""
    tiers: tuple[Tier, ...] = ()


async def run(
    options: Options, recorded: Sequence[Recorded], command: str = "", tell: Callable[[Row], None] = lambda row: None
) -> Report:
    """Every cache state, `repeats` times in turns. Raises ValueError where the context holds no request."""
    target = options.target
    async with target.session() as session:
        server = await about(session, target)
        context = options.context or _context(server)
        if context is not None and context < 64:
            raise ValueError(f"a context of {context} tokens holds no request")
        fitted = fit(recorded, context, options.length_scale)
        measure = await measured(session, target, options.salt) or Measure()
        report = Report(
            command=command,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            versions=versions(),
            machine=describe(),
            server=server,
            workload=_workload(options, fitted, context, measure),
        )
        process, is_local = seen_at(target.base_url)
        arrivals = [one.at_s / options.speed for one in fitted.requests]
        for repeat in range(1, options.repeats + 1):
            for cache in options.caches:
                made = prompts(fitted.requests, measure, f"{options.salt}/{repeat}/{cache}")
                if cache == "warm":
                    await closed_loop(session, target, (replace(p, max_tokens=1) for p in made), 1, len(made))
                async with Watch(process, is_local) as watch:
                    results = await open_loop(session, target, iter(made), arrivals)
                row = make_row("replay", options.speed, cache, results, None, watch.seen, repeat, options.tiers)
                row.flags.extend(doubts(row, fitted))
                report.rows.append(row)
                tell(row)
    return report


def doubts(row: Row, fitted: Fitted) -> list[str]:
    """Where a row is not what the trace says."""
    said: list[str] = []
    if row.prompt_tokens and row.ok == row.requests:
        wanted = sum(one.input_tokens for one in fitted.requests)
        off = row.prompt_tokens / max(1, wanted) - 1
        if abs(off) > LENGTH_OFF:
            said.append(f"its prompts were {off:+.0%} as long as the trace's")
        reused = (row.cached_tokens or 0) / row.prompt_tokens
        ideal = shared_tokens(fitted.requests) / max(1, wanted)
        # A chat template's own beginning is shared too, and no trace knows of it.
        template = 64 * row.requests / row.prompt_tokens
        if row.cache == "cold" and reused > ideal + REUSE_OFF + template:
            said.append(f"{reused:.0%} came from a cache, more than the {ideal:.0%} that the trace shares: not cold")
    return said


def _context(server: dict[str, Any]) -> int | None:
    info = server.get("model_info") or {}
    found = info.get("max_model_len") or info.get("context_length")
    return found if isinstance(found, int) and found > 0 else None


def _workload(options: Options, fitted: Fitted, context: int | None, measure: Measure) -> dict[str, Any]:
    asked = fitted.requests
    tokens = sum(one.input_tokens for one in asked)
    return {
        "trace": options.trace,
        "speed": options.speed,
        "requests": len(asked),
        "span_s": asked[-1].at_s / options.speed,
        "sessions": len({one.session for one in asked if one.session}) or None,
        "input_tokens": tokens,
        "output_tokens": sum(one.output_tokens for one in asked),
        "shared_tokens": shared_tokens(asked),
        "length_scale": options.length_scale,
        "context": context,
        "clamped_inputs": fitted.clamped_inputs,
        "clamped_outputs": fitted.clamped_outputs,
        "tokens_per_word": measure.per_word,
        "tokens_around": measure.overhead,
        "repeats": options.repeats,
    }


def told(workload: dict[str, Any]) -> list[str]:
    """What was made of the trace, in sentences."""
    n, tokens = workload["requests"], max(1, workload["input_tokens"])
    said = [
        f"{n} requests over {workload['span_s']:.1f} s, {tokens} tokens in ({workload['shared_tokens'] / tokens:.0%} of them "
        f"an earlier prompt's beginning), {workload['output_tokens']} out."
    ]
    if workload["clamped_inputs"] or workload["clamped_outputs"]:
        said.append(
            f"Cut to the context of {workload['context']} tokens: {workload['clamped_inputs']} prompts and "
            f"{workload['clamped_outputs']} answers of {n}. What was cut is not measured."
        )
    return said


def reuse(report: Report) -> list[str]:
    """How much of each row's prompts came from the server's cache, beside what the trace shares."""
    shared, wanted = report.workload["shared_tokens"], max(1, report.workload["input_tokens"])
    return [
        f"{row.name}, {row.cache}, run {row.repeat}: {(row.cached_tokens or 0) / row.prompt_tokens:.0%} of the prompt tokens "
        f"came from the cache; one that keeps everything would have given {1 if row.cache == 'warm' else shared / wanted:.0%}."
        for row in report.rows
        if row.prompt_tokens
    ]


def command(
    context: typer.Context,
    trace: Annotated[Path, typer.Option(help="Azure's CSV, Mooncake's JSON lines or the agentic coding CSV; .gz too.")],
    model: Annotated[str, typer.Option(help="The model's name on that server.")] = "local",
    url: Annotated[str, typer.Option(help="The server.")] = "http://127.0.0.1:8787",
    endpoint: Annotated[str, typer.Option(help="chat or completions.")] = "chat",
    speed: Annotated[float, typer.Option(min=1e-6, help="How many times as fast as recorded.")] = 1.0,
    limit: Annotated[int, typer.Option(min=1, help="The first requests of the trace.")] = 200,
    sessions: Annotated[int | None, typer.Option(min=1, help="Only the first sessions, where the trace tells them.")] = None,
    cache: Annotated[str, typer.Option(help="cold, warm or both: cold,warm.")] = "cold",
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each row, in turns; an interval wants 3.")] = 1,
    length_scale: Annotated[float, typer.Option(min=1e-6, max=1, help="Shorten all lengths by this.")] = 1.0,
    max_context: Annotated[int | None, typer.Option(min=64, help="Tokens; else what the server says.")] = None,
    slo: Annotated[str, typer.Option(help=SLO_HELP)] = "",
    ignore_eos: Annotated[bool, typer.Option(help="Answers of full length, where the server can.")] = True,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds for one request.")] = 600.0,
    api_key_env: Annotated[str, typer.Option(help="Variable that holds the server's key.")] = "BASELOAD_API_KEY",
    json: Annotated[Path | None, typer.Option(help="Write the report as JSON.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write it as one web page.")] = None,
    png: Annotated[Path | None, typer.Option(help="Write the picture.")] = None,
) -> None:
    """Replay a recorded workload: arrival times, lengths and shared prefixes as they were."""
    caches = tuple(dict.fromkeys(part.strip() for part in cache.split(",")))
    if endpoint not in PATHS:
        raise typer.BadParameter("chat or completions", param_hint="--endpoint")
    if not set(caches) <= {"cold", "warm"}:
        raise typer.BadParameter("cold, warm or cold,warm", param_hint="--cache")
    key = os.environ.get(api_key_env, "")
    headers = {"authorization": f"Bearer {key}"} if key else {}
    fields: dict[str, Any] = {"temperature": 0.0, **({"ignore_eos": True} if ignore_eos else {})}
    target = Target(base_url(url), model, endpoint, headers, fields, timeout)
    tiers = read_tiers(slo)
    salt = secrets.token_hex(6)
    options = Options(target, trace.name, speed, caches, repeats, max_context, length_scale, salt, tiers)
    progress = Console(stderr=True, highlight=False, markup=False)

    def tell(row: Row) -> None:
        progress.print(f"{row.name} {row.cache} {row.repeat}: {row.ok} of {row.requests} answered in {row.duration_s:.1f} s")

    try:
        recorded = read_trace(trace, limit, sessions)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            report = runner.run(run(options, recorded, shlex.join(context.obj or ()), tell))
    except (ValueError, OSError) as error:
        raise typer.BadParameter(str(error), param_hint="--trace") from error
    for line in told(report.workload):
        Console(highlight=False, markup=False, soft_wrap=True).print(line)
    show(report)
    for line in reuse(report):
        Console(highlight=False, markup=False, soft_wrap=True).print(line)
    write(report, json, html, png)
    if not any(row.ok for row in report.rows):
        raise typer.Exit(1)


def main(words: Sequence[str] | None = None) -> int:
    """See run_command."""
    return run_command(command, "replay", words)
