"""`baseload ledger whatif`: the recorded traffic under another policy, with another model or machine, at other prices."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .books import Db, Json, Since, begins, ledger_at
from .common import fail_cleanly, print_json, print_table

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from ..ledger.outcomes import TrainingRow
    from ..ledger.tasks import PerAccepted
    from ..ledger.whatif import Course, Side, Terms
    from ..server.settings import Settings

COLUMNS = (
    "",
    "TASKS>",
    "ACCEPTED>",
    "NOT-KNOWN>",
    "SUPPLIERS-$>",
    "LOCAL-$>",
    "UNPRICED>",
    "$/ACCEPTED>",
    "FROM>",
    "TO>",
    "NOTE",
)


@fail_cleanly
def whatif(
    policy: Annotated[
        Path | None, typer.Option(help="Settings (TOML) whose [router], rules and suppliers are to hold.")
    ] = None,
    model: Annotated[str, typer.Option(metavar="SUPPLIER/MODEL", help="Who makes all suppliers' answers.")] = "",
    hardware: Annotated[Path | None, typer.Option(help="What the machine costs, as TOML.")] = None,
    prices: Annotated[Path | None, typer.Option(help="Prices, as TOML; they go before the listed ones.")] = None,
    since: Since = None,
    db: Db = None,
    as_json: Json = False,
) -> None:
    """What the recorded requests cost, and would cost then; what the records can't tell is counted, not guessed."""
    from ..ledger.ledger import open_for_reading
    from ..ledger.outcomes import training_rows
    from ..ledger.whatif import as_recorded, compare
    from ..server.settings import load

    settings, _ = load(policy, {})
    books = open_for_reading(ledger_at(db))
    rows = list(training_rows(books, begins(since)))
    courses = _rerouted(books, rows, settings) if policy else [as_recorded(row) for row in rows]
    found = compare(zip(rows, courses, strict=True), _terms(settings, model, hardware, prices))
    if as_json:
        print_json(asdict(found))
        return
    print_table(COLUMNS, [_line("recorded", found.recorded, found.recorded.best), *_then(found.then)])
    for title, counted in (("Not known from the records", found.unknown), ("Assumed", found.assumed)):
        for why, n in counted.items():
            print(f"{title}, {n:,} times: {why}.")


def _terms(settings: Settings, model: str, hardware: Path | None, prices: Path | None) -> Terms:
    """Raises BadRequest, in one line."""
    from ..ledger.machine_cost import load as profile
    from ..ledger.machine_cost import usd_per_hour
    from ..ledger.retail import overrides
    from ..ledger.whatif import Terms
    from ..router.suppliers.profile import load_profiles
    from ..server.build import CONFIGS
    from ..wire.errors import BadRequest

    if model and "/" not in model:
        raise BadRequest("--model names a supplier's model: supplier/model.")
    try:
        own = overrides(prices) if prices else None
        hour = usd_per_hour(profile(hardware)).value if hardware else None
    except (OSError, ValueError, TypeError) as error:
        raise BadRequest(f"It cannot be used: {error}") from error
    if hardware and hour is None:
        raise BadRequest(f"{hardware}: without its power the machine's cost is not known.")
    profiles = load_profiles(CONFIGS / "suppliers", settings.suppliers)
    return Terms(own, hour, model, {name: p.price_provider for name, p in profiles.items() if p.price_provider})


def _rerouted(books: Engine, rows: list[TrainingRow], settings: Settings) -> list[Course]:
    from ..ledger.texts import kept
    from ..router.policy import Rung
    from ..router.reroute import Places, course
    from ..router.suppliers.profile import load_profiles
    from ..server.build import CONFIGS, policy_of
    from ..wire import neutral
    from .serve import name_of

    profiles = load_profiles(CONFIGS / "suppliers", settings.suppliers)
    rungs = {model.id: Rung(model.id, model, name) for name, profile in profiles.items() for model in profile.models}
    places = Places(rungs, [name_of(model) for model in settings.models.serve])
    texts, rules = kept(books, [row.request_id for row in rows]), policy_of(settings)
    asked = {name: neutral.decode(text.asked) for name, text in texts.items() if text.asked}
    return [course(row, rules, places, asked.get(row.request_id)) for row in rows]


def _then(side: Side) -> list[tuple[str, ...]]:
    if not side.unknown:
        return [_line("then", side, side.best)]
    n = f"{side.unknown:,}"
    return [
        _line(f"then, were all {n} accepted", side, side.best),
        _line(f"then, were none of the {n} accepted", side, side.worst),
    ]


def _line(title: str, side: Side, ratio: PerAccepted | None) -> tuple[str, ...]:
    each = (ratio.usd, ratio.low, ratio.high) if ratio else (None, None, None)
    counts = (f"{n:,}" for n in (side.tasks, side.accepted, side.unknown))
    bill = (_usd(side.supplier_usd), _usd(side.local_usd), f"{side.unpriced:,}")
    return (title, *counts, *bill, *map(_usd, each), ratio.note if ratio else "nothing was asked")


def _usd(value: float | None) -> str:
    return "-" if value is None else f"{value:.6f}"
