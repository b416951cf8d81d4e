"""`baseload ledger`: the books."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .books import Db, Json, Since, begins, hardware_profile, ledger_at, seconds
from .common import fail_cleanly, print_json, print_table
from .whatif import whatif

if TYPE_CHECKING:
    from ..ledger.report import Line
    from ..ledger.retail import Overrides

app = typer.Typer(no_args_is_help=True)
app.command()(whatif)
Profile = Annotated[
    str | None,
    typer.Option(help="What the machine costs: a profile's name or a TOML file; else the configured one."),
]
Override = Annotated[Path | None, typer.Option(help="Your own prices, as TOML; they go before the listed ones.")]

COLUMNS = ("ROUTE", "MODEL", "REQUESTS>", "TRIES>", "ACCEPTED>", "TOKENS-IN>", "OUT>", "CACHED>")
COLUMNS += ("TTFT>", "TIME>", "RETAIL-$>", "ESCALATED>")


@app.command()
@fail_cleanly
def report(
    hardware: Profile = None,
    by: Annotated[str, typer.Option(help="key_id, task_class, job or model.")] = "key_id",
    reference: Annotated[
        str | None, typer.Option(metavar="SUPPLIER/MODEL", help="Whose list price to set beside the local work.")
    ] = None,
    override: Override = None,
    since: Since = None,
    db: Db = None,
    as_json: Json = False,
) -> None:
    """Requests, tokens, times and dollars for each route and model; what the machine's hours went on, and for whom."""
    from ..ledger.groups import BY
    from ..ledger.ledger import open_for_reading
    from ..ledger.report import began
    from ..ledger.report import report as make
    from .ledger_report import as_json as plain
    from .ledger_report import collect, show

    if by not in BY:
        raise typer.BadParameter(f"--by is one of {', '.join(BY)}")
    engine, until = open_for_reading(ledger_at(db)), time.time()
    found = make(engine, begins(since))
    start = until - since if since else began(engine)
    machine = hardware_profile(hardware)
    made = None if start is None or start >= until else collect(engine, start, until, machine, by, reference, _own(override))
    if as_json:
        print_json(asdict(found) | (plain(made, by) if made else {}))
        return
    rows = [_row(line, line.route or "-", line.model) for line in found.lines]
    print_table(COLUMNS, [*rows, _row(found.total, "total", "")])
    if made:
        show(made, by)


def _row(line: Line, route: str, model: str) -> tuple[str, ...]:
    counts = (line.requests, line.attempts, line.accepted, line.prompt_tokens, line.completion_tokens, line.cached_tokens)
    times = [f"{s:.3f} s" if s is not None else "-" for s in (line.first_token_s, line.duration_s)]
    money = "unpriced" if line.retail_usd is None else f"{line.retail_usd:.6f}"
    return (route, model, *(f"{n:,}" for n in counts), *times, money, f"{line.escalated:.0%}")


@app.command()
@fail_cleanly
def show(request_id: str, db: Db = None) -> None:
    """One request with its attempts, checks and connections, as JSON."""
    from ..ledger.ledger import open_for_reading
    from ..ledger.report import request
    from ..wire.errors import NotFound

    found = request(open_for_reading(ledger_at(db)), request_id)
    if found is None:
        raise NotFound(f"The ledger knows no request {request_id!r}.")
    print_json(found)


@app.command()
@fail_cleanly
def tasks(
    hardware: Profile = None,
    by: Annotated[str, typer.Option(help="job, task_class, key_id or model.")] = "task_class",
    since: Since = None,
    db: Db = None,
    as_json: Json = False,
) -> None:
    """Dollars for each accepted task, with what was tried in vain."""
    from ..ledger.ledger import open_for_reading
    from ..ledger.machine_cost import usd_per_hour
    from ..ledger.outcomes import training_rows
    from ..ledger.tasks import GROUPS, is_task, per_accepted, task

    if by not in GROUPS:
        raise typer.BadParameter(f"--by is one of {', '.join(GROUPS)}")
    machine = hardware_profile(hardware)
    hour = usd_per_hour(machine) if machine else None
    rows = training_rows(open_for_reading(ledger_at(db)), begins(since))
    found = per_accepted(task(row, hour.value if hour else None, GROUPS[by](row) or "-") for row in rows if is_task(row))
    if as_json:
        print_json({"usd_per_hour": asdict(hour) if hour else None, "by": by, "groups": [asdict(line) for line in found]})
        return
    table = [
        (
            line.group,
            f"{line.tasks:,}",
            f"{line.accepted:,}",
            *(_usd(value) for value in (line.usd, line.low, line.high)),
            line.note,
        )
        for line in found
    ]
    print_table((by.upper(), "TASKS>", "ACCEPTED>", "$/ACCEPTED>", "FROM>", "TO>", "NOTE"), table)
    if hour:
        print(f"C_h = {_usd(hour.value)} ({hour.known}: {hour.source})")


def _own(path: Path | None) -> Overrides | None:
    from ..ledger.retail import overrides
    from ..wire.errors import BadRequest

    try:
        return overrides(path) if path else None
    except (OSError, ValueError) as error:
        raise BadRequest(f"The prices cannot be used: {error}") from error


def _usd(value: float | None) -> str:
    return "-" if value is None else f"${value:.6f}"


@app.command()
@fail_cleanly
def verify(db: Db = None, as_json: Json = False) -> None:
    """Read the whole ledger: is it sound, and do budgets agree with their reservations? Exit code 1 if not."""
    from ..ledger import budgets
    from ..ledger.ledger import check, open_for_reading

    url = ledger_at(db)
    engine, state = open_for_reading(url), check(url)
    wrong = budgets.verify(engine)
    if as_json:
        print_json({"sound": not wrong, "state": state, "wrong": wrong})
    else:
        print("\n".join([state, *wrong]))
    if wrong:
        raise typer.Exit(1)


@app.command()
@fail_cleanly
def export(
    since: Since = None,
    db: Db = None,
) -> None:
    """Every finished request with its attempts and verdicts, one JSON object a line."""
    from ..ledger.ledger import open_for_reading
    from ..ledger.outcomes import training_rows

    for row in training_rows(open_for_reading(ledger_at(db)), begins(since)):
        print(json.dumps(asdict(row), ensure_ascii=False))


@app.command()
@fail_cleanly
def prices(
    reference: Annotated[str, typer.Argument(metavar="SUPPLIER/MODEL", help="Whose list price to set beside the local work.")],
    override: Override = None,
    since: Since = None,
    db: Db = None,
    as_json: Json = False,
) -> None:
    """What the tokens of the local answers would have cost at a supplier, and at the cheapest one for that model."""
    from ..ledger.ledger import open_for_reading
    from ..ledger.outcomes import ANSWERS, training_rows
    from ..ledger.retail import Tokens, cheapest, total
    from ..wire.errors import NotFound

    own = _own(override)
    rows = training_rows(open_for_reading(ledger_at(db)), begins(since))
    local = [a for row in rows for a in row.attempts if a["accepted"] and a["backend"] == "local" and a["role"] in ANSWERS]
    calls = [Tokens(a["prompt_tokens"], a["completion_tokens"], a["cached_tokens"]) for a in local]
    if not calls:
        raise NotFound("The ledger has no local answer of that time.")
    tokens = Tokens(*(sum(counts) for counts in zip(*((c.prompt, c.completion, c.cache_read) for c in calls), strict=True)))
    supplier, _, model = reference.partition("/")
    named = total(supplier, model, calls, own)
    if named is None:
        raise NotFound(f"No price is known for {reference!r}.")
    quotes = [named, *([least] if (least := cheapest(model, calls)) else [])]
    if as_json:
        print_json({"answers": len(local), "tokens": asdict(tokens), "quotes": [asdict(found) for found in quotes]})
        return
    print_table(("SUPPLIER", "MODEL", "RETAIL-$>", "PRICE"), [(q.supplier, q.model, f"{q.usd:.6f}", q.source) for q in quotes])
    print(
        f"{len(local):,} local answers, {tokens.prompt:,} tokens in ({tokens.cache_read:,} cached), {tokens.completion:,} out; "
        "assumed: that model would have taken as many."
    )


@app.command()
@fail_cleanly
def forget(
    request_id: Annotated[str | None, typer.Option("--request", help="The kept texts of this request.")] = None,
    older: Annotated[float | None, typer.Option("--before", parser=seconds, metavar="TIME", help="Older than 7d.")] = None,
    db: Db = None,
) -> None:
    """Forget kept texts, of one request or all older ones. What they cost stays in the books."""
    import time

    from ..ledger.ledger import open_for_reading
    from ..ledger.texts import forget as do

    if (request_id is None) == (older is None):
        raise typer.BadParameter("say --request or --before")
    before = None if older is None else time.time() - older
    print(f"{do(open_for_reading(ledger_at(db)), before=before, request_id=request_id)} texts are forgotten.")
