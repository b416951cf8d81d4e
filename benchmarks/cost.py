"""`baseload bench cost`: a task set through candidate models and routing policies: how much is done, and for how much.

Every candidate is a real server with its real ledger, one pass at a time and in turns over the repetitions. What comes out is
the accepted share, dollars and joules for an accepted task, failures and escalations included; and with --swap what one
candidate instead of another changes on the same tasks.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ..ledger.machine_cost import Hardware, load
from .command import run_command
from .cost_page import page
from .figures import Figure
from .machine import describe, versions
from .report_file import save
from .stats import Slo, parse_slo
from .task_outcomes import Outcome, Swap, figures, frontier, outcome, swap
from .task_runs import Candidate, Pass, TaskRun, run_pass
from .task_set import Task, built_in, read_tasks

SCHEMA = "baseload.bench.cost/1"


@dataclass(frozen=True, slots=True)
class Report:
    """All candidates, with every single run beside what is said of them."""

    command: str
    created: str  # ISO 8601, UTC
    versions: dict[str, str]
    machine: dict[str, Any]
    workload: dict[str, Any]
    outcomes: list[Outcome]
    runs: list[TaskRun]
    swap: Swap | None
    figures: list[Figure] = field(default_factory=list)

    def value(self) -> dict[str, Any]:
        """The report as JSON's types."""
        found = [{**asdict(one), "interval": asdict(one.interval) if one.interval else None} for one in self.figures]
        return json.loads(json.dumps({"schema": SCHEMA, **asdict(self), "figures": found}, allow_nan=False))


def policies(text: str) -> dict[str, Path | None]:
    """`name=FILE,...`; the word `default` is a server's own defaults. Raises typer's error."""
    found: dict[str, Path | None] = {}
    for part in text.split(","):
        name, equals, file = (word.strip() for word in part.partition("="))
        path = Path(file) if equals else None
        if not name or (path is None and name != "default") or (path is not None and not path.is_file()):
            raise typer.BadParameter(f"{part!r} is neither default nor name=FILE", param_hint="--policies")
        found[name] = path
    return found


def chosen(words: tuple[str, str], candidates: Sequence[Candidate]) -> tuple[Candidate, Candidate]:
    """The two that --swap names, by model, or by `model @ policy`. Raises typer's error."""

    def one(word: str) -> Candidate:
        fitting = [c for c in candidates if word in (c.name, c.name.replace(" @ ", "@"), c.model)]
        if len(fitting) != 1:
            raise typer.BadParameter(f"{word!r} is {len(fitting)} of the candidates", param_hint="--swap")
        return fitting[0]

    return one(words[0]), one(words[1])


def run(
    candidates: Sequence[Candidate],
    tasks: Sequence[Task],
    repeats: int,
    at_once: int,
    timeout_s: float,
    hardware: Hardware | None,
    progress: Console,
) -> dict[Candidate, list[Pass]]:
    """Every candidate `repeats` times, in turns. Raises RuntimeError where a server does not come up."""
    passes: dict[Candidate, list[Pass]] = {candidate: [] for candidate in candidates}
    for repeat in range(1, repeats + 1):
        for candidate in candidates:
            passes[candidate].append(run_pass(candidate, tasks, repeat, at_once, timeout_s, hardware))
            done = sum(one.accepted for one in passes[candidate][-1].runs)
            progress.print(f"{candidate.name} {repeat}: {done} of {len(tasks)} accepted")
    return passes


def show(outcomes: Sequence[Outcome], swapped: Swap | None, console: Console) -> None:
    """The tables."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    heads = ("candidate", "accepted", "95%", "USD an accepted task", "95%", "J an accepted task", "kept SLO", "e2e p50 s")
    for n, head in enumerate((*heads, "local attempts", "")):
        table.add_column(head, justify="right" if 0 < n < 9 else "left")
    best = {one.name for one in frontier(outcomes)}
    for one in outcomes:
        spread = one.usd_per_accepted_spread
        table.add_row(
            one.name,
            f"{one.accepted_share:.1%}",
            f"{one.accepted_low:.1%} to {one.accepted_high:.1%}",
            "not known" if one.usd_per_accepted is None else f"{one.usd_per_accepted:.6f}",
            f"{spread.low:.6f} to {spread.high:.6f}" if spread else "-",
            "not known" if one.joules_per_accepted is None else f"{one.joules_per_accepted:.2f} ({one.joules_known})",
            "-" if one.slo_met is None else f"{one.slo_met:.1%}",
            "-" if one.e2e_s.p50 is None else f"{one.e2e_s.p50:.2f}",
            f"{one.local} of {one.attempts}",
            "nothing is cheaper and better" if one.name in best else "",
        )
    console.print(table)
    for one in outcomes:
        console.print(f"{one.name}: dollars: {one.usd_why}.")
        for flag in one.flags:
            console.print(f"{one.name}: {flag}.")
        for kind, n in one.errors.items():
            console.print(f"{one.name}: {n} x {kind}.")
    if swapped:
        console.print(f"\n{swapped.b} instead of {swapped.a}, {swapped.tasks} tasks, differences for a task (95%):")
        for name, unit, found in (
            ("accepted", "", swapped.accepted),
            ("USD", "", swapped.usd),
            ("end to end", " s", swapped.e2e_s),
        ):
            said = f"{found.difference:+.6f}{unit} ({found.low:+.6f} to {found.high:+.6f})" if found else "not known"
            console.print(f"  {name}: {said}")


def command(
    context: typer.Context,
    tasks: Annotated[Path | None, typer.Option(help="JSON lines (see benchmarks/task_set.py); else 200 built in.")] = None,
    models: Annotated[str, typer.Option(help="As clients name them: a model, supplier/model, auto; a list.")] = "local",
    policy_files: Annotated[
        str, typer.Option("--policies", help="name=FILE of server configurations; default: none.")
    ] = "default",
    swap_of: Annotated[tuple[str, str] | None, typer.Option("--swap", help="Two candidates to compare task by task.")] = None,
    profile: Annotated[Path | None, typer.Option(help="A hardware profile, as in configs/hardware, for dollars.")] = None,
    slo: Annotated[str, typer.Option(help="e2e=SECONDS that an answer should keep.")] = "",
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first tasks.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Passes of each candidate, in turns; an interval wants 3.")] = 1,
    at_once: Annotated[int, typer.Option(min=1, help="Tasks asked at once.")] = 8,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds for one task.")] = 600.0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the report as JSON.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write it as one web page.")] = None,
) -> None:
    """Price accepted tasks: models by routing policies."""
    try:
        work = (read_tasks(tasks) if tasks else built_in())[:limit]
        hardware = load(profile) if profile else None
        level: Slo | None = parse_slo(slo) if slo else None
    except (ValueError, OSError) as error:
        raise typer.BadParameter(str(error)) from error
    if level and (level.ttft or level.tpot or not level.e2e):
        raise typer.BadParameter("answers come whole here: e2e=SECONDS alone", param_hint="--slo")
    names = [name.strip() for name in models.split(",") if name.strip()]
    candidates = [Candidate(name, policy, file) for policy, file in policies(policy_files).items() for name in names]
    pair = chosen(swap_of, candidates) if swap_of else None
    progress = Console(stderr=True, highlight=False, markup=False)
    try:
        passes = run(candidates, work, repeats, at_once, timeout, hardware, progress)
    except RuntimeError as error:
        progress.print(f"error: {error}")
        raise typer.Exit(1) from error
    known, name = (hardware.known, f"{hardware.name} of {hardware.date}") if hardware else ("none", "")
    runs = {candidate: [run for one in found for run in one.runs] for candidate, found in passes.items()}
    report = Report(
        command=shlex.join(context.obj or ()),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=versions(),
        machine=describe(),
        workload={
            "tasks": tasks.name if tasks else "built in",
            "n": len(work),
            "kinds": sorted({task.kind for task in work}),
            "policies": {c.policy: c.config.read_text("utf-8") if c.config else "" for c in candidates},
            "profile": asdict(hardware) | {"date": str(hardware.date)} if hardware else None,
            "slo": asdict(level) if level else None,
            "at_once": at_once,
            "repeats": repeats,
        },
        outcomes=[outcome(candidate, found, level, known, name) for candidate, found in passes.items()],
        runs=[run for found in runs.values() for run in found],
        swap=swap(pair[0].name, pair[1].name, runs[pair[0]], runs[pair[1]]) if pair else None,
        figures=[figure for candidate, found in passes.items() for figure in figures(candidate, found)],
    )
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console = Console(highlight=False, markup=False, width=400)
    show(report.outcomes, report.swap, console)
    if json_file:
        save(json_file, report.value())
    if html:
        html.write_text(page(report.value()), "utf-8")


def main(words: Sequence[str] | None = None) -> int:
    """See run_command."""
    return run_command(command, "cost", words)


if __name__ == "__main__":
    sys.exit(main())
