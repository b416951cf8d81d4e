"""The local answers beside a supplier's price: what was not paid, what that leaves, and how busy the machine must be for it."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Engine, select

from .live import Books
from .machine_cost import break_even_utilisation
from .outcomes import ANSWERS
from .retail import Overrides, Tokens, total
from .schema import attempts, requests


@dataclass(frozen=True)
class Beside:
    """`avoided_usd`: the accepted local answers at that list price, `assumed` that the other model would have taken as many
    tokens. `saving_usd` = avoided - C_h x window, and `margin` is that over what was avoided: what would be earned if the
    answers were sold at the list price. Busy for less than `break_even_utilisation` of its time, the machine is dearer."""

    supplier: str
    model: str
    source: str
    answers: int
    avoided_usd: float
    known: str
    saving_usd: float | None
    margin: float | None
    break_even_utilisation: float | None


def beside(engine: Engine, books: Books, supplier: str, model: str, own: Overrides | None = None) -> Beside | None:
    """None where no price is known or nothing was answered here."""
    c = attempts.c
    query = (
        select(c.prompt_tokens, c.completion_tokens, c.cached_tokens)
        .join_from(attempts, requests, c.request_id == requests.c.id)
        .where(c.backend == "local", c.accepted, c.role.in_(ANSWERS), requests.c.ts >= books.since, requests.c.ts < books.until)
    )
    with engine.connect() as connection:
        calls = [Tokens(row.prompt_tokens, row.completion_tokens, row.cached_tokens) for row in connection.execute(query)]
    found = total(supplier, model, calls, own)
    if found is None:
        return None
    avoided, cost, hour = float(found.usd), books.machine_usd, books.usd_per_hour.value
    saving = None if cost is None else avoided - cost
    busy_h = books.busy_s / 3600
    return Beside(
        supplier,
        model,
        found.source,
        len(calls),
        avoided,
        "assumed",
        saving,
        saving / avoided if saving is not None and avoided else None,
        break_even_utilisation(hour, avoided / busy_h) if hour is not None and busy_h else None,
    )
