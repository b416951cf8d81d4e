"""`baseload models`: what is in the store, and what can be pulled by name."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Annotated

import typer

from ..runtime.catalogue import catalogue
from .common import fail_cleanly, open_store, print_json, print_table, size


@fail_cleanly
def models(
    verify: Annotated[bool, typer.Option("--verify", help="Read every model again and compare its sha256.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the models in the store and those known by name."""
    store = open_store()
    stored = store.list()
    if verify:
        for model in stored:
            store.verify(model.name)
    missing = [entry for name, entry in catalogue().items() if name not in {model.name for model in stored}]
    if as_json:
        print_json({"stored": [asdict(m) for m in stored], "available": [asdict(e) for e in missing]})
        return
    rows = [(m.name, size(m.bytes), _day(m.pulled_at), m.licence, m.source.split(",")[0]) for m in stored]
    rows += [(e.name, size(e.bytes), "not pulled", e.licence, e.source.split(",")[0]) for e in missing]
    print_table(("NAME", "SIZE>", "PULLED", "LICENCE", "SOURCE"), rows)


def _day(ts: float) -> str:
    return time.strftime("%Y-%m-%d", time.localtime(ts))
