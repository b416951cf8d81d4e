"""What the Berkeley function-calling leaderboard published (2024), read from a folder: tasks, tools, answers, outcomes.

`outcomes`: CSV with `category`, `id` (from 1, within a category), `question` and a column of 0 and 1 for each model; or a
folder for each model of files `<category>_score.json`: JSON lines, a head with `total_count`, then each failed `id`.
`questions`: files `*_<category>.json` of JSON lines with `question` and `function`. `answers`: a folder for each model, with
files `*_<category>_result.json` of JSON lines with `id` and `result`. None of it is part of Baseload.
"""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..wire.chat import ToolSpec
from ..wire.errors import BadRequest

SCORE = "_score.json"
FIXED = {"category", "id", "question", "n_functions", "schema_chars"}
TYPES = {
    "dict": "object", "float": "number", "tuple": "array", "list": "array", "double": "number", "long": "integer",
    "int": "integer", "bool": "boolean", "str": "string",
}  # fmt: skip
JSON_TYPES = {"object", "array", "string", "number", "integer", "boolean", "null"}
LANGUAGES = ("java", "javascript")


@dataclass(frozen=True, slots=True)
class ToolTask:
    """One task: what was asked, with which tools (as their author wrote them), and who got it right."""

    category: str
    number: int  # from 0, within the category
    question: str
    tools: tuple[ToolSpec, ...]
    right: Mapping[str, bool]

    @property
    def language(self) -> str:
        """In which the calls are written."""
        return self.category if self.category in LANGUAGES else "python"


def load(outcomes: Path, questions: Path) -> list[ToolTask]:
    """Raises BadRequest: a file cannot be read, or the questions are not those of the outcomes."""
    tools = {category: _lines(path) for category, path in _by_category(questions, ".json").items()}
    found = []
    for row in _scores(outcomes) if outcomes.is_dir() else _rows(outcomes):
        category, number = row["category"], int(row["id"]) - 1
        asked = tools.get(category, [])
        if number >= len(asked) or not _same(asked[number]["question"], row["question"]):
            raise BadRequest(f"{questions} has not the question {category} {number + 1} of {outcomes.name}.")
        right = {name: float(value) > 0.5 for name, value in row.items() if name not in FIXED and value not in ("", None)}
        found.append(ToolTask(category, number, row["question"], specs(asked[number], category), right))
    return found


def answers(folder: Path, model: str) -> dict[tuple[str, int], Any]:
    """(category, number) -> what the model said; what has no file is not there."""
    found: dict[tuple[str, int], Any] = {}
    for category, path in _by_category(folder / model, "_result.json").items():
        for line in _lines(path):
            found[category, int(str(line["id"]).rsplit("_", 1)[-1])] = line["result"]
    return found


def specs(task: Mapping[str, Any], category: str) -> tuple[ToolSpec, ...]:
    """A task's functions as tools, their types in JSON schema's words. Java's and JavaScript's own types say nothing to it."""
    offered = task["function"] if isinstance(task["function"], list) else [task["function"]]
    typed = category not in LANGUAGES
    return tuple(ToolSpec(f["name"], f.get("description", ""), _schema(f.get("parameters") or {}, typed)) for f in offered)


def _schema(given: Mapping[str, Any], typed: bool, depth: int = 0) -> dict[str, Any]:
    kind = TYPES.get(str(given.get("type")).lower(), str(given.get("type")).lower())
    out: dict[str, Any] = {"type": kind} if kind in JSON_TYPES and (typed or depth == 0) else {}
    if isinstance(properties := given.get("properties"), Mapping):
        out["properties"] = {n: _schema(p, typed, depth + 1) for n, p in properties.items() if isinstance(p, Mapping)}
    if typed and isinstance(items := given.get("items"), Mapping):
        out["items"] = _schema(items, typed, depth + 1)
    if typed and isinstance(given.get("enum"), list):
        out["enum"] = given["enum"]
    if isinstance(given.get("required"), list):
        out["required"] = given["required"]
    return out


def _by_category(folder: Path, ending: str) -> dict[str, Path]:
    """Files by the category in their names: all after `_test_`."""
    if not folder.is_dir():
        raise BadRequest(f"{folder} is not a folder.")
    return {path.name.split("_test_", 1)[-1].removesuffix(ending): path for path in sorted(folder.glob(f"*{ending}"))}


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise BadRequest(f"{path} cannot be read: {error}") from error


def _scores(folder: Path) -> list[dict[str, str]]:
    """A folder of scores as the rows that a CSV would have had, without questions."""
    rows: dict[tuple[str, int], dict[str, str]] = {}
    for path in sorted(folder.glob(f"*/*{SCORE}")):
        head, *failed = _lines(path)
        wrong, category = {int(one["id"]) for one in failed}, path.name.removesuffix(SCORE)
        for number in range(1, int(head["total_count"]) + 1):
            row = rows.setdefault((category, number), {"category": category, "id": str(number), "question": ""})
            row[path.parent.name] = str(int(number not in wrong))
    if not rows:
        raise BadRequest(f"{folder} has no */*{SCORE}.")
    return list(rows.values())


def _rows(path: Path) -> Sequence[dict[str, str]]:
    csv.field_size_limit(1 << 30)
    opened: Any = gzip.open if path.name.endswith(".gz") else open
    try:
        with opened(path, "rt", encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, EOFError, csv.Error, ValueError) as error:
        raise BadRequest(f"{path.name} cannot be read: {error}") from error
    if not rows or not set(rows[0]) >= {"category", "id", "question"}:
        raise BadRequest(f"{path.name} needs the columns category, id and question.")
    return rows


def _same(asked: Any, noted: str) -> bool:
    """By their starts: keys were blanked in some, and some outcomes note no question at all."""
    words, other = (" ".join(str(text).split())[:16] for text in (asked, noted))
    return words == other or not other
