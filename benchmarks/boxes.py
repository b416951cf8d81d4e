"""`baseload bench boxes A.json B.json --html FILE`: machines side by side, from their hardware reports."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from .command import run_command
from .hardware_page import page
from .report_file import read


def command(
    files: Annotated[list[Path], typer.Argument(help="Reports that `bench hardware --json` wrote.")],
    html: Annotated[Path, typer.Option(help="The page to write; it needs nothing but itself.")],
) -> None:
    """Put several machines' hardware reports on one web page."""
    try:
        reports = [read(file) for file in files]
    except (ValueError, OSError) as error:
        raise typer.BadParameter(str(error)) from error
    if wrong := [file for file, report in zip(files, reports, strict=True) if "cells" not in report]:
        raise typer.BadParameter(f"{wrong[0]} is no hardware report")
    html.write_text(page(reports), "utf-8")


def main(words: Sequence[str] | None = None) -> int:
    """See run_command."""
    return run_command(command, "boxes", words)


if __name__ == "__main__":
    sys.exit(main())
