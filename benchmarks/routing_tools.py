"""`baseload bench routing-tools`: ask a strong model only where the weak one's tool calls fail the router's check.

Nothing is learned. Each recorded answer becomes the calls that a supplier's parser would have made of it, and the check that
the router runs (`tool_call` of router/checks.py) says whether it is kept. Answers that are not there are left out and counted.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from ..router import checks
from ..router.checks import Answer
from ..wire.chat import ChatRequest, ToolSpec
from ..wire.errors import BadRequest
from .command import run_command
from .machine import describe
from .routing_metrics import Spread
from .tool_outcomes import ToolTask, answers, load
from .written_calls import calls, is_structured

SCHEMA = "baseload.bench.routing-tools/1"
DRAWS = 1000  # of the bootstrap
UNREAD = 0.05  # a model of whose right answers more are sent on writes calls in a form of its own, which is not read here
# The leaderboard's groups. In the last, no tool fits the question, and calling none is right.
GROUPS = {
    "graded by syntax": (
        "simple", "multiple_function", "parallel_function", "parallel_multiple_function", "java", "javascript",
    ),
    "graded by running": (
        "executable_simple", "executable_multiple_function", "executable_parallel_function",
        "executable_parallel_multiple_function", "rest",
    ),
    "no tool fits": ("relevance",),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Row:
    """One weak model over a group of tasks. Fractions. `recovered`: of the gap to the strong model; None where there is none.

    `false_alarms`: of the answers that are right, those that the check sends on; `missed`: of the wrong, those that it keeps.
    `no_answer`: tasks left out, for want of the model's words.
    """

    model: str
    group: str
    tasks: int
    no_answer: int
    weak: float
    strong: float
    escalated: float
    routed: float
    recovered: float | None
    interval: Spread | None
    false_alarms: float
    missed: float


def routing_tools(
    data: Annotated[Path, typer.Option(help="Outcomes: a CSV, or a folder of scores for each model.")],
    questions: Annotated[Path, typer.Option(help="The folder of the tasks and their tools.")],
    answered: Annotated[Path, typer.Option("--answers", help="The folder with a folder of answers for each model.")],
    strong: Annotated[str, typer.Option(help="The model that is asked where the check fails.")] = "claude-3-5-sonnet-20240620",
    weak: Annotated[list[str] | None, typer.Option(help="A weak model; can be given several times. Else all.")] = None,
    open_schemas: Annotated[bool, typer.Option(help="Take arguments that a tool's schema does not name.")] = False,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write the report here.")] = None,
) -> None:
    """Ask a strong model only where the weak model's tool calls fail the router's check."""
    tasks = load(data, questions)
    known = sorted(tasks[0].right)
    if unknown := [name for name in (strong, *(weak or [])) if name not in known]:
        raise BadRequest(f"{data.name} has no model {unknown[0]!r}; it has {', '.join(known)}.")
    found = [row for name in weak or known if name != strong for row in measure(tasks, answered, name, strong, open_schemas)]
    found.sort(key=lambda row: (row.group, -(row.recovered if row.recovered is not None else -9)))
    for group in GROUPS:
        Console(width=180).print(table(group, strong, [row for row in found if row.group == group]))
    if json_path:
        report = {
            "schema": SCHEMA, "created": datetime.now(UTC).isoformat(timespec="seconds"), "machine": describe(),
            "data": data.name, "strong": strong, "open_schemas": open_schemas, "rows": [asdict(row) for row in found],
        }  # fmt: skip
        json_path.write_text(json.dumps(report, indent=1, allow_nan=False), "utf-8")


def measure(tasks: Sequence[ToolTask], folder: Path, weak: str, strong: str, open_schemas: bool) -> list[Row]:
    """A weak model's rows, one for each group of tasks that it has answers to."""
    said, rows = answers(folder, weak), []
    for group, categories in GROUPS.items():
        of = [task for task in tasks if task.category in categories and {weak, strong} <= task.right.keys()]
        there = [task for task in of if (task.category, task.number) in said]
        if not there:
            continue
        passed = [passes(task, said[task.category, task.number], group != "no tool fits", open_schemas) for task in there]
        rows.append(_row(weak, group, there, len(of) - len(there), np.array(passed), strong))
    return rows


def passes(task: ToolTask, answer: Any, needs_call: bool, open_schemas: bool = False) -> bool:
    """Whether the router would keep the answer: whether the check passes. `needs_call`: the request asks for one (`required`);
    without, an answer that calls nothing passes."""
    made = calls(answer, task.language)
    # Interfaces that parse calls by themselves allow no dots in names, and had the tools without.
    dotted = not is_structured(answer) or any("." in call.name for call in made)
    request = ChatRequest("auto", tools=tuple(_offered(tool, open_schemas, dotted=dotted) for tool in task.tools))
    text = answer if isinstance(answer, str) and not made else ""
    [verdict] = checks.run([{"type": "tool_call", "required": needs_call}], Answer(text, "tool_calls", made, request))
    return verdict.passed


def _offered(tool: ToolSpec, open_schemas: bool, *, dotted: bool) -> ToolSpec:
    """The tool as the model had it; closed, as strict tools are, unless asked otherwise."""
    closed = {} if open_schemas else {"additionalProperties": False}
    return replace(tool, name=tool.name if dotted else tool.name.replace(".", "_"), parameters={**tool.parameters, **closed})


def _row(model: str, group: str, tasks: Sequence[ToolTask], no_answer: int, passed: np.ndarray, strong: str) -> Row:
    ours, theirs = (np.array([task.right[name] for task in tasks], float) for name in (model, strong))
    mixed = np.where(passed, ours, theirs)
    chance = np.random.default_rng(0)
    drawn = [recovered(ours[i], theirs[i], mixed[i]) for i in chance.integers(0, len(tasks), (DRAWS, len(tasks)))]
    ends = [value for value in drawn if value is not None]
    point = recovered(ours, theirs, mixed)
    interval = None
    if point is not None and len(ends) == DRAWS:
        interval = Spread(float(np.mean(ends)), float(np.percentile(ends, 2.5)), float(np.percentile(ends, 97.5)), DRAWS)
    return Row(
        model, group, len(tasks), no_answer, float(ours.mean()), float(theirs.mean()), float((~passed).mean()),
        float(mixed.mean()), point, interval, _share(~passed, ours > 0), _share(passed, ours == 0),
    )  # fmt: skip


def recovered(weak: np.ndarray, strong: np.ndarray, mixed: np.ndarray) -> float | None:
    """The part of the gap; random escalation recovers what it escalates. None where the strong model is no better."""
    gap = float(strong.mean() - weak.mean())
    return float(mixed.mean() - weak.mean()) / gap if gap > 1e-9 else None


def _share(event: np.ndarray, among: np.ndarray) -> float:
    return float(event[among].mean()) if among.any() else 0.0


def table(group: str, strong: str, rows: Sequence[Row]) -> Table:
    """The models, the best served first."""
    n = rows[0].tasks if rows else 0
    # Where no tool fits, words that are no sound call are right, and sent on all the same.
    read = [row for row in rows if row.false_alarms <= UNREAD or group not in list(GROUPS)[:2]]
    out = Table(
        "weak model", "tasks", "right %", "sent on %", "then right %", "of the gap %", "95%", "sent on though right %",
        "kept though wrong %", title=f"{group}: {n} tasks, {strong} behind",
        caption=_left_out([row for row in rows if row not in read]),
    )  # fmt: skip
    for row in read:
        gap = "no gap" if row.recovered is None else f"{row.recovered:.1%}"
        ends = f"{row.interval.low:.0%} to {row.interval.high:.0%}" if row.interval else ""
        out.add_row(
            row.model, str(row.tasks), f"{row.weak:.1%}", f"{row.escalated:.1%}", f"{row.routed:.1%}", gap, ends,
            f"{row.false_alarms:.1%}", f"{row.missed:.1%}",
        )  # fmt: skip
    return out


def _left_out(rows: Sequence[Row]) -> str | None:
    """What a table says of the models whose words the converter does not read: of them nothing is known here."""
    names = ", ".join(f"{row.model} ({row.false_alarms:.0%})" for row in rows)
    return f"Not shown, for their way of writing calls is not read (right answers sent on): {names}" if rows else None


def main(words: Sequence[str] | None = None) -> int:
    """The command."""
    return run_command(routing_tools, "routing-tools", words)
