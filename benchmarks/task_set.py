"""Task sets: what is asked, and how one knows that an answer is right.

A file has a task on each line: {"id": ..., "kind": ..., "body": {fields of a chat request, "messages" among them}, "checks":
[the router's checks], "expect": text or JSON}. The checks are the server's to run, so every candidate is graded alike; `expect`
is compared here, as JSON where it is no text. One of the two must be there: a task that accepts anything prices nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .routed_tasks import pieces

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Task:
    """One piece of work."""

    id: str
    kind: str
    body: Mapping[str, Any]
    checks: Sequence[Json] = field(default_factory=tuple)
    expect: Any = None

    def request(self, model: str) -> Json:
        """What is sent."""
        return {**self.body, "model": model, "baseload": {"checks": list(self.checks), "task": self.kind}}

    def is_right(self, text: str | None) -> bool:
        """Whether an answer that the checks let pass is the expected one."""
        if self.expect is None:
            return True
        if isinstance(self.expect, str):
            return (text or "").strip() == self.expect.strip()
        try:
            return json.loads(text or "") == self.expect
        except ValueError:
            return False


def built_in() -> list[Task]:
    """200 small tasks: extractions, sums, tool calls, programs."""
    made: list[Task] = []
    for n, piece in enumerate(pieces()):
        body = piece.body("")
        body.pop("model")
        checks = body.pop("baseload")["checks"]
        expect = json.loads(str(piece.answer)) if piece.kind == "extract" else None
        made.append(Task(f"{piece.kind}-{n}", piece.kind, body, checks, expect))
    return made


def read_tasks(path: Path) -> list[Task]:
    """Raises ValueError naming file and line, or OSError."""
    made: list[Task] = []
    for n, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        if line.strip():
            try:
                made.append(_task(json.loads(line), n))
            except (ValueError, TypeError) as error:
                raise ValueError(f"{path}:{n}: {error}") from error
    if not made:
        raise ValueError(f"{path}: no tasks")
    if len({task.id for task in made}) < len(made):
        raise ValueError(f"{path}: two tasks have one id")
    return made


def _task(raw: Any, n: int) -> Task:
    if not isinstance(raw, dict) or not isinstance(raw.get("body"), dict) or not raw["body"].get("messages"):
        raise ValueError('not an object with a "body" that has messages')
    if wrong := sorted({*raw} - {"id", "kind", "body", "checks", "expect"}):
        raise ValueError(f"{', '.join(wrong)} is unknown")
    checks = raw.get("checks", [])
    if not isinstance(checks, list) or not all(isinstance(check, dict) for check in checks):
        raise ValueError('"checks" is a list of objects')
    if not checks and raw.get("expect") is None:
        raise ValueError('neither "checks" nor "expect": any answer would do')
    return Task(str(raw.get("id", n)), str(raw.get("kind", "task")), raw["body"], checks, raw.get("expect"))
