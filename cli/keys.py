"""`baseload keys`: make, list and revoke virtual keys, and say what each may spend. Works beside a running server."""

from __future__ import annotations

import time
from dataclasses import asdict
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .books import Db, Json, ledger_at
from .common import fail, fail_cleanly, print_json, print_table

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from ..ledger.budgets import Budget
    from ..ledger.keys import Key

app = typer.Typer(no_args_is_help=True)

Words = list[str] | None
Models = Annotated[Words, typer.Option("--model", help="A model it may ask for; as often as needed. Else any.")]
Suppliers = Annotated[Words, typer.Option("--supplier", help="A supplier it may use; as often as needed. Else any.")]
Classes = Annotated[Words, typer.Option("--data-class", help="A class of data it may send; as often as needed. Else any.")]
Id = Annotated[str, typer.Argument(help="The key's id, as `baseload keys list` shows it.")]


@app.command()
@fail_cleanly
def create(
    name: Annotated[str, typer.Argument(help="Whose key it is, or what it is for.")],
    model: Models = None,
    supplier: Suppliers = None,
    local: Annotated[bool, typer.Option("--local", help="It may use no supplier.")] = False,
    data_class: Classes = None,
    rpm: Annotated[int | None, typer.Option(min=1, help="Requests in a minute.")] = None,
    tpm: Annotated[int | None, typer.Option(min=1, help="Tokens in a minute, of prompts and answers.")] = None,
    day: Annotated[float | None, typer.Option(min=0, help="US dollars that it may spend at suppliers in a UTC day.")] = None,
    total: Annotated[float | None, typer.Option(min=0, help="And ever.")] = None,
    admin: Annotated[bool, typer.Option("--admin", help="It may read metrics and everybody's requests.")] = False,
    db: Db = None,
    as_json: Json = False,
) -> None:
    """Make a key. Its secret is shown this once; the ledger keeps a hash. From the first key on everybody needs one."""
    from ..ledger import budgets, keys, scopes

    words = [f"{kind}:{value}" for kind, values in (("model", model), ("supplier", supplier), ("data", data_class))
             for value in values or ()]  # fmt: skip
    words += [f"{kind}:{n}" for kind, n in (("rpm", rpm), ("tpm", tpm)) if n]
    words += [word for word, on in (("local", local), ("admin", admin)) if on]
    try:
        scopes.parse(words)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    engine = _opened(db)
    key, secret = keys.create(engine, name, words)
    for period, usd in (("day", day), ("total", total)):
        if usd is not None:
            budgets.put(engine, "key", key.id, period, _exact(usd))
    if as_json:
        print_json({**asdict(key), "secret": secret})
    else:
        print(f"{secret}\n\nThe key {key.id} of {name!r}. Keep the line above: it is not shown again.")


@app.command("list")
@fail_cleanly
def list_keys(db: Db = None, as_json: Json = False) -> None:
    """All keys, revoked ones too, with their scopes and what they have spent today and in total."""
    from ..ledger import keys

    engine = _opened(db)
    found, money = keys.listed(engine), _money(engine)
    if as_json:
        print_json([{**asdict(key), "budgets": [_plain(b) for b in money.get(("key", key.id), [])]} for key in found])
        return
    print_table(
        ("ID", "NAME", "BEGINS", "SCOPES", "BUDGETS", "MADE"), [_row(key, money.get(("key", key.id), [])) for key in found]
    )


@app.command()
@fail_cleanly
def revoke(id: Id, db: Db = None) -> None:
    """End a key. A running server refuses it within a second; what it has asked stays in the books."""
    from ..ledger import keys

    if not keys.revoke(_opened(db), id):
        fail(f"There is no key {id} that still holds.")
    print(f"The key {id} opens nothing any more.")


@app.command()
@fail_cleanly
def budget(
    key: Annotated[
        str, typer.Argument(help="A key's id; none: the budget is a job's or everybody's.", show_default=False)
    ] = "",
    job: Annotated[str, typer.Option(help="The budget of this job.")] = "",
    everybody: Annotated[bool, typer.Option("--all", help="The budget of all requests together.")] = False,
    day: Annotated[str | None, typer.Option(help="US dollars in a UTC day, or `none` to lift the limit.")] = None,
    total: Annotated[str | None, typer.Option(help="US dollars in total, or `none`.")] = None,
    db: Db = None,
    as_json: Json = False,
) -> None:
    """Say what a key, a job or everybody may spend at suppliers, and show what is held and spent. Alone: all budgets."""
    from ..ledger import budgets, keys

    engine = _opened(db)
    chosen = [("key", key)] * bool(key) + [("job", job)] * bool(job) + [("all", "")] * everybody
    limits = [(period, text) for period, text in (("day", day), ("total", total)) if text is not None]
    if len(chosen) > 1 or (limits and not chosen):
        raise typer.BadParameter("name one of a key, --job and --all")
    if key and key not in {known.id for known in keys.listed(engine)}:
        fail(f"There is no key {key}.")
    for period, text in limits:
        kind, name = chosen[0]
        if text == "none":
            budgets.remove(engine, kind, name, period)
        else:
            budgets.put(engine, kind, name, period, _amount(text))
    found = [b for b in budgets.listed(engine) if not chosen or (b.kind, b.name) == chosen[0]]
    if as_json:
        print_json([_plain(b) for b in found])
        return
    rows = [(b.kind, b.name, b.period, f"{b.limit_usd:f}", f"{b.held_usd:f}", f"{b.spent_usd:f}") for b in found]
    print_table(("OF", "NAME", "PERIOD", "LIMIT $>", "HELD $>", "SPENT $>"), rows)


def _opened(db: str | None) -> Engine:
    """The ledger, made if there is none yet. Raises LedgerError."""
    from sqlalchemy.exc import SQLAlchemyError

    from ..ledger.database import connect, prepare, unusable

    engine = connect(ledger_at(db))
    try:
        prepare(engine)
    except (SQLAlchemyError, OSError) as error:
        raise unusable(engine, error) from error
    return engine


def _amount(text: str) -> Decimal:
    try:
        amount = Decimal(text)
    except ArithmeticError as error:
        raise typer.BadParameter(f"{text!r} is no amount of US dollars") from error
    if not amount.is_finite() or not 0 <= amount < 10**9:
        raise typer.BadParameter(f"{text!r} is no amount of US dollars")
    return amount


def _exact(usd: float) -> Decimal:
    return _amount(str(usd))


def _money(engine: Engine) -> dict[tuple[str, str], list[Budget]]:
    from ..ledger import budgets

    grouped: dict[tuple[str, str], list[Budget]] = {}
    for one in budgets.listed(engine):
        grouped.setdefault((one.kind, one.name), []).append(one)
    return grouped


def _plain(of: Budget) -> dict[str, Any]:
    return {**asdict(of), "limit_usd": float(of.limit_usd), "held_usd": float(of.held_usd), "spent_usd": float(of.spent_usd)}


def _row(key: Key, money: list[Budget]) -> tuple[str, ...]:
    spent = ", ".join(f"{b.period} {b.spent_usd + b.held_usd:f} of {b.limit_usd:f}" for b in money)
    made = time.strftime("%Y-%m-%d", time.gmtime(key.created_ts))
    scopes = "revoked" if key.revoked_ts else ", ".join(key.scopes) or "everything but admin"
    return (key.id, key.name, f"{key.prefix}...", scopes, spent, made)
