"""What the routing benchmark says: rows as data, as tables and as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from rich.table import Table

from .routing_data import Outcomes
from .routing_guarantee import Kept
from .routing_methods import BOUND, OURS, SIMPLE, Scored
from .routing_metrics import Curve, Spread, apgr, cpt, curve, spread, ten_points

SCHEMA = "baseload.bench.routing/1"
CALLS = np.linspace(0, 1, 101)
COLOURS = ("#1b6ca8", "#2a9d5c", "#7a4fb5", "#b3261e", "#e08e0b", "#6b6b6b", "#8c564b")


@dataclass(frozen=True, slots=True)
class Row:
    """A method over all splits. Fractions; money in USD per accepted task at the point where CPT(80%) is reached."""

    name: str
    kind: str
    apgr: Spread | None
    apgr_ten_points: Spread | None
    cpt50: Spread | None
    cpt80: Spread | None
    over_best_simple: Spread | None  # APGR, split by split
    usd_per_accepted: Spread | None
    curve: list[float]  # mean quality at 0, 1, ... 100% of calls


def rows(tested: Sequence[tuple[Outcomes, Sequence[Scored]]]) -> list[Row]:
    """From each split's test rows and what the methods said of them."""
    curves = [{one.name: curve(one.scores, part.weak, part.strong) for one in scored} for part, scored in tested]
    kinds = {one.name: one for _, scored in tested for one in scored}
    means = {name: spread([apgr(split[name]) for split in curves if name in split]) for name in kinds}
    simple = {name: found.mean for name, found in means.items() if found and kinds[name].kind == SIMPLE}
    best = {}  # among those that need no answer, and among all
    for probes in (False, True):
        fair = [name for name in simple if probes or not kinds[name].probes]
        best[probes] = max(fair, key=lambda name: simple[name]) if fair else None
    return [_row(one, means[name], curves, best[one.probes], tested) for name, one in kinds.items()]


def _row(
    one: Scored,
    found: Spread | None,
    curves: Sequence[Mapping[str, Curve]],
    best: str | None,
    tested: Sequence[tuple[Outcomes, Sequence[Scored]]],
) -> Row:
    mine = [split[one.name] for split in curves if one.name in split]
    over = None
    if best is not None and one.kind == OURS:
        pairs = [(apgr(split[one.name]), apgr(split[best])) for split in curves if one.name in split and best in split]
        over = spread([a - b if a is not None and b is not None else None for a, b in pairs])
    money = [
        usd_per_accepted(part, hit, cpt(split[one.name], 0.8))
        for (part, scored), split in zip(tested, curves, strict=True)
        for hit in scored
        if hit.name == one.name
    ]
    return Row(
        one.name, one.kind, found, spread([apgr(ten_points(c)) for c in mine]), spread([cpt(c, 0.5) for c in mine]),
        spread([cpt(c, 0.8) for c in mine]), over, spread(money),
        np.mean([np.interp(CALLS, c.calls, c.quality) for c in mine], axis=0).round(5).tolist(),
    )  # fmt: skip


def usd_per_accepted(part: Outcomes, one: Scored, calls: float | None) -> float | None:
    """When that fraction of the prompts goes to the strong model; a probe of the weak one is paid for even where its answer is
    then not used. None without both costs. The oracle and random order are charged no probe."""
    if part.weak_cost is None or part.strong_cost is None or calls is None:
        return None
    n = round(calls * len(part))
    asked = np.zeros(len(part), bool)
    asked[np.lexsort((np.random.default_rng(0).random(len(part)), -one.scores))[:n]] = True
    paid = np.nansum(part.strong_cost[asked]) + np.nansum(part.weak_cost if one.probes else part.weak_cost[~asked])
    accepted = np.where(asked, part.strong, part.weak).sum()
    return float(paid / accepted) if accepted > 0 else None


def ends(tested: Sequence[Outcomes]) -> dict[str, dict[str, Any]]:
    """Each model alone, over the test rows: quality, USD per accepted task."""
    found: dict[str, dict[str, Any]] = {}
    for name, ok, cost in (("weak", "weak", "weak_cost"), ("mid", "mid", "mid_cost"), ("strong", "strong", "strong_cost")):
        columns = [(getattr(part, ok), getattr(part, cost)) for part in tested]
        if any(column is None for column, _ in columns):
            continue
        money = [float(np.nansum(c) / np.nansum(q)) if c is not None and np.nansum(q) > 0 else None for q, c in columns]
        found[name] = {"quality": spread([float(np.nanmean(q)) for q, _ in columns]), "usd_per_accepted": spread(money)}
    return found


def table(title: str, found: Sequence[Row]) -> Table:
    """APGR and CPT as mean and range."""
    out = Table("router", "APGR", "10 points", "CPT50 %", "CPT80 %", "over best simple", title=title)
    money = any(row.usd_per_accepted for row in found)
    if money:
        out.add_column("$ / accepted at CPT80", justify="right")
    order = {BOUND: 0, SIMPLE: 1, OURS: 2}
    for row in sorted(found, key=lambda row: (order[row.kind], row.apgr.mean if row.apgr else 0)):
        cells = [
            row.name,
            _range(row.apgr, 3),
            _range(row.apgr_ten_points, 3, False),
            _range(row.cpt50, 1, scale=100),
            _range(row.cpt80, 1, scale=100),
            _over(row.over_best_simple),
        ]
        out.add_row(*cells, *([_range(row.usd_per_accepted, 6)] if money else []))
    return out


def guarantee_table(title: str, found: Sequence[Kept]) -> Table:
    """Whether promises held."""
    out = Table(
        "threshold by", "risk", "alpha", "broken %", "mean risk", "kept local %", "quality", "uncertifiable %", title=title
    )
    for row in found:
        out.add_row(
            row.method, row.risk, f"{row.alpha:g}", f"{row.broken:.1%}", f"{row.mean_risk:.4f}", f"{row.kept_local:.1%}",
            f"{row.quality:.4f}", f"{row.uncertifiable:.1%}",
        )  # fmt: skip
    return out


def draw(title: str, found: Sequence[Row]) -> bytes:
    """A PNG: quality against calls to the strong model; ours, the best simple one, and the bounds."""
    from matplotlib.figure import Figure

    simple = [row for row in found if row.kind == SIMPLE and row.apgr]
    best = sorted(simple, key=lambda row: row.apgr.mean if row.apgr else 0)[-1:]
    figure = Figure(figsize=(7.5, 5), layout="constrained")
    axes = figure.subplots()
    bounds = [row for row in found if row.kind == BOUND]
    for row, colour in zip([*(row for row in found if row.kind == OURS), *best, *bounds], COLOURS, strict=False):
        label = f"{row.name}, APGR {row.apgr.mean:.3f}" if row.apgr else row.name
        line, width = "--" if row.kind == BOUND else "-", 1.8 if row.kind == OURS else 1.2
        axes.plot(CALLS * 100, row.curve, line, color=colour, label=label, lw=width)
    axes.set_title(title)
    axes.set_xlabel("% of prompts sent to the strong model")
    axes.set_ylabel("quality")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    out = BytesIO()
    figure.savefig(out, format="png", dpi=100)
    return out.getvalue()


def _range(found: Spread | None, digits: int, whole: bool = True, scale: float = 1) -> str:
    if found is None:
        return "-"
    mean, low, high = (f"{value * scale:.{digits}f}" for value in (found.mean, found.low, found.high))
    return f"{mean} [{low}, {high}]" if whole and found.n > 1 else mean


def _over(found: Spread | None) -> str:
    if found is None:
        return ""
    said = f"{found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"
    return said if found.low > 0 else f"{said} not in every split" if found.mean > 0 else f"{said} NOT BEATEN"
