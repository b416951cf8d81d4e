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
    engine: Annotated[str | None, typer.Option(help="What computes: baseload, or vllm in an environment of its own.")] = None,
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
        "models.engine": engine,
    }
    settings, origins = load(config, {key: value for key, value in given.items() if value is not None})
    check_bind(settings.server)  # before a pull, which can take minutes
    # A front for other servers loads no model of its own unless it is told to.
    serve = () if settings.replicas and origins["models.serve"] == "default" else settings.models.serve
    if settings.models.engine == "vllm":
        files = [(name_of(name), Path(name)) for name in serve]  # a folder, or a name in the hub's cache: vLLM looks
    else:
        files = [(name_of(name), fetched(name, config, settings.router.air_gap)) for name in serve]

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
