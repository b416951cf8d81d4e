"""Reports as files: checked against benchmarks/report.schema.json when they are written and when they are read."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from .figures import Figure

SCHEMA_FILE = Path(__file__).with_name("report.schema.json")


@cache
def _validators() -> dict[str, Any]:
    """By the name that a report has under "schema"."""
    import jsonschema

    whole = json.loads(SCHEMA_FILE.read_text("utf-8"))
    kinds = (part["$ref"].rpartition("/")[2] for part in whole["oneOf"])
    return {
        whole["$defs"][kind]["properties"]["schema"]["const"]: jsonschema.Draft202012Validator(
            {"$ref": f"#/$defs/{kind}", "$defs": whole["$defs"]}
        )
        for kind in kinds
    }


def check(report: Any) -> None:
    """Raises ValueError naming the first place that does not fit the schema of the report's kind."""
    name = report.get("schema") if isinstance(report, dict) else None
    if not isinstance(name, str) or name not in _validators():
        raise ValueError(f"no report of a known kind: {', '.join(_validators())}")
    for error in _validators()[name].iter_errors(report):
        where = "/".join(map(str, error.absolute_path)) or "the report"
        raise ValueError(f"{where}: {error.message[:200]}")


def save(path: Path, report: dict[str, Any]) -> None:
    """Raises ValueError where the report is not what its schema says, before anything is written."""
    text = json.dumps(report, indent=1, allow_nan=False) + "\n"
    check(json.loads(text))
    path.write_text(text, "utf-8")


def read(path: Path) -> dict[str, Any]:
    """Raises ValueError naming the file, or OSError."""
    try:
        report = json.loads(path.read_text("utf-8"))
        check(report)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return report


def figures(report: dict[str, Any]) -> dict[str, Figure]:
    """What a report claims, by name."""
    return {one["name"]: Figure(one["name"], one["unit"], one["better"], tuple(one["values"])) for one in report["figures"]}
