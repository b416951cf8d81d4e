"""What `baseload ledger report` prints of the machine's books."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from .common import print_table

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from ..ledger.beside import Beside
    from ..ledger.groups import Group, Heavy
    from ..ledger.live import Books, Part
    from ..ledger.machine_cost import Hardware
    from ..ledger.retail import Overrides


def collect(
    engine: Engine,
    since: float,
    until: float,
    hardware: Hardware | None,
    by: str,
    reference: str | None,
    own: Overrides | None,
) -> dict[str, Any]:
    """The books, their groups and users, and the supplier's price beside them, each as the ledger's dataclass. Raises NotFound
    where `reference` has no price."""
    from ..ledger.beside import beside
    from ..ledger.groups import groups, heavy
    from ..ledger.live import books
    from ..ledger.machine_cost import hour
    from ..wire.errors import NotFound

    found = books(engine, since, until, hardware)
    made: dict[str, Any] = {
        "machine": hour(hardware, found.energy.mean_watts, found.usd_per_hour) if hardware else None,
        "books": found,
        "groups": groups(engine, by, found),
        "heavy_users": heavy(engine, found),
        "beside": None,
    }
    if reference:
        supplier, _, model = reference.partition("/")
        made["beside"] = beside(engine, found, supplier, model, own)
        if made["beside"] is None:
            raise NotFound(f"No price is known for {reference!r}, or nothing was answered here.")
    return made


def as_json(made: dict[str, Any], by: str) -> dict[str, Any]:
    """`collect`'s findings as plain values."""
    plain = {name: asdict(found) for name, found in made.items() if found is not None and name != "groups"}
    return {"machine": None, "beside": None, **plain, "by": by, "groups": [asdict(group) for group in made["groups"]]}


def show(made: dict[str, Any], by: str) -> None:
    """`collect`'s findings as tables."""
    books: Books = made["books"]
    print()
    _tokens(books)
    print()
    _groups(made["groups"], by)
    _heavy(made["heavy_users"])
    _beside(made["beside"])


def _tokens(books: Books) -> None:
    columns = ("LOCAL", "TOKENS>", "DEVICE-TIME>", "$>", "USAGE-$/MTOK>", "ALLOCATION-$/MTOK>")
    parts: Sequence[tuple[str, Part]] = (
        ("input", books.input),
        ("cached", books.cached),
        ("output", books.output),
        ("unanswered", books.other),
    )
    rows = [_part(name, part) for name, part in parts]
    rows.append(("idle", "-", f"{books.idle_s:,.1f} s", _usd(books.idle_usd), "-", "-"))
    total = _part("all", books.total)
    rows.append((*total[:2], f"{books.window_s:,.1f} s", _usd(books.machine_usd), *total[4:]))
    print_table(columns, rows)
    hour, energy = books.usd_per_hour, books.energy
    print(f"C_h = {_usd(hour.value)} ({hour.known}: {hour.source}); busy {books.utilisation:.1%} of the time")
    if energy.joules is not None and energy.mean_watts is not None:
        idle = "unknown at rest" if energy.idle_watts is None else f"{energy.idle_watts:.1f} W at rest"
        doubt = f", {energy.valid_s:,.0f} s of them without doubt" if energy.known == "measured" else ""
        print(
            f"energy: {energy.joules / 3.6e6:.4f} kWh in {energy.covered_s:,.0f} s{doubt} ({energy.known}); "
            f"{energy.mean_watts:.1f} W on average, {idle}"
        )
    else:
        print("energy: none is known")


def _part(name: str, part: Part) -> tuple[str, ...]:
    prices = (_usd(part.usage_usd), _usd(part.allocation_usd))
    return (name, f"{part.tokens:,}" if part.tokens else "-", f"{part.device_s:,.1f} s", _usd(part.usd), *prices)


def _groups(groups: Sequence[Group], by: str) -> None:
    columns = (by.upper(), "REQUESTS>", "TOKENS>", "DEVICE-TIME>", "KJ>")
    columns += ("USAGE-$>", "ALLOCATION-$>", "SUPPLIERS-$>", "COST-$>")
    rows = [
        (
            group.group,
            f"{group.requests:,}",
            f"{group.tokens:,}",
            f"{group.device_s:,.1f} s",
            "-" if group.joules is None else f"{group.joules / 1000:.2f}",
            _usd(group.usage_usd),
            _usd(group.allocation_usd),
            _usd(group.supplier_usd),
            "unpriced" if group.cost_usd is None else _usd(group.cost_usd),
        )
        for group in groups
    ]
    print_table(columns, rows)


def _heavy(heavy: Heavy) -> None:
    if heavy.p50_usd is None:
        print(f"\ncost to serve by user and week: {heavy.note}")
        return
    print(
        f"\ncost to serve a user for a week: p50 {_usd(heavy.p50_usd)}, p95 {_usd(heavy.p95_usd)}, "
        f"p99 {_usd(heavy.p99_usd)} over {heavy.user_weeks} user-weeks; the dearest 1% of {heavy.users} users take "
        f"{heavy.top_share or 0:.1%}; week on week {_times(heavy.trend)}" + (f"; {heavy.note}" if heavy.note else "")
    )
    rows = [(user.user, _usd(user.cost_usd), str(len(user.weeks)), _times(user.trend)) for user in heavy.dearest]
    print_table(("USER", "COST-$>", "WEEKS>", "TREND>"), rows)


def _beside(beside: Beside | None) -> None:
    if beside is None:
        return
    percent = ["-" if x is None else f"{x:.1%}" for x in (beside.margin, beside.break_even_utilisation)]
    print(
        f"\n{beside.supplier}/{beside.model} ({beside.source}): {beside.answers:,} local answers would have cost "
        f"{_usd(beside.avoided_usd)} there; saved {_usd(beside.saving_usd)}, margin {percent[0]}, "
        f"break-even at {percent[1]} busy; assumed: as many tokens."
    )


def _usd(value: float | None) -> str:
    return "-" if value is None else f"${value:.6f}"


def _times(trend: float | None) -> str:
    return "-" if trend is None else f"x{trend:.2f}"
