"""`baseload`: the first word chooses the command, and only that command's file is imported."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import typer

# name -> what it does; `cli/<name>.py` holds the function of that name, or a Typer `app` where it has commands of its own
COMMANDS = {
    "serve": "Serve a local model over OpenAI's API, with `auto` routing to suppliers.",
    "chat": "Talk with a running server.",
    "ask": "Ask one question and print the answer as it comes.",
    "pull": "Fetch a model into the store and verify it.",
    "models": "List the models in the store and those known by name.",
    "rm": "Remove a model from the store.",
    "ps": "Show what a running server serves and how busy it is.",
    "keys": "Make, list and revoke virtual keys, and say what each may spend.",
    "ledger": "Show what was asked, how it was answered and what it cost.",
    "replay": "Make an answer again from its receipt, and compare it bit for bit.",
    "route": "Show what the router has learned and why a request ran where it ran.",
    "config": "Show the settings and where each comes from.",
    "doctor": "Check this machine, or one model file.",
    "deploy": "Run replicas on a cluster.",
    "bench": "Measure a server.",
}


def build(chosen: str | None) -> typer.Typer:
    """The command line with `chosen` in full and of the others no more than their names and help."""
    app = typer.Typer(name="baseload", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
    app.callback()(_root)
    for name, help in COMMANDS.items():
        found = _load(name) if name == chosen else _absent
        if isinstance(found, typer.Typer):
            app.add_typer(found, name=name, help=help)
        else:
            app.command(name, help=help)(found)
    return app


def _version(on: bool) -> None:
    if on:
        try:
            print(version("baseload"))
        except PackageNotFoundError:  # run from a checkout
            print("0 (not installed)")
        raise typer.Exit


def _root(
    show_version: Annotated[
        bool, typer.Option("--version", help="Print the version and leave.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    """Run language models on your own machine, and buy from outside only what they cannot do."""


def _absent() -> None:
    """Stands in the list of commands for one that was not chosen."""


def _load(name: str) -> typer.Typer | Callable[..., None]:
    module = import_module(f".{name}", __package__)
    return getattr(module, "app", None) or getattr(module, name)


def main(argv: list[str] | None = None) -> None:
    """Run the command line and exit: 0 ok, 1 failed, 2 wrong usage."""
    words = sys.argv[1:] if argv is None else argv
    first = next((word for word in words if not word.startswith("-")), None)
    build(first)(words, prog_name="baseload")


if __name__ == "__main__":
    main()
