"""`baseload config`: what is set, and by whom."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from .common import fail_cleanly, print_json, print_table

app = typer.Typer(no_args_is_help=True)


@app.callback()
def _group() -> None:
    """The settings."""


@app.command()
@fail_cleanly
def show(
    config: Annotated[Path | None, typer.Option(help="TOML; else ./baseload.toml, else the store's.")] = None,
    origin: Annotated[bool, typer.Option("--origin", help="Say where each value comes from.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Every setting as `serve` would use it: command line over BASELOAD_* over file over default."""
    from ..server.settings import load

    settings, origins = load(config, {})
    values = {key: _value(settings, key) for key in origins}
    if as_json:
        print_json({key: {"value": values[key], "origin": origins[key]} for key in values} if origin else values)
        return
    rows = [(key, json.dumps(value), origins[key]) for key, value in values.items()]
    print_table(("SETTING", "VALUE", "ORIGIN"), rows) if origin else print_table(("SETTING", "VALUE"), [r[:2] for r in rows])


def _value(settings: Any, key: str) -> Any:
    section, _, name = key.partition(".")
    found = getattr(settings, section)
    return found[name] if section == "suppliers" else getattr(found, name)
