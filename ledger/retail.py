"""What tokens cost at a supplier's list price: dated, tiered, cached reads and writes apart. Nothing is fetched.

The prices are those of the genai-prices package, as installed; an operator's file goes before them.
"""

from __future__ import annotations

import logging
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from importlib.metadata import version
from pathlib import Path

import genai_prices
from genai_prices import data_snapshot

log = logging.getLogger("baseload.ledger")

_SOURCE = f"genai-prices {version('genai-prices')}"  # once: reading it takes longer than the sum
_PER_MTOK = ("input", "output", "cache_read", "cache_write")
Overrides = Mapping[str, Mapping[str, Decimal]]  # "supplier/model" -> US dollars for a million tokens of each kind


@dataclass(frozen=True)
class Tokens:
    """Tokens of calls; the cached ones are part of the prompt's."""

    prompt: int
    completion: int
    cache_read: int = 0
    cache_write: int = 0


@dataclass(frozen=True)
class Quote:
    """What these tokens cost there, exactly, and whose word that is."""

    supplier: str
    model: str
    usd: Decimal
    source: str


def overrides(path: Path) -> dict[str, dict[str, Decimal]]:
    """An operator's prices: `["supplier/model"]` tables of input, output, and perhaps cache_read and cache_write, in US dollars
    for a million tokens. What is cached costs as input where nothing is said. Raises ValueError naming what is wrong."""
    found: dict[str, dict[str, Decimal]] = {}
    for name, table in tomllib.loads(path.read_text(), parse_float=Decimal).items():
        if not isinstance(table, dict) or "/" not in name:
            raise ValueError(f'{path}: {name} is no ["supplier/model"] table')
        if set(table) - set(_PER_MTOK) or not {"input", "output"} <= set(table):
            raise ValueError(f"{path}: {name} needs input and output, and may have cache_read and cache_write")
        if not all(_is_price(p) for p in table.values()):
            raise ValueError(f"{path}: a price of {name} is not an amount of dollars")
        found[name] = {kind: Decimal(table.get(kind, table["input"])) for kind in _PER_MTOK}
    return found


def _is_price(value: object) -> bool:
    if not isinstance(value, int | Decimal) or isinstance(value, bool):
        return False
    return Decimal(value).is_finite() and 0 <= value < 10**9


def quote(supplier: str, model: str, tokens: Tokens, at: datetime | None = None, own: Overrides | None = None) -> Quote | None:
    """The price on that day (None: today). None where no price is known: an unpriced model is never taken as free."""
    if mine := (own or {}).get(f"{supplier}/{model}"):
        fresh = tokens.prompt - tokens.cache_read - tokens.cache_write
        counts = {"input": fresh, "output": tokens.completion}
        counts |= {"cache_read": tokens.cache_read, "cache_write": tokens.cache_write}
        return Quote(supplier, model, sum((mine[kind] * n for kind, n in counts.items()), Decimal(0)) / 10**6, "declared")
    counted = genai_prices.Usage(
        input_tokens=tokens.prompt,
        output_tokens=tokens.completion,
        cache_read_tokens=tokens.cache_read,
        cache_write_tokens=tokens.cache_write,
    )
    try:
        found = genai_prices.calc_price(
            counted, model_ref=model, provider_id=supplier, genai_request_timestamp=at or datetime.now(UTC)
        )
    except (LookupError, ValueError) as error:
        log.debug("no price for %s/%s: %s", supplier, model, error)
        return None
    return Quote(supplier, model, found.total_price, _SOURCE)


def total(supplier: str, model: str, calls: Sequence[Tokens], own: Overrides | None = None) -> Quote | None:
    """Many calls at today's price; each by itself, since a tier is reached by one long prompt and not by many short ones."""
    quotes = [quote(supplier, model, tokens, own=own) for tokens in calls]
    known = [found for found in quotes if found is not None]
    if not known or len(known) < len(quotes):
        return None
    return Quote(supplier, model, sum((found.usd for found in known), Decimal(0)), known[0].source)


def cheapest(model: str, calls: Sequence[Tokens]) -> Quote | None:
    """The least that any listed supplier takes for these calls of the same model, by the last part of its name.

    Offers for nothing don't count: they are limited, and no price.
    """
    wanted = model.rpartition("/")[2]
    quotes: list[Quote] = []
    for provider in data_snapshot.get_snapshot().providers:
        for offered in provider.models:
            if offered.id.rpartition("/")[2] == wanted:
                found = total(provider.id, offered.id, calls)
                quotes += [found] if found and found.usd > 0 else []
    return min(quotes, key=lambda q: (q.usd, q.supplier)) if quotes else None
