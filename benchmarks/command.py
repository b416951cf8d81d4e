"""A benchmark as a command: `baseload bench <name>` hands it the words that follow."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import typer


def run_command(command: Callable[..., None], name: str, words: Sequence[str] | None) -> int:
    """Run `command`, a function of typer's, with these words (None: the process's own); gives the exit status. Raises click's
    errors for wrong usage. The whole command line is the context's `obj`."""
    app = typer.Typer(add_completion=False)
    app.command()(command)
    given = sys.argv[1:] if words is None else list(words)
    title = f"baseload bench {name}"
    return typer.main.get_command(app).main(given, title, standalone_mode=False, obj=[*title.split(), *given]) or 0
