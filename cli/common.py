"""What the commands share: errors as one line, tables, sizes, progress bars."""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec

import typer
from rich.console import Console
from rich.table import Table

from ..wire.errors import BaseloadError

if TYPE_CHECKING:
    from ..runtime.store import Store

P = ParamSpec("P")

DEFAULT_URL = "http://127.0.0.1:8787"


def fail(message: str) -> NoReturn:
    """Say why in one line on stderr and exit with 1."""
    print("baseload: " + " ".join(message.split()), file=sys.stderr)
    raise typer.Exit(1)


def fail_cleanly(command: Callable[P, None]) -> Callable[P, None]:
    """Turn expected errors into one line and exit code 1; a reader who left (`| head`) and Ctrl-C are no errors to explain."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except BaseloadError as error:
            fail(error.message)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the flush at exit must not complain again
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            raise typer.Exit(130) from None

    return run


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    print(json.dumps(value, indent=2, default=str, ensure_ascii=False))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table; columns whose name ends with `>` are aligned right."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column.removesuffix(">"), justify="right" if column.endswith(">") else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    # Piped, the width is no terminal's: let lines be as long as they are, for grep and awk.
    Console(width=None if sys.stdout.isatty() else 400, highlight=False, markup=False).print(table)


def size(n: float) -> str:
    """`98.4 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.1f} TB"


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, int | None], None]]:
    """A bar on a terminal's stderr; nothing elsewhere. Gives `progress(done, total)` in bytes."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def open_store(config: Path | None = None) -> Store:
    """The store that the settings name."""
    from ..runtime.store import Store, default_root
    from ..server.settings import load

    named = load(config, {})[0].models.store
    return Store(Path(named).expanduser() if named else default_root())


def ledger_url(config: Path | None = None) -> str:
    """The ledger that the settings name."""
    from ..ledger.ledger import default_url
    from ..server.settings import load

    return load(config, {})[0].ledger.url or default_url()
