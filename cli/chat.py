"""`baseload chat`: a conversation on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from ..wire.errors import BaseloadError
from .common import DEFAULT_URL, fail_cleanly

if TYPE_CHECKING:
    from ..wire.chat import Message

HELP = "/reset forgets the conversation, /exit (or Ctrl-D) leaves, Ctrl-C stops an answer."


@fail_cleanly
def chat(
    model: Annotated[str, typer.Option(help="Which model, as the server names it.")] = "auto",
    system: Annotated[str | None, typer.Option(help="What the model is told first.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="The longest length of an answer.")] = 1024,
    temperature: Annotated[float | None, typer.Option(min=0, max=2, help="0 for the likeliest answers.")] = None,
    url: Annotated[str, typer.Option(help="The server.")] = DEFAULT_URL,
) -> None:
    """Talk with a running server."""
    from . import remote

    console = Console(highlight=False)
    console.print(f"[dim]{model} at {url}. {HELP}[/dim]")
    begin = [remote.message("system", system)] if system else []
    said = list(begin)
    while (text := _prompt(console)) != "/exit":
        if text == "/reset":
            said = list(begin)
            console.print("[dim]forgotten[/dim]")
        elif text.startswith("/"):
            console.print(f"[dim]{HELP}[/dim]")
        elif text:
            said = _turn(console, url, said, text, model, max_tokens, temperature)


def _prompt(console: Console) -> str:
    try:
        return console.input("[bold cyan]> [/bold cyan]").strip()
    except EOFError:
        console.print()
        return "/exit"


def _turn(
    console: Console, url: str, said: list[Message], text: str, model: str, max_tokens: int | None, temperature: float | None
) -> list[Message]:
    """The conversation after one more question and its answer; unchanged if there was none."""
    from . import remote

    asked = [*said, remote.message("user", text)]
    heard: list[str] = []

    def hear(piece: str) -> None:
        heard.append(piece)
        remote.show(piece)

    try:
        remote.answer(url, remote.request(model, asked, max_tokens, temperature), hear)
    except KeyboardInterrupt:
        console.print("\n[dim]stopped[/dim]")
    except BaseloadError as error:
        console.print(f"\n{error.message}", style="red", markup=False)
        return said
    print()
    return [*asked, remote.message("assistant", "".join(heard))] if heard else said
