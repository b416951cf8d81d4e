"""A load test's report: rows as data, and as a table, JSON or one HTML page."""

from __future__ import annotations

import base64
import html
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from rich.table import Table

from .figures import Figure, interval
from .load_client import Result
from .machine import Watched
from .slo import Goodput, Tier, goodput, wilson
from .stats import Slo, Summary, summarise

SCHEMA = "baseload.bench.serving/2"


@dataclass(frozen=True, slots=True)
class Row:
    """One measured load. `load` is the number of clients (closed, prefix), requests per second (open) or how many times as
    fast as it was recorded (replay)."""

    mode: str  # "closed" | "open" | "prefix" | "replay"
    load: float
    cache: str  # "cold": no prompt was seen before; "warm": its shared prefix, or it, was; "unsalted": who knows
    requests: int
    ok: int
    errors: dict[str, int]  # kind -> requests
    http_429: int
    duration_s: float
    ttft_s: Summary
    tpot_s: Summary
    itl_s: Summary
    e2e_s: Summary
    send_delay_s: Summary  # how late requests left, by the client's fault
    requests_per_s: float
    output_tokens_per_s: float
    total_tokens_per_s: float | None  # None where the server did not count the prompt
    goodput_per_s: float | None  # None without an SLO
    slo_met: float | None  # share of all requests
    prompt_tokens: int | None
    output_tokens: int
    cached_tokens: int | None
    tokens_from: str  # "usage": the server's count; "chunks": pieces of text
    flags: list[str]
    seen: Watched | None = None
    repeat: int = 1  # which of the run's repetitions
    levels: list[Goodput] = field(default_factory=list)  # of each service level asked for; the first is `goodput_per_s`'s

    @property
    def name(self) -> str:
        """`8 clients`, `2/s`, `replay x1` or `prefix`."""
        match self.mode:
            case "closed":
                return f"{self.load:.0f} client{'s' * (self.load != 1)}"
            case "open":
                return f"{self.load:g}/s"
            case "replay":
                return f"replay x{self.load:g}"
            case _:
                return self.mode


def make_row(
    mode: str,
    load: float,
    cache: str,
    results: Sequence[Result],
    slo: Slo | None = None,
    seen: Watched | None = None,
    repeat: int = 1,
    tiers: Sequence[Tier] = (),
) -> Row:
    """The row of these results; latencies are those of requests answered in full. `slo` is that of `goodput_per_s`; without it,
    the first tier's."""
    slo = slo or (tiers[0].slo if tiers else None)
    good = [r for r in results if r.error is None]
    errors = Counter(r.error for r in results if r.error)
    duration = max((r.ended for r in results), default=0.0) - min((r.due for r in results), default=0.0)
    span = max(duration, 1e-9)
    counted = all(r.output_tokens is not None for r in good) and bool(good)
    output = sum(r.tokens for r in good)
    prompt = sum(r.prompt_tokens or 0 for r in good) if counted else None
    met = sum(slo.met(r.ttft, r.tpot, r.e2e) for r in good) if slo else None
    known = [r.cached_tokens for r in good if r.cached_tokens is not None]
    return Row(
        mode=mode,
        load=load,
        cache=cache,
        requests=len(results),
        ok=len(good),
        errors=dict(errors.most_common()),
        http_429=errors["http 429"],
        duration_s=duration,
        ttft_s=summarise(r.ttft for r in good),
        tpot_s=summarise(r.tpot for r in good),
        itl_s=summarise(gap for r in good for gap in r.gaps),
        e2e_s=summarise(r.e2e for r in good),
        send_delay_s=summarise(r.sent - r.due for r in results),
        requests_per_s=len(good) / span,
        output_tokens_per_s=output / span,
        total_tokens_per_s=None if prompt is None else (prompt + output) / span,
        goodput_per_s=None if met is None else met / span,
        slo_met=None if met is None else met / max(1, len(results)),
        prompt_tokens=prompt,
        output_tokens=output,
        cached_tokens=sum(known) if known else None,
        tokens_from="usage" if counted else "chunks",
        flags=seen.flags() if seen else [],
        seen=seen,
        repeat=repeat,
        levels=[goodput(tier, results, span) for tier in tiers],
    )


# A figure's name, unit, which way is better, and where a row has it.
FIGURES: tuple[tuple[str, str, Literal["more", "less"], Callable[[Row], float | None]], ...] = (
    ("output", "tokens/s", "more", lambda row: row.output_tokens_per_s),
    ("TTFT p50", "s", "less", lambda row: row.ttft_s.p50),
    ("TTFT p90", "s", "less", lambda row: row.ttft_s.p90),
    ("TPOT p50", "s", "less", lambda row: row.tpot_s.p50),
    ("end to end p50", "s", "less", lambda row: row.e2e_s.p50),
    ("goodput", "requests/s", "more", lambda row: row.goodput_per_s),
)


def figures_of(rows: Sequence[Row]) -> list[Figure]:
    """What the rows claim, repetitions of one load together."""
    loads = dict.fromkeys((row.name, row.cache) for row in rows)
    found: list[Figure] = []
    for name, cache in loads:
        alike = [row for row in rows if (row.name, row.cache) == (name, cache)]
        for what, unit, better, value in FIGURES:
            values = tuple(v for row in alike if (v := value(row)) is not None)
            if values:
                found.append(Figure(f"{name}, {cache}: {what}", unit, better, values))
    return found


@dataclass(frozen=True, slots=True)
class Report:
    """All rows with what one needs to know to repeat them."""

    command: str
    created: str  # ISO 8601, UTC
    versions: dict[str, str]
    machine: dict[str, Any]
    server: dict[str, Any]
    workload: dict[str, Any]
    rows: list[Row] = field(default_factory=list)

    @property
    def prefix_ttft_ratio(self) -> float | None:
        """Median TTFT with the shared prefix in the cache, over the median without; None if it was not measured."""
        by = {row.cache: row.ttft_s.p50 for row in self.rows if row.mode == "prefix"}
        cold, warm = by.get("cold"), by.get("warm")
        return warm / cold if warm is not None and cold else None

    def value(self) -> dict[str, Any]:
        """The whole report, of JSON's types."""
        figures = [{**asdict(figure), "interval": _interval(figure)} for figure in figures_of(self.rows)]
        whole = {"schema": SCHEMA, **asdict(self), "prefix_ttft_ratio": self.prefix_ttft_ratio, "figures": figures}
        return json.loads(json.dumps(whole, allow_nan=False))

    def json(self) -> str:
        """The same as one document."""
        return json.dumps(self.value(), indent=2) + "\n"


def _interval(figure: Figure) -> dict[str, Any] | None:
    found = figure.interval
    return asdict(found) if found else None


COLUMNS = (
    *("load", "cache", "ok", "errors", "TTFT p50 ms", "p90", "p99", "TPOT p50 ms", "p90", "ITL p99 ms"),
    *("e2e p50 s", "p90", "output tok/s", "total tok/s", "req/s", "good req/s"),
)


def cells(row: Row) -> list[str]:
    """A row's cells under COLUMNS."""
    errors = ", ".join(f"{n} x {kind}" for kind, n in row.errors.items()) or "0"
    return [
        row.name,
        row.cache,
        f"{row.ok}/{row.requests}",
        errors,
        *(_ms(value) for value in (row.ttft_s.p50, row.ttft_s.p90, row.ttft_s.p99)),
        *(_ms(value) for value in (row.tpot_s.p50, row.tpot_s.p90, row.itl_s.p99)),
        *(_number(value, 2) for value in (row.e2e_s.p50, row.e2e_s.p90)),
        *(_number(value, 1) for value in (row.output_tokens_per_s, row.total_tokens_per_s)),
        *(_number(value, 2) for value in (row.requests_per_s, row.goodput_per_s)),
    ]


def _ms(seconds: float | None) -> str:
    return "—" if seconds is None else f"{seconds * 1000:.1f}"


def _number(value: float | None, digits: int) -> str:
    return "—" if value is None else f"{value:.{digits}f}"


def table(report: Report) -> Table:
    """The rows for a terminal."""
    shown = Table(box=None, header_style="bold", pad_edge=False)
    for n, column in enumerate(COLUMNS):
        shown.add_column(column, justify="left" if n < 2 else "right")
    for row in report.rows:
        shown.add_row(*cells(row))
    return shown


def notes(report: Report) -> list[str]:
    """What a reader of the table must know, one sentence each."""
    said = []
    if (ratio := report.prefix_ttft_ratio) is not None:
        said.append(f"A shared prefix in the cache cuts the median TTFT to {ratio:.2f} of a cold one's.")
    if any(row.ttft_s.p99 is None for row in report.rows):
        said.append("— for a p99: fewer than 100 values.")
    if any(row.tokens_from == "chunks" for row in report.rows):
        said.append("The server sent no usage in some rows: tokens there are pieces of text, counted by the client.")
    if any(row.mode in ("open", "replay") for row in report.rows):
        said.append("Sent when due: latencies count from the moment a request was due.")
    for name, cache in dict.fromkeys((row.name, row.cache) for row in report.rows):
        alike = [row for row in report.rows if (row.name, row.cache) == (name, cache)]
        if len(alike) > 1 and (found := interval([row.output_tokens_per_s for row in alike])):
            mean, low, high = (f"{value:.1f}" for value in (found.mean, found.low, found.high))
            said.append(f"{name}, {cache}: {mean} output tokens/s over {found.n} runs (95% {low} to {high}).")
        elif len(alike) > 1:
            said.append(f"{name}, {cache}: {len(alike)} runs are too few for an interval; 3 are needed.")
        for n, level in enumerate(alike[0].levels):
            shares = [row.levels[n] for row in alike]
            good, asked = sum(one.good for one in shares), sum(one.asked for one in shares)
            low, high = wilson(good, asked)
            rate = sum(one.good_per_s for one in shares) / len(shares)
            limits = ", ".join(f"{key} {value:g} s" for key, value in asdict(level.slo).items() if value is not None)
            said.append(
                f"{name}, {cache}: {good} of {asked} kept the level {level.name} ({limits}): {good / max(1, asked):.1%}, "
                f"95% {low:.1%} to {high:.1%}; {rate:.2f} good requests/s."
            )
    said += dict.fromkeys(f"{row.name}, {row.cache}: {flag}." for row in report.rows for flag in row.flags)
    return said


PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>body{{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:76rem;padding:0 1rem;color:#1c1c1c}}
table{{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}}th,td{{padding:.3rem .6rem;text-align:right;
border-bottom:1px solid #ddd}}th:first-child,td:first-child,th:nth-child(2),td:nth-child(2){{text-align:left}}
img{{max-width:100%}}pre{{background:#f5f5f5;padding:.8rem;overflow:auto}}</style>
<h1>{title}</h1><p>{created}</p><img alt="Throughput and latency against load" src="data:image/png;base64,{image}">
<div style="overflow:auto"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>
<ul>{notes}</ul><h2>Command</h2><pre>{command}</pre><h2>Data</h2><pre>{data}</pre></html>
"""


def page(report: Report, png: bytes) -> str:
    """One HTML page with the picture, the table and the data, which needs no other file."""

    def tags(name: str, values: Sequence[str]) -> str:
        return "".join(f"<{name}>{html.escape(value)}</{name}>" for value in values)

    replayed = all(row.mode == "replay" for row in report.rows)
    facts = {"server": report.server, "workload": report.workload, "machine": report.machine, "versions": report.versions}
    return PAGE.format(
        title=html.escape(f"{'Replaying to' if replayed else 'Serving'} {report.server.get('model', '')}"),
        created=html.escape(report.created),
        image=base64.b64encode(png).decode(),
        head=tags("th", COLUMNS),
        body="".join(f"<tr>{tags('td', cells(row))}</tr>" for row in report.rows),
        notes=tags("li", notes(report)),
        command=html.escape(report.command),
        data=html.escape(json.dumps(facts, indent=2)),
    )
