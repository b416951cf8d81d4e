"""`baseload deploy`: servers on more machines than this one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from .common import fail_cleanly

app = typer.Typer(no_args_is_help=True)


@app.callback()
def _deploy() -> None:
    """Run replicas on a cluster."""


@app.command()
@fail_cleanly
def ray(
    config: Annotated[Path | None, typer.Option(help="TOML; else ./baseload.toml, else the store's.")] = None,
    address: Annotated[str, typer.Option(help="The cluster's, as `ray start --head` prints it.")] = "auto",
    model: Annotated[list[str] | None, typer.Option(help="Model to serve, in the store of every node.")] = None,
    replicas: Annotated[int, typer.Option(help="How many engines.", min=1)] = 2,
    cpus: Annotated[float, typer.Option(help="CPUs of each.", min=0)] = 1.0,
    gpus: Annotated[float, typer.Option(help="GPUs of each.", min=0)] = 0.0,
    host: Annotated[str | None, typer.Option(help="Address that the proxies bind; wider than loopback needs a key.")] = None,
    port: Annotated[int | None, typer.Option(help="Their port.")] = None,
    head_only: Annotated[bool, typer.Option("--head-only", help="One proxy, on the head; else one on every node.")] = False,
    down: Annotated[bool, typer.Option("--down", help="Take the replicas off the cluster instead.")] = False,
) -> None:
    """Run replicas on Ray Serve, with one ledger on PostgreSQL. Returns when they answer; they stay."""
    from ..server.ray_replica import Deployment, deploy, withdraw
    from ..server.settings import load

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if down:
        withdraw(address)
        print("The replicas are gone.")
        return
    given = {"server.host": host, "server.port": port, "models.serve": tuple(model) if model else None}
    settings, _ = load(config, {key: value for key, value in given.items() if value is not None})
    print(deploy(settings, Deployment(replicas, cpus, gpus, not head_only), address))
