"""A cost report as one web page: accepted share against dollars, and the tables, with no script and nothing from elsewhere."""

from __future__ import annotations

import html
import json
from typing import Any

from .hardware_page import document, table
from .svg import Series, chart

Json = dict[str, Any]
FAR = 10.0  # times as dear: dollars are then drawn on a logarithmic scale


def page(report: Json) -> str:
    """The page of one report's JSON value."""
    outcomes = report["outcomes"]
    heads = ["", "accepted", "95%", "USD an accepted task", "95%", "J an accepted task", "kept SLO", "e2e p50, s", "local"]
    parts = [
        "<h1>What an accepted task costs</h1>",
        f"<p>{html.escape(report['created'])}, {report['workload']['n']} tasks</p>",
    ]
    parts.append(f'<div class="charts">{_pareto(outcomes)}</div>')
    parts.append(table("Each candidate; intervals are over tasks", heads, [_cells(one) for one in outcomes]))
    if report["swap"]:
        parts.append(_swap(report["swap"]))
    said = [f"{_name(one)}: dollars: {one['usd_why']}." for one in outcomes]
    said += [f"{_name(one)}: {flag}." for one in outcomes for flag in one["flags"]]
    parts.append(f"<ul>{''.join(f'<li>{html.escape(line)}</li>' for line in said)}</ul>")
    facts = {key: report[key] for key in ("machine", "versions", "workload")}
    parts.append(f"<h2>How it was measured</h2><pre>{html.escape(report['command'])}</pre>")
    parts.append(f"<pre>{html.escape(json.dumps(facts, indent=1))}</pre>")
    return document("What an accepted task costs", "".join(parts))


def _name(one: Json) -> str:
    return f"{one['model']} @ {one['policy']}"


def _pareto(outcomes: list[Json]) -> str:
    """A dot for each candidate that has a price, and the line through those that nothing beats."""
    priced = [one for one in outcomes if one["usd_per_accepted"]]
    dots = [
        Series(
            _name(one),
            [(one["usd_per_accepted"] * 1000, one["accepted_share"] * 100)],
            spread=[(one["accepted_low"] * 100, one["accepted_high"] * 100)],
            labels=[_name(one)],
            dots_only=True,
        )
        for one in priced
    ]
    best: list[tuple[float, float]] = []
    for one in sorted(priced, key=lambda one: (one["usd_per_accepted"], -one["accepted_share"])):
        if not best or one["accepted_share"] * 100 > best[-1][1]:
            best.append((one["usd_per_accepted"] * 1000, one["accepted_share"] * 100))
    line = [Series("nothing is cheaper and better", best, dashed=True)] if len(best) > 1 else []
    usd = [one["usd_per_accepted"] for one in priced]
    title = "Accepted tasks against what a thousand cost (bars: 95%)"
    far_apart = len(usd) > 1 and max(usd) > FAR * min(usd)
    return chart(title, "USD for 1,000 accepted tasks", "accepted, %", [*dots, *line], log_x=far_apart, zero_x=not far_apart)


def _cells(one: Json) -> list[str]:
    spread, usd, joules, slo, p50 = (
        one[key] for key in ("usd_per_accepted_spread", "usd_per_accepted", "joules_per_accepted", "slo_met", "e2e_s")
    )
    return [
        _name(one),
        f"{one['accepted_share']:.1%}",
        f"{one['accepted_low']:.1%} to {one['accepted_high']:.1%}",
        "not known" if usd is None else f"{usd:.6f}",
        f"{spread['low']:.6f} to {spread['high']:.6f}" if spread else "-",
        "not known" if joules is None else f"{joules:.2f} ({one['joules_known']})",
        "-" if slo is None else f"{slo:.1%}",
        "-" if p50["p50"] is None else f"{p50['p50']:.2f}",
        f"{one['local']} of {one['attempts']}",
    ]


def _swap(swap: Json) -> str:
    rows = []
    for name, key in (("accepted", "accepted"), ("USD", "usd"), ("end to end, s", "e2e_s")):
        found = swap[key]
        cells = (
            [f"{found[k]:.6f}" for k in ("a", "b")] + [f"{found[k]:+.6f}" for k in ("difference", "low", "high")]
            if found
            else []
        )
        rows.append([name, *(cells or ["not known", "", "", "", ""])])
    said = f"{swap['b']} instead of {swap['a']}: means for a task, and paired differences"
    return table(said, ["", swap["a"], swap["b"], "difference", "95% from", "to"], rows)
