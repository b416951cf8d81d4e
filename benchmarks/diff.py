"""`baseload bench diff A.json B.json`: what changed between two reports of one kind, and what may be said of it.

A change is called one only where its interval over repetitions (Welch, 95%) leaves zero out; one run against one run says
nothing, however many requests it had. Of many figures one in twenty differs by luck, and the last line says how many those are.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from .command import run_command
from .figures import Difference, difference
from .report_file import figures, read

ALPHA = 0.05


def differences(a: dict[str, Any], b: dict[str, Any]) -> list[Difference]:
    """Of every figure that both have, in A's order. Raises ValueError where the kinds differ or nothing is in common."""
    if a["schema"] != b["schema"]:
        raise ValueError(f"{a['schema']} and {b['schema']} are not the same kind of report")
    first, second = figures(a), figures(b)
    found = [
        difference(first[name], second[name]) for name in first if name in second and first[name].unit == second[name].unit
    ]
    if not found:
        raise ValueError("the two reports have no figure in common")
    return found


def unlike(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """What else differs between the two runs, so that the figures' cause is not taken for granted."""
    said: list[str] = []
    for part in ("machine", "versions", "model", "workload", "engine"):
        first, second = a.get(part) or {}, b.get(part) or {}
        said += [
            f"{part}.{key}: {first.get(key)} against {second.get(key)}"
            for key in sorted({*first, *second} - {"salt"})
            if first.get(key) != second.get(key)
        ]
    return said


def show(found: Sequence[Difference], others: Sequence[str], console: Console) -> None:
    """The table, and what else is unlike."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for n, head in enumerate(("figure", "A", "B", "unit", "B against A", "95%", "")):
        table.add_column(head, justify="left" if n in (0, 3, 6) else "right")
    for one in found:
        change = f"{one.change:+.1%}" if one.change is not None else "-"
        spread = f"{one.low:+.1%} to {one.high:+.1%}" if one.low is not None and one.high is not None else "-"
        table.add_row(one.name, f"{one.a:.4g}", f"{one.b:.4g}", one.unit, change, spread, one.verdict)
    console.print(table)
    for line in others:
        console.print(f"unlike: {line}")
    tested = sum(one.low is not None for one in found)
    if tested:
        console.print(f"{tested} figures have an interval; {tested * ALPHA:.1f} of as many equal ones would seem to differ.")


def command(
    a: Annotated[Path, typer.Argument(help="The report that is compared with.")],
    b: Annotated[Path, typer.Argument(help="The other one, of the same kind.")],
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the differences as JSON.")] = None,
) -> None:
    """Compare two reports figure by figure."""
    try:
        first, second = read(a), read(b)
        found = differences(first, second)
    except (ValueError, OSError) as error:
        raise typer.BadParameter(str(error)) from error
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console = Console(highlight=False, markup=False, width=400)
    others = unlike(first, second)
    show(found, others, console)
    if json_file:
        lines = [{**asdict(one), "verdict": one.verdict} for one in found]
        json_file.write_text(json.dumps({"a": str(a), "b": str(b), "differences": lines, "unlike": others}, indent=1), "utf-8")


def main(words: Sequence[str] | None = None) -> int:
    """See run_command."""
    return run_command(command, "diff", words)


if __name__ == "__main__":
    sys.exit(main())
