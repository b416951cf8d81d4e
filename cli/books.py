"""What the commands that read the books share: which ledger, since when, and in what form."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Annotated

import typer

from .common import ledger_url

if TYPE_CHECKING:
    from ..ledger.machine_cost import Hardware

UNITS = {"m": 60, "h": 3600, "d": 86400, "w": 604800}


def seconds(text: str) -> float:
    """`90m`, `24h`, `7d` in seconds."""
    match = re.fullmatch(r"(\d+)([mhdw])", text)
    if match is None:
        raise typer.BadParameter("write a number and m, h, d or w, as in 24h")
    return int(match[1]) * UNITS[match[2]]


Db = Annotated[str | None, typer.Option(help="The ledger: a file or sqlite:///PATH; else the configured one.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Since = Annotated[float | None, typer.Option(parser=seconds, help="Only the last 24h, 7d, ...", metavar="TIME")]


def begins(since: float | None) -> float:
    """When the last `since` seconds began, in seconds since the epoch; the beginning of time where nothing was said."""
    return time.time() - since if since else 0.0


def hardware_profile(named: str | None) -> Hardware | None:
    """What the machine costs: the profile named, else the configured one, else nobody knows. Raises BadRequest."""
    from ..ledger.machine_cost import profile
    from ..server.settings import load

    return profile(named if named is not None else load(None, {})[0].hardware.profile)


def ledger_at(db: str | None) -> str:
    """A ledger's URL."""
    if db is None:
        return ledger_url()
    return db if "://" in db else f"sqlite:///{db}"
