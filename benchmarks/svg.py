"""Line charts as inline SVG: no script, no fonts of their own, colours by CSS variables so that a page is light or dark."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from math import floor, log10

WIDTH, HEIGHT = 640, 340
LEFT, RIGHT, TOP, BOTTOM = 66, 16, 14, 46
COLOURS = 6  # --c0 to --c5

STYLE = """:root{color-scheme:light dark;--bg:#fff;--fg:#1c1c1c;--dim:#5f6368;--line:#d8dadd;--box:#f4f5f6;
--c0:#0b62a8;--c1:#b3541e;--c2:#2c7a3f;--c3:#7b3fa0;--c4:#a8235a;--c5:#5d6b00}
@media (prefers-color-scheme:dark){:root{--bg:#16181b;--fg:#e8e8e8;--dim:#a4a9b0;--line:#3a3f45;--box:#212529;
--c0:#6cb4f0;--c1:#f0a070;--c2:#7fd08f;--c3:#c9a0ea;--c4:#f08cb4;--c5:#cdd46a}}
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:76rem;padding:0 1rem;color:var(--fg);background:var(--bg)}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;margin:.5rem 0 1rem}
th,td{padding:.3rem .7rem;text-align:right;border-bottom:1px solid var(--line)}
th:first-child,td:first-child{text-align:left}caption{text-align:left;color:var(--dim)}
pre{background:var(--box);padding:.8rem;overflow:auto}.scroll{overflow:auto}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(26rem,1fr));gap:1.5rem}
svg{width:100%;height:auto}svg text{fill:var(--fg);font-size:12px}figure{margin:0;max-width:46rem}figcaption{font-weight:600}
.key{display:inline-block;margin-right:1.2rem;font-weight:400}.key b{display:inline-block;width:1.4rem;height:0;
border-top:3px solid;vertical-align:middle;margin-right:.4rem}.key b.dash{border-top-style:dashed}"""


@dataclass(frozen=True, slots=True)
class Series:
    """A line. `spread`: (low, high) at each point, or none. `label_points`: names beside the points."""

    name: str
    points: Sequence[tuple[float, float]]
    dashed: bool = False
    spread: Sequence[tuple[float, float] | None] = ()
    labels: Sequence[str] = ()
    dots_only: bool = False


def ticks(low: float, high: float, log: bool) -> list[float]:
    """Round values across the range."""
    if log:
        first, last = floor(log10(low)), floor(log10(high)) + 1
        steps = (1, 2, 5) if last - first <= 3 else (1,)
        return [m * 10.0**e for e in range(first, last + 1) for m in steps if low <= m * 10.0**e <= high * 1.0001]
    span = (high - low) / 5 or 1.0
    size = 10.0 ** floor(log10(span))
    step = next(m * size for m in (1, 2, 5, 10) if m * size >= span)
    n = floor(low / step)
    return [k * step for k in range(n, n + 12) if low <= k * step <= high * 1.0001]


def chart(
    title: str,
    x_name: str,
    y_name: str,
    series: Sequence[Series],
    *,
    log_x: bool = False,
    log_y: bool = False,
    x_marks: Sequence[float] = (),
    zero_x: bool = False,
) -> str:
    """A <figure>: its title, the picture with its axes, and a key to the lines. The x axis is marked at `x_marks`, or at round
    values, and begins at 0 if `zero_x`."""
    xs = [x for one in series for x, _ in one.points]
    ys = [y for one in series for _, y in one.points] + [v for one in series for two in one.spread if two for v in two]
    if not xs:
        return f"<figure><figcaption>{html.escape(title)}</figcaption><p>Nothing was measured.</p></figure>"
    place_x, marks = _axis([0.0, *xs] if zero_x else xs, log_x, LEFT, WIDTH - RIGHT)
    place_y, y_marks = _axis([v for v in ys if v > 0] if log_y else [0.0, *ys], log_y, HEIGHT - BOTTOM, TOP)
    drawn = [_grid(x_marks or marks, y_marks, place_x, place_y, x_name, y_name)]
    drawn += [_line(one, f"var(--c{n % COLOURS})", place_x, place_y) for n, one in enumerate(series)]
    keys = "".join(
        f'<span class="key"><b{" class=dash" if one.dashed else ""} style="border-color:var(--c{n % COLOURS})"></b>'
        f"{html.escape(one.name)}</span>"
        for n, one in enumerate(series)
    )
    picture = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(title)}">{"".join(drawn)}</svg>'
    return f"<figure><figcaption>{html.escape(title)}</figcaption>{picture}<div>{keys}</div></figure>"


class _Place:
    """A value's place on an axis, in picture units."""

    def __init__(self, low: float, high: float, log: bool, start: float, end: float) -> None:
        self._log, self._start, self._end = log, start, end
        self._low, self._high = (log10(low), log10(high)) if log else (low, high)

    def __call__(self, value: float) -> float:
        at = (log10(value) if self._log else value) - self._low
        return self._start + at / ((self._high - self._low) or 1.0) * (self._end - self._start)


def _axis(values: Sequence[float], log: bool, start: float, end: float) -> tuple[_Place, list[float]]:
    low, high = min(values), max(values)
    if log:
        low, high = low / 1.15, high * 1.15
    elif high > low:
        high += 0.04 * (high - low)
    else:
        low, high = low - 1, high + 1
    return _Place(low, high, log, start, end), ticks(low, high, log)


def _grid(xs: Sequence[float], ys: Sequence[float], place_x: _Place, place_y: _Place, x_name: str, y_name: str) -> str:
    made: list[str] = []
    for y in ys:
        at = place_y(y)
        made.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}" stroke="var(--line)"/>')
        made.append(f'<text x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{y:g}</text>')
    for x in xs:
        at = place_x(x)
        made.append(
            f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM + 5}" stroke="var(--dim)"/>'
        )
        made.append(f'<text x="{at:.1f}" y="{HEIGHT - BOTTOM + 19}" text-anchor="middle">{x:g}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    made.append(f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{html.escape(x_name)}</text>')
    turned = (TOP + HEIGHT - BOTTOM) / 2
    made.append(f'<text transform="translate(14 {turned}) rotate(-90)" text-anchor="middle">{html.escape(y_name)}</text>')
    return "".join(made)


def _line(one: Series, colour: str, place_x: _Place, place_y: _Place) -> str:
    at = [(place_x(x), place_y(y)) for x, y in one.points]
    made: list[str] = []
    for (x, _), two in zip(at, one.spread, strict=False):
        if two:
            low, high = (place_y(v) for v in two)
            made.append(
                f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}" stroke="{colour}" stroke-width="1.5"/>'
            )
    if not one.dots_only:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
        dash = ' stroke-dasharray="7 5"' if one.dashed else ""
        made.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2.2"{dash}/>')
    if not one.dashed:
        made += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.6" fill="{colour}"/>' for x, y in at]
    for (x, y), name in zip(at, one.labels, strict=False):
        end = x > WIDTH * 0.7
        anchor = "end" if end else "start"
        made.append(f'<text x="{x + (-8 if end else 8):.1f}" y="{y - 7:.1f}" text-anchor="{anchor}">{html.escape(name)}</text>')
    return "".join(made)
