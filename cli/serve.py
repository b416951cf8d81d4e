"""`baseload serve`: settings, model, engine, router and ledger put together, and the HTTP server over them."""

from pathlib import Path
from typing import Annotated

import typer

from .common import fail_cleanly


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
    from ..server.settings import load

    given = {
        "server.host": host,
        "server.port": port,
        "models.serve": tuple(model) if model else None,
        "router.air_gap": air_gap or None,
    }
    settings, _ = load(config, {key: value for key, value in given.items() if value is not None})
    run(settings)
