"""Hardware reports as one web page: boxes side by side, with no script and nothing from elsewhere."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from .svg import STYLE, Series, chart

Json = dict[str, Any]


def page(reports: Sequence[Json]) -> str:
    """The page of one or more reports' JSON values; the first box is the one that others are compared with."""
    names = _names(reports)
    title = f"Hardware: {', '.join(names)}" if len(names) > 1 else "Hardware"
    parts = [f"<h1>{html.escape(title)}</h1>", _boxes(reports, names)]
    parts.append(f'<div class="charts">{_money(reports, names)}{_speeds(reports, names)}{_roofline(reports, names)}</div>')
    parts += [_cells(reports, names), _prices(reports, names), _steps(reports, names), _notes(reports, names)]
    for report, name in zip(reports, names, strict=True):
        facts = {key: report[key] for key in ("created", "machine", "versions", "model", "engine")}
        parts.append(f"<h2>{html.escape(name)}: how it was measured</h2><pre>{html.escape(report['command'])}</pre>")
        parts.append(f"<pre>{html.escape(json.dumps(facts, indent=1))}</pre>")
    return document(title, "".join(parts))


def document(title: str, body: str) -> str:
    """A page that needs nothing but itself; `body` is HTML."""
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{html.escape(title)}</title>'
    return f'<!doctype html>\n<html lang="en"><head>{head}<style>{STYLE}</style></head><body>{body}</body></html>\n'


def _names(reports: Sequence[Json]) -> list[str]:
    """Each box by its processor; where two are alike, by letters too."""
    plain = [f"{report['machine']['cpu']}, {report['machine']['cores']} cores" for report in reports]
    return [f"{chr(65 + n)}: {name}" if len(reports) > 1 else name for n, name in enumerate(plain)]


def table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of text."""

    def tags(name: str, values: Sequence[str]) -> str:
        return "".join(f"<{name}>{html.escape(value)}</{name}>" for value in values)

    body = "".join(f"<tr>{tags('td', row)}</tr>" for row in rows)
    inside = f"<caption>{html.escape(caption)}</caption><thead><tr>{tags('th', head)}</tr></thead><tbody>{body}</tbody>"
    return f'<div class="scroll"><table>{inside}</table></div>'


def _boxes(reports: Sequence[Json], names: Sequence[str]) -> str:
    rows = []
    for report, name in zip(reports, names, strict=True):
        ceilings, money = report["ceilings"], report["priced"]
        rows.append(
            [
                name,
                report["model"]["name"],
                f"{ceilings['read_bytes_per_s'] / 1e9:.1f}" if ceilings else "not known",
                f"{ceilings['operations_per_s'] / 1e9:,.0f} ({ceilings['kind']})" if ceilings else "not known",
                f"{money['usd_per_hour']['value']:.4f} ({money['usd_per_hour']['known']})" if money else "not known",
                f"{money['watts']['value']:g} ({money['watts']['known']})" if money else "not known",
                f"{money['joules_per_output_token']:.2f}" if money else "not known",
                f"{money['own']['usd_per_mtok']['1.0']:.3f}" if money else "not known",
            ]
        )
    head = ["box", "model", "read, GB/s", "10^9 operations/s", "USD an hour", "watts", "J an output token"]
    return table("Ceilings are measured in the same run", [*head, "USD for 10^6 tokens, fully used"], rows)


def _money(reports: Sequence[Json], names: Sequence[str]) -> str:
    own: list[Series] = []
    crossings: list[Series] = []
    retail: dict[str, Series] = {}
    for report, name in zip(reports, names, strict=True):
        if (money := report["priced"]) is None:
            continue
        own.append(Series(name, [(float(u) * 100, usd) for u, usd in money["own"]["usd_per_mtok"].items()]))
        met = [(100 * one["break_even"], one["usd_per_mtok"]) for one in money["retail"] if 0.1 <= one["break_even"] <= 1]
        if met:
            marks = [f"{x:.0f}%" for x, _ in met]
            crossings.append(Series(f"break-even of {name}", met, labels=marks, dots_only=True))
        for one in money["retail"]:
            line = [(10.0, one["usd_per_mtok"]), (100.0, one["usd_per_mtok"])]
            retail[one["name"]] = Series(f"{one['name']}, list price of {one['looked_up']}", line, dashed=True)
    title = "Dollars for a million tokens, by utilisation"
    return chart(title, "utilisation, %", "USD", [*own, *retail.values(), *crossings], log_y=True)


def _rates(report: Json, key: str) -> dict[int, list[tuple[int, list[float]]]]:
    """context -> (batch, values of all runs)."""
    found: dict[int, dict[int, list[float]]] = {}
    for cell in report["cells"]:
        found.setdefault(cell["context"], {}).setdefault(cell["batch"], []).append(cell[key])
    return {context: sorted(batches.items()) for context, batches in sorted(found.items())}


def _speeds(reports: Sequence[Json], names: Sequence[str]) -> str:
    drawn: list[str] = []
    several = len(reports) > 1
    for key, what in (("write_tokens_per_s", "Tokens written a second"), ("read_tokens_per_s", "Prompt tokens read a second")):
        series = [
            Series(
                f"{name[0]}, {context} in context" if several else f"{context} in context",
                [(batch, fmean(values)) for batch, values in batches],
                spread=[(min(values), max(values)) for _, values in batches],
            )
            for report, name in zip(reports, names, strict=True)
            for context, batches in _rates(report, key).items()
        ]
        sizes = sorted({cell["batch"] for report in reports for cell in report["cells"]})
        drawn.append(
            chart(f"{what}, all sequences (bars: all runs)", "sequences at once", "tokens/s", series, log_x=True, x_marks=sizes)
        )
    return "".join(drawn)


def _roofline(reports: Sequence[Json], names: Sequence[str]) -> str:
    series: list[Series] = []
    for report, name in zip(reports, names, strict=True):
        if (ceilings := report["ceilings"]) is None:
            continue
        mark = f"{name[0]}: " if len(reports) > 1 else ""
        read, most = ceilings["read_bytes_per_s"], ceilings["operations_per_s"]
        xs = [1.0, most / read, 1000.0] if 1 < most / read < 1000 else [1.0, 1000.0]
        roof = [(x, min(x * read, most) / 1e9) for x in xs]
        series.append(Series(f"{mark}ceiling", roof, dashed=True))
        for kind in dict.fromkeys(line["format"] for line in report["linear"]):
            lines = [line for line in report["linear"] if line["format"] == kind]
            points = [(one["operations"] / one["nbytes"], one["operations"] / one["seconds"] / 1e9) for one in lines]
            series.append(Series(f"{mark}{kind} weights", points))
    return chart("Products beside the ceilings", "operations per byte of weights", "10^9/s", series, log_x=True, log_y=True)


def _cells(reports: Sequence[Json], names: Sequence[str]) -> str:
    tables = ""
    for report, name in zip(reports, names, strict=True):
        spans = {one["name"]: one["interval"] for one in report["figures"]}
        rows = []
        for cell in dict.fromkeys(one["name"] for one in report["cells"]):
            mine = [one for one in report["cells"] if one["name"] == cell]
            shown = [cell, "/".join(sorted({one["cache"] for one in mine})), str(len(mine))]
            for what in ("read", "write"):
                found = spans[f"{cell}: {what}"]
                shown.append(f"{fmean(one[f'{what}_tokens_per_s'] for one in mine):,.0f}")
                shown.append(f"{found['low']:,.0f} to {found['high']:,.0f}" if found else "too few runs")
            rows.append(shown)
        head = ["batch x context", "cache", "runs", "read, tokens/s", "95%", "write, tokens/s", "95%"]
        tables += table(f"{name}: the engine; intervals are over runs", head, rows)
    return tables


def _prices(reports: Sequence[Json], names: Sequence[str]) -> str:
    tables = ""
    for report, name in zip(reports, names, strict=True):
        if not (money := report["priced"]):
            continue
        rows = [
            [one["name"], f"{one['usd_per_mtok']:.3f}", one["source"], one["looked_up"], _crossing(one["break_even"])]
            for one in money["retail"]
        ] + [[model, "unpriced", "", "", ""] for model in money["unpriced"]]
        mix = money["mix"]
        said = f"{name}: beside list prices, {mix['input_tokens']} tokens in and {mix['output_tokens']} out, none cached"
        tables += table(said, ["", "USD for 10^6 tokens", "price from", "looked up", "this box is cheaper"], rows)
    return tables


def _crossing(utilisation: float) -> str:
    return f"from {utilisation:.0%} utilisation on" if utilisation <= 1 else "never"


def _steps(reports: Sequence[Json], names: Sequence[str]) -> str:
    tables = ""
    for report, name in zip(reports, names, strict=True):
        if steps := report["steps_ms"]:
            parts = list(next(iter(steps.values())))
            rows = [[what, *(f"{took[p]:.2f}" for p in parts), f"{sum(took.values()):.2f}"] for what, took in steps.items()]
            tables += table(f"{name}: parts of a step, ms", ["", *parts, "sum"], rows)
    return tables


def _notes(reports: Sequence[Json], names: Sequence[str]) -> str:
    said: list[str] = []
    for report, name in zip(reports, names, strict=True):
        said += [f"{name}: {flag}." for flag in report["flags"]]
    for report, name in zip(reports, names, strict=True):
        if report["left_out"]:
            said.append(f"{name}: not measured, since they do not fit: {', '.join(report['left_out'])}.")
    if any(report["priced"] for report in reports):
        said.append("Dollars are the machine's alone, at its power under load; a listed model is not the same model.")
    return f"<ul>{''.join(f'<li>{html.escape(one)}</li>' for one in said)}</ul>"
