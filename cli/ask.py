"""`baseload ask`: one question, one answer."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from .common import DEFAULT_URL, fail_cleanly


@fail_cleanly
def ask(
    question: Annotated[list[str] | None, typer.Argument(help="The question; what is piped in is put after it.")] = None,
    model: Annotated[str, typer.Option(help="Which model, as the server names it.")] = "auto",
    system: Annotated[str | None, typer.Option(help="What the model is told first.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="The answer's longest length.")] = 1024,
    temperature: Annotated[float | None, typer.Option(min=0, max=2, help="0 for the likeliest answer.")] = None,
    url: Annotated[str, typer.Option(help="The server.")] = DEFAULT_URL,
) -> None:
    """Ask one question and print the answer as it comes."""
    from . import remote

    piped = "" if sys.stdin.isatty() else sys.stdin.read()
    text = "\n\n".join(part for part in (" ".join(question or ()), piped.strip()) if part)
    if not text:
        raise typer.BadParameter("nothing was asked; write a question or pipe one in")
    messages = [remote.message("system", system)] if system else []
    asked = remote.request(model, [*messages, remote.message("user", text)], max_tokens, temperature)
    said = remote.answer(url, asked, remote.show)
    if not said.endswith("\n"):
        print()
