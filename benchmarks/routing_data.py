"""Outcome files for the routing benchmark: which of two models answered each prompt rightly.

CSV (also .gz), JSON lines (also .gz) or Parquet. Columns: `prompt`, `weak_ok`, `strong_ok` (0 to 1, or true and false), and
where there are any `group`, `weak_response`, `weak_cost_usd`, `strong_cost_usd`, `mid_ok` and `mid_cost_usd` (one model of a
middle size, asked everything) and any number `weak_*` that is known once the weak model has answered.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from ..wire.errors import BadRequest

Floats = NDArray[np.float64]
NEEDED = ("prompt", "weak_ok", "strong_ok")
KNOWN = {"weak_ok", "weak_response", "weak_cost_usd"}  # no signals
TRUE, FALSE = ("true", "yes"), ("false", "no")


@dataclass(frozen=True, slots=True)
class Outcomes:
    """N prompts with both models' outcomes. Missing numbers of optional columns are NaN."""

    name: str
    digest: str  # sha256 of the file
    prompts: list[str]
    weak: Floats  # [N], 0..1
    strong: Floats  # [N], 0..1
    groups: list[str] | None = None
    responses: list[str] | None = None  # the weak model's
    signals: dict[str, Floats] | None = None  # [N] each
    weak_cost: Floats | None = None  # [N], USD
    strong_cost: Floats | None = None
    mid: Floats | None = None
    mid_cost: Floats | None = None
    left_out: dict[str, int] | None = None  # reason -> rows

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def gap(self) -> Floats:
        """[N], -1..1: what asking the strong model wins."""
        return self.strong - self.weak

    def take(self, rows: NDArray[np.intp]) -> Outcomes:
        """Some of the rows."""
        pick: Callable[[Floats | None], Floats | None] = lambda column: None if column is None else column[rows]  # noqa: E731
        return replace(
            self,
            prompts=[self.prompts[i] for i in rows],
            weak=self.weak[rows],
            strong=self.strong[rows],
            groups=self.groups and [self.groups[i] for i in rows],
            responses=self.responses and [self.responses[i] for i in rows],
            signals=self.signals and {name: column[rows] for name, column in self.signals.items()},
            weak_cost=pick(self.weak_cost),
            strong_cost=pick(self.strong_cost),
            mid=pick(self.mid),
            mid_cost=pick(self.mid_cost),
        )


def load(path: Path, *, group_column: str = "group", drop_column: str = "") -> Outcomes:
    """Raises BadRequest: the file cannot be read, lacks a column, or has no row with both outcomes."""
    rows = _records(path)
    if not rows:
        raise BadRequest(f"{path.name} has no rows.")
    columns = dict.fromkeys(name for row in rows for name in row)
    asked = [*NEEDED, *([group_column] if group_column != "group" else []), *([drop_column] if drop_column else [])]
    if missing := [name for name in asked if name not in columns]:
        raise BadRequest(f"{path.name} has no column {', '.join(missing)}; it has {', '.join(map(str, columns))}.")
    kept, left_out = _usable(rows, drop_column)
    if not kept:
        raise BadRequest(f"{path.name} has no row with a prompt and both outcomes (left out: {left_out}).")
    optional: Callable[[str], Floats | None] = lambda name: _column(kept, name) if name in columns else None  # noqa: E731
    signals = {name: _column(kept, name) for name in columns if str(name).startswith("weak_") and name not in KNOWN}
    return Outcomes(
        path.name,
        hashlib.sha256(path.read_bytes()).hexdigest(),
        [_text(row["prompt"]) for row in kept],
        _column(kept, "weak_ok"),
        _column(kept, "strong_ok"),
        [_text(row.get(group_column)) for row in kept] if group_column in columns else None,
        [_text(row.get("weak_response")) for row in kept] if "weak_response" in columns else None,
        {name: column for name, column in signals.items() if np.isfinite(column).any()},
        optional("weak_cost_usd"),
        optional("strong_cost_usd"),
        optional("mid_ok"),
        optional("mid_cost_usd"),
        dict(left_out),
    )


def _usable(rows: Sequence[dict[str, Any]], drop_column: str) -> tuple[list[dict[str, Any]], Counter[str]]:
    kept, left_out = [], Counter[str]()
    for row in rows:
        outcomes = [number(row.get(name)) for name in ("weak_ok", "strong_ok")]
        if drop_column and number(row.get(drop_column)) > 0:
            left_out[drop_column] += 1
        elif not _text(row.get("prompt")).strip():
            left_out["no prompt"] += 1
        elif not all(0 <= value <= 1 for value in outcomes):  # NaN too
            left_out["no outcome from 0 to 1"] += 1
        else:
            kept.append(row)
    return kept, left_out


def _column(rows: Iterable[dict[str, Any]], name: str) -> Floats:
    return np.array([number(row.get(name)) for row in rows], np.float64)


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def number(value: Any) -> float:
    """What a cell says as a number; NaN where it says none, or not a finite one."""
    if isinstance(value, str):
        word = value.strip().lower()
        value = 1.0 if word in TRUE else 0.0 if word in FALSE else word
    try:
        found = float(value)
    except (TypeError, ValueError):
        return math.nan
    return found if math.isfinite(found) else math.nan


def _records(path: Path) -> list[dict[str, Any]]:
    kind = path.name.lower().removesuffix(".gz").rsplit(".", 1)[-1]
    try:
        if kind == "parquet":
            return _parquet(path)
        if kind not in ("csv", "jsonl"):
            raise BadRequest(f"{path.name}: outcome files end in .csv, .csv.gz, .jsonl, .jsonl.gz or .parquet.")
        opened: Any = gzip.open if path.name.lower().endswith(".gz") else open
        with opened(path, "rt", encoding="utf-8-sig", errors="replace", newline="") as file:
            return _csv(file) if kind == "csv" else _jsonl(file)
    except (OSError, EOFError, csv.Error, ValueError) as error:
        raise BadRequest(f"{path.name} cannot be read: {error}") from error


def _csv(file: TextIO) -> list[dict[str, Any]]:
    csv.field_size_limit(1 << 30)
    return [{name: value for name, value in row.items() if name is not None} for row in csv.DictReader(file)]


def _jsonl(file: TextIO) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in file if line.strip()]
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("a line is not an object")
    return rows


def _parquet(path: Path) -> list[dict[str, Any]]:
    try:
        import pyarrow.parquet as parquet  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise BadRequest(f"{path.name}: to read Parquet, install pyarrow.") from error
    return parquet.read_table(path).to_pylist()
