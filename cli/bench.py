"""`baseload bench`: hands its words to a benchmark, which is imported only now."""

from __future__ import annotations

import typer

from .common import fail_cleanly

app = typer.Typer(no_args_is_help=True)
PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


@app.command(context_settings=PASS_ON)
@fail_cleanly
def serving(context: typer.Context) -> None:
    """Load an OpenAI-compatible server: latency, throughput, goodput."""
    from ..benchmarks.serving import main

    raise typer.Exit(main(context.args) or 0)


@app.command(context_settings=PASS_ON)
@fail_cleanly
def beside(context: typer.Context) -> None:
    """Measure several running servers side by side, in turns."""
    from ..benchmarks.beside import main

    raise typer.Exit(main(context.args) or 0)


@app.command(context_settings=PASS_ON)
@fail_cleanly
def structured(context: typer.Context) -> None:
    """Ask for answers by JSON schemas: how many are valid, and how much slower they come."""
    from ..benchmarks.structured import main

    raise typer.Exit(main(context.args) or 0)


@app.command(context_settings=PASS_ON)
@fail_cleanly
def quality(context: typer.Context) -> None:
    """Perplexity of a model on the native kernels beside float32."""
    from ..benchmarks.quality import main

    raise typer.Exit(main(context.args) or 0)


@app.command(context_settings=PASS_ON)
@fail_cleanly
def kernels(context: typer.Context) -> None:
    """Time the native kernels beside this machine's ceilings."""
    from ..benchmarks.kernels import main

    raise typer.Exit(main(context.args) or 0)


@app.command(context_settings=PASS_ON)
@fail_cleanly
def gateway(context: typer.Context) -> None:
    """What the server adds to a supplier's answers, beside asking it directly."""
    from ..benchmarks.gateway import main

    raise typer.Exit(main(context.args) or 0)


@app.command(context_settings=PASS_ON)
@fail_cleanly
def routing(context: typer.Context) -> None:
    """How well a router learned from outcomes chooses between two models."""
    from ..benchmarks.routing import main

    raise typer.Exit(main(context.args) or 0)


@app.command(context_settings=PASS_ON)
@fail_cleanly
def routing_tools(context: typer.Context) -> None:
    """What it wins to buy only the tool calls that fail their check."""
    from ..benchmarks.routing_tools import main

    raise typer.Exit(main(context.args) or 0)


@app.command(context_settings=PASS_ON)
@fail_cleanly
def replay(context: typer.Context) -> None:
    """Replay a recorded workload: Azure's, Mooncake's or the agentic coding trace."""
    from ..benchmarks.replay import main

    raise typer.Exit(main(context.args) or 0)


@app.command(context_settings=PASS_ON)
@fail_cleanly
def ledger(context: typer.Context) -> None:
    """CPU that the books take of each request."""
    from ..benchmarks.ledger_cost import main

    raise typer.Exit(main(context.args) or 0)


@app.command(context_settings=PASS_ON)
@fail_cleanly
def hardware(context: typer.Context) -> None:
    """Measure this machine: ceilings, kernels, tokens a second, dollars at each utilisation."""
    from ..benchmarks.hardware import main

    raise typer.Exit(main(context.args) or 0)


@app.command(context_settings=PASS_ON)
@fail_cleanly
def boxes(context: typer.Context) -> None:
    """Put several machines' hardware reports on one web page."""
    from ..benchmarks.boxes import main

    raise typer.Exit(main(context.args) or 0)


@app.command(context_settings=PASS_ON)
@fail_cleanly
def diff(context: typer.Context) -> None:
    """Compare two reports figure by figure."""
    from ..benchmarks.diff import main

    raise typer.Exit(main(context.args) or 0)


@app.command(context_settings=PASS_ON)
@fail_cleanly
def cost(context: typer.Context) -> None:
    """Price accepted tasks: models by routing policies."""
    from ..benchmarks.cost import main

    raise typer.Exit(main(context.args) or 0)


@app.command(context_settings=PASS_ON)
@fail_cleanly
def meters(context: typer.Context) -> None:
    """Measure one server with three meters: ours, AIPerf and guidellm."""
    from ..benchmarks.meters import main

    raise typer.Exit(main(context.args) or 0)
