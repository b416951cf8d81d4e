"""`baseload route`: what the router has learned, what it decides by, and why a request ran where it ran."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .books import Db, Json, Since, begins, ledger_at
from .common import fail_cleanly, print_json, print_table

if TYPE_CHECKING:
    from ..benchmarks.routing_training import Trained

app = typer.Typer(no_args_is_help=True)
Data = Annotated[Path, typer.Option(help="Outcomes: .csv, .csv.gz, .jsonl, .jsonl.gz or .parquet (see `bench routing`).")]
DataOrBooks = Annotated[Path | None, typer.Option("--data", help="Outcomes, as a file; else those of the ledger.")]
Alpha = Annotated[float, typer.Option(min=0.001, max=0.5, help="Regret allowed: kept and wrong, where a supplier is right.")]
Embed = Annotated[str, typer.Option(help="The model that makes vectors of prompts, or none.")]
Group = Annotated[str, typer.Option(help="The column that names a prompt's class.")]
Drop = Annotated[str, typer.Option(help="Leave out rows where this column is true.")]


@app.command()
@fail_cleanly
def train(
    data: DataOrBooks = None,
    from_ledger: Annotated[bool, typer.Option("--from-ledger", help="Learn from kept texts; so it is without --data.")] = False,
    since: Since = None,
    db: Db = None,
    alpha: Alpha = 0.05,
    embed: Embed = "all-minilm-l6-v2",
    group_column: Group = "group",
    drop_column: Drop = "",
    force: Annotated[bool, typer.Option(help="Adopt it even if it is worse than the present one.")] = False,
    as_json: Json = False,
) -> None:
    """Learn from outcomes; adopt what was learned if prompts that it has not seen are routed no worse than now."""
    from ..benchmarks.routing_ledger import load_ledger
    from ..benchmarks.routing_training import load_outcomes
    from ..benchmarks.routing_training import train as learn
    from ..ledger.ledger import open_for_reading
    from ..runtime.store import default_root

    if data and from_ledger:
        raise typer.BadParameter("say --data or --from-ledger")
    outcomes, vectors = (
        load_outcomes(data, embed, group_column, drop_column)
        if data
        else load_ledger(open_for_reading(ledger_at(db)), begins(since), embed)
    )
    found = learn(outcomes, vectors, default_root() / "router", alpha, force=force)
    _tell(found, as_json)
    if not any(one.adopted for one in found):
        raise typer.Exit(1)


@app.command()
@fail_cleanly
def evaluate(
    data: Data, embed: Embed = "all-minilm-l6-v2", group_column: Group = "group", drop_column: Drop = "", as_json: Json = False
) -> None:
    """How well the adopted predictors route the prompts of a file."""
    from ..benchmarks.routing_training import evaluate as test
    from ..benchmarks.routing_training import load_outcomes
    from ..runtime.store import default_root

    outcomes, vectors = load_outcomes(data, embed, group_column, drop_column)
    _tell(test(outcomes, vectors, default_root() / "router"), as_json)


def _tell(found: list[Trained], as_json: bool) -> None:
    if as_json:
        print_json([one.as_json() for one in found])
        return
    shown = [
        (
            one.name,
            _number(one.apgr),
            _number(one.before),
            _number(one.threshold),
            _percent(one.kept),
            _number(one.quality),
            one.why,
        )
        for one in found
    ]
    print_table(("PREDICTOR", "APGR>", "NOW>", "THRESHOLD>", "KEPT>", "QUALITY>", ""), shown)


@app.command()
@fail_cleanly
def explain(request_id: str, db: Db = None, as_json: Json = False) -> None:
    """Every gate, number and threshold that led to where a request ran, and what its answers were worth."""
    from ..ledger.ledger import open_for_reading
    from ..ledger.report import request
    from ..wire.errors import NotFound

    found = request(open_for_reading(ledger_at(db)), request_id)
    if found is None:
        raise NotFound(f"The ledger knows no request {request_id!r}.")
    if as_json:
        print_json(found)
        return
    for line in explained(found):
        print(line)


def explained(found: dict[str, Any]) -> list[str]:
    """A request of the ledger in lines for people."""
    decision = found["decision"]
    took = f" in {found['finished_ts'] - found['ts']:.2f} s" if found.get("finished_ts") else ""
    lines = [
        f"{found['id']}: asked for {found['model_asked']}, {found['status']}{took}; answered by {found['route'] or 'nobody'}"
    ]
    lines += [
        f"  place {r['name']}: " + ("allowed" if r["allowed"] else f"denied by the gate {r['gate']}: {r['reason']}")
        for r in decision.get("rungs", [])
    ]
    for note in decision.get("notes", []):
        numbers = ", ".join(f"{name} {value:.4g}" for name, value in note["numbers"].items())
        lines.append(f"  {note['by']}: {note['why']}" + (f" ({numbers})" if numbers else ""))
    if decision.get("checks"):
        lines.append(
            f"  checks: {', '.join(decision['checks'])}" + ("; held back until the verdict" if decision["buffered"] else "")
        )
    for attempt in found.get("attempts", []):
        money = "" if attempt["retail_usd"] is None else f", {attempt['retail_usd']:.6f} US dollars at list price"
        tokens = f"{attempt['prompt_tokens']} tokens in, {attempt['completion_tokens']} out"
        end = attempt["error"] or attempt["finish_reason"] or "-"
        word = "accepted" if attempt["accepted"] else "not accepted"
        lines.append(f"  try {attempt['n'] + 1}, {attempt['model']}: {word}, {end}; {tokens}{money}")
        lines += [f"    {_verdict(o)}" for o in found.get("outcomes", []) if o["attempt_id"] == attempt["id"]]
    return lines


def _verdict(outcome: dict[str, Any]) -> str:
    word = "no verdict yet" if outcome["pending"] else {True: "passed", False: "failed", None: "no verdict"}[outcome["passed"]]
    said = outcome["evidence"] or outcome["comment"]
    score = "" if outcome["score"] is None else f" {outcome['score']:.4g}"
    return f"{outcome['check'] or outcome['source']}: {word}{score}{f' ({said})' if said else ''}"


@app.command()
@fail_cleanly
def report(
    since: Since = None,
    db: Db = None,
    as_json: Json = False,
) -> None:
    """What was kept, what was escalated and why, and what it cost."""
    from ..ledger.ledger import open_for_reading
    from ..ledger.routing import routing_report

    found = routing_report(open_for_reading(ledger_at(db)), begins(since))
    if as_json:
        print_json(found)
        return
    print_table(("KIND", "", "REQUESTS>", "SHARE>"), [(k, n, f"{c:,}", f"{s:.1%}") for k, n, c, s in _shares(found)])
    money, audited = found["supplier_usd"], found["audited"]
    print(f"Suppliers at list price: {money:.6f} US dollars, {found['per_accepted_usd']:.6f} for each accepted answer.")
    if audited["kept"]:
        low, high = audited["interval"]
        print(f"Of {audited['kept']} kept local answers that were looked at again, {audited['wrong']} were wrong"
              f" ({audited['wrong'] / audited['kept']:.1%}; 95% interval {low:.1%} to {high:.1%}).")  # fmt: skip
    else:
        print("No kept local answer was looked at again: nothing is known of wrong accepts.")


def _shares(found: dict[str, Any]) -> list[tuple[str, str, int, float]]:
    total = max(found["requests"], 1)
    shares = [("answered by", name, n, n / total) for name, n in found["routes"].items()]
    shares += [("escalated, for", name, n, n / total) for name, n in found["escalated_by"].items()]
    return [*shares, ("without an accepted answer", "", found["unaccepted"], found["unaccepted"] / total)]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
