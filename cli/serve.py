"""`baseload serve`: the model at hand, and the HTTP server over it."""

from pathlib import Path
from typing import Annotated

import typer

from .common import fail_cleanly, open_store, progress_bar
from .door import leave


@fail_cleanly
def serve(
    config: Annotated[Path | None, typer.Option(help="TOML; else ./baseload.toml, else the store's.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to bind; wider than loopback needs a key.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to bind.")] = None,
    model: Annotated[list[str] | None, typer.Option(help="Model name or file to serve; may be given again.")] = None,
    air_gap: Annotated[bool, typer.Option("--air-gap", help="Nothing leaves this machine.")] = False,
) -> None:
    """Serve a local model over OpenAI's API, with `auto` routing to suppliers."""
    from ..server.run import run
    from ..server.security import check_bind
    from ..server.settings import load

    given = {
        "server.host": host,
        "server.port": port,
        "models.serve": tuple(model) if model else None,
        "router.air_gap": air_gap or None,
    }
    settings, _ = load(config, {key: value for key, value in given.items() if value is not None})
    check_bind(settings.server)  # before a pull, which can take minutes
    files = [(name_of(name), fetched(name, config, settings.router.air_gap)) for name in settings.models.serve]

    async def services():
        from ..server.build import build_services

        return await build_services(settings, files)

    run(services, settings)


def name_of(model: str) -> str:
    """What a model is called on the wire: its name in the store, or its file's without the ending."""
    return Path(model).stem if model.endswith(".gguf") else Path(model).name


def fetched(model: str, config: Path | None, air_gap: bool) -> Path:
    """The model's file, pulled first if only the catalogue knows it."""
    store = open_store(config)
    with leave(config, air_gap) as may_leave, progress_bar(model) as progress:
        return store.ensure(model, leave=may_leave, progress=progress)
