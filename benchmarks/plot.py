"""The picture of a load test: throughput, TTFT and TPOT against the load."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING

from .report import Report, Row
from .stats import Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LOADS = {"closed": "clients at once", "open": "requests per second sent", "replay": "cache, each run a dot"}
CACHES = ("cold", "warm", "unsalted")
PERCENTILES = (("p50", "median", "#1b6ca8"), ("p90", "90th percentile", "#e08e0b"), ("p99", "99th percentile", "#b3261e"))


def draw(report: Report) -> bytes:
    """A PNG: a line of three pictures for each kind of load that was measured."""
    from matplotlib.figure import Figure

    kinds = [(mode, rows) for mode in LOADS if (rows := [row for row in report.rows if row.mode == mode])]
    figure = Figure(figsize=(15, 0.8 + 4.2 * max(1, len(kinds))), layout="constrained")
    figure.suptitle(f"{report.server.get('model', '')} at {report.server.get('url', '')}, {report.created[:10]}")
    axes = figure.subplots(max(1, len(kinds)), 3, squeeze=False)
    for line, (mode, rows) in zip(axes, kinds, strict=False):
        _throughput(line[0], rows)
        _latency(line[1], rows, [row.ttft_s for row in rows], "Time to first token")
        _latency(line[2], rows, [row.tpot_s for row in rows], "Time per output token after the first")
        for one in line:
            one.set_xlabel(LOADS[mode])
    out = BytesIO()
    figure.savefig(out, format="png", dpi=110)
    return out.getvalue()


def _place(row: Row) -> float:
    """Where a row stands: at its load, or, of replays, at its cache state."""
    return float(CACHES.index(row.cache)) if row.mode == "replay" else row.load


def _marks(rows: Sequence[Row], line: str = "-") -> str:
    """Matplotlib's format: replays are no points of one line."""
    return "o" if rows[0].mode == "replay" else f"o{line}"


def _frame(axes: Axes, rows: Sequence[Row], title: str, unit: str) -> None:
    axes.set_title(title)
    axes.set_ylabel(unit)
    names = {_place(row): row.cache if row.mode == "replay" else f"{row.load:g}" for row in rows}
    axes.set_xticks(list(names), list(names.values()))
    axes.margins(0.08)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:  # nothing was answered: nothing to name
        axes.legend(frameon=False)


def _throughput(axes: Axes, rows: Sequence[Row]) -> None:
    loads = [_place(row) for row in rows]
    axes.plot(loads, [row.output_tokens_per_s for row in rows], _marks(rows), color="#1b6ca8", label="output")
    if all(row.total_tokens_per_s is not None for row in rows):
        totals = [row.total_tokens_per_s or 0.0 for row in rows]
        axes.plot(loads, totals, _marks(rows, "--"), color="#6b6b6b", label="prompt and output")
    _frame(axes, rows, "Throughput", "tokens per second")


def _latency(axes: Axes, rows: Sequence[Row], summaries: Sequence[Summary], title: str) -> None:
    for name, label, colour in PERCENTILES:
        values = [getattr(summary, name) for summary in summaries]
        points = [(_place(row), value * 1000) for row, value in zip(rows, values, strict=True) if value is not None]
        if points:
            axes.plot(*zip(*points, strict=True), _marks(rows), color=colour, label=label)
    _frame(axes, rows, title, "milliseconds")
