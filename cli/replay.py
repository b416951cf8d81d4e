"""`baseload replay`: an answer made again from its receipt, and compared bit for bit. No server is needed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .books import Db, Json, ledger_at
from .common import fail_cleanly, open_store, print_json

if TYPE_CHECKING:
    from ..harness.recorded import Case
    from ..router.replay import Replay
    from ..runtime.loading import Loader, OpenedModel
    from ..server.settings import Settings

Config = Annotated[Path | None, typer.Option(help="TOML; else ./baseload.toml, else the store's.")]


@fail_cleanly
def replay(
    request_id: Annotated[list[str], typer.Argument(metavar="ID...", help="As the header x-baseload-request-id named it.")],
    text: Annotated[Path | None, typer.Option(help="The request's JSON body, where its text was not kept.")] = None,
    model: Annotated[Path | None, typer.Option(help="The model's file; else the settings' or the store's of its name.")] = None,
    config: Config = None,
    db: Db = None,
    as_json: Json = False,
) -> None:
    """Make answers again, and prove them bit for bit or say what has changed. Exit code 1 if one is not the same."""
    from ..harness.job import load_jobs
    from ..harness.recorded import cases
    from ..ledger.ledger import open_for_reading
    from ..runtime.store import default_root
    from ..server.build import CONFIGS
    from ..server.settings import load

    settings, _ = load(config, {})
    books, jobs = open_for_reading(ledger_at(db)), load_jobs([CONFIGS / "jobs", default_root() / "jobs"])
    found = [case for name in request_id for case in cases(books, name, text, jobs)]
    by_model: dict[str, list[Case]] = {}
    for case in found:
        by_model.setdefault(case.attempt["model"], []).append(case)
    done = [
        pair
        for name, some in by_model.items()
        for pair in zip(some, _again(some, settings, model or _file(name, settings, config), name), strict=True)
    ]
    if as_json:
        print_json([{"request_id": case.request_id, "model": case.attempt["model"], **asdict(r)} for case, r in done])
    else:
        _tell(done)
    if any(r.verdict != "same" for _, r in done):
        raise typer.Exit(1)


def _tell(done: Sequence[tuple[Case, Replay]]) -> None:
    for case, found in done:
        if len(done) == 1 or found.verdict != "same":
            which = f"{case.request_id}, try {case.attempt['n'] + 1} by {case.attempt['model']}"
            where = "" if found.at is None else f": it was {found.then} and is {found.now}"
            word = "refused, " if found.verdict == "refused" else ""
            length = f" ({found.tokens} tokens)" if found.verdict == "same" else ""
            print(f"{which}: {word}{found.why}{where}{length}")
    if len(done) > 1:
        print(f"{sum(r.verdict == 'same' for _, r in done)} of {len(done)} answers are bit for bit the same.")


def _file(name: str, settings: Settings, config: Path | None) -> Path:
    """The file of the model that is served under a name. Raises BaseloadError."""
    from .serve import name_of

    served = next((model for model in settings.models.serve if name_of(model) == name), name)
    return open_store(config).resolve(served)


def _again(cases: Sequence[Case], settings: Settings, path: Path, name: str) -> list[Replay]:
    """Each of one model's, alone, one after the other. The store of pages is left out, so that all of it is computed."""
    from ..router.replay import refusal
    from ..runtime.loading import Loader
    from ..server.build import load_options

    loader = Loader(replace(load_options(settings.engine), kv_disk=None))
    try:
        opened = loader.open(path)
        now = opened.model.digest
        if all(case.attempt["model_digest"] != now for case in cases):  # nothing of it need be loaded
            return [refusal(case.attempt, {"model": (case.attempt["model_digest"], now)}) for case in cases]
        return asyncio.run(_run(cases, settings, loader, opened, name))
    finally:
        loader.close()


async def _run(cases: Sequence[Case], settings: Settings, loader: Loader, opened: OpenedModel, name: str) -> list[Replay]:
    from ..router.replay import replay as once
    from ..runtime.catalogue import catalogue
    from ..runtime.local_backend import LocalBackend, always

    known = catalogue().get(name)
    wishes = known.sampling if known else None
    engine = await asyncio.to_thread(loader.start, opened)
    backend = LocalBackend(
        opened.model, always(engine), name, opened.longest, sampling=wishes, max_output=settings.engine.max_output
    )
    try:
        return [await once(case.attempt, case.asked, case.recorded, backend) for case in cases]
    finally:
        backend.close()
        engine.close()
