"""`baseload rm`: take a model out of the store."""

from __future__ import annotations

from typing import Annotated

import typer

from .common import fail_cleanly, open_store


@fail_cleanly
def rm(names: Annotated[list[str], typer.Argument(help="Models to remove.")]) -> None:
    """Remove a model from the store."""
    store = open_store()
    for name in names:
        store.remove(name)
        print(f"removed {name}")
