"""`baseload bench routing`: how well a predictor routes between two models, learned from and tested on a file of outcomes."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

from ..router.predictor import MIN_ROWS
from ..router.similarity import Matrix
from ..wire.errors import BadRequest
from .command import run_command
from .machine import describe
from .routing_data import Outcomes, load
from .routing_embeddings import TextEncoder, embed_cached
from .routing_guarantee import needed, verify
from .routing_methods import Fitted, Rows, Scored, examples, score, splits, unseen_groups
from .routing_report import SCHEMA, draw, ends, guarantee_table, rows, table

LATENCIES = 300


def routing(
    data: Annotated[Path, typer.Option(help="Outcomes: .csv, .csv.gz, .jsonl, .jsonl.gz or .parquet.")],
    train_labels: Annotated[int | None, typer.Option(min=MIN_ROWS, help="Rows to learn from; else cross-validation.")] = None,
    seeds: Annotated[int, typer.Option(min=2, max=100, help="Splits, or folds.")] = 5,
    embed: Annotated[str, typer.Option(help="The model that makes vectors of prompts, or none.")] = "all-minilm-l6-v2",
    group_column: Annotated[str, typer.Option(help="The column that names a prompt's class.")] = "group",
    drop_column: Annotated[str, typer.Option(help="Leave out rows where this column is true.")] = "",
    weak_usd: Annotated[float | None, typer.Option(min=0, help="A weak call's price, where the file has none.")] = None,
    strong_usd: Annotated[float | None, typer.Option(min=0, help="A strong call's price, where the file has none.")] = None,
    draws: Annotated[int, typer.Option(min=0, help="Calibrations to try the guarantees on.")] = 300,
    calibration_rows: Annotated[int, typer.Option(min=1, help="Rows of each.")] = 1000,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write the report here.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Draw the curves into this .png.")] = None,
) -> None:
    """Learn a router from outcomes of two models and test it on prompts that it has not seen."""
    outcomes = _priced(load(data, group_column=group_column, drop_column=drop_column), weak_usd, strong_usd)
    _enough(outcomes, train_labels, seeds)
    encoder = None if embed == "none" else TextEncoder(embed)
    vectors = None if encoder is None else embed_cached(encoder, outcomes.prompts)
    report, fitted, tested = measure(outcomes, vectors, train_labels, seeds)
    report["latency_ms"] = latency(outcomes, vectors, fitted, tested[-1][1], encoder)
    report["guarantees"] = guarantees(fitted, tested[-1][0], calibration_rows, draws)
    _print(report, outcomes)
    if json_path:
        json_path.write_text(json.dumps(plain(report), indent=1, allow_nan=False), "utf-8")
    if picture:
        picture.write_bytes(draw(f"{outcomes.name}, {report['train_rows']} labels", report["rows"]))


def measure(
    outcomes: Outcomes, vectors: Matrix | None, labels: int | None, seeds: int
) -> tuple[dict[str, Any], Fitted, list[tuple[Outcomes, Rows]]]:
    """The report's rows, the last split's predictor, and each split's test rows."""
    scored: list[tuple[Outcomes, list[Scored]]] = []
    tested: list[tuple[Outcomes, Rows]] = []
    fitted, train_rows = None, 0
    for train, test in splits(outcomes, labels, seeds):
        methods, fitted = score(outcomes, vectors, train, test)
        scored.append((outcomes.take(test), methods))
        tested.append((outcomes.take(test), test))
        train_rows = len(train)
    assert fitted is not None
    away = []
    for train, test in unseen_groups(outcomes, labels, seeds):
        if len(train) >= MIN_ROWS and len(test) > 1:
            some = replace(outcomes, groups=None)
            away.append((some.take(test), score(some, vectors, train, test)[0]))
    report = {
        "schema": SCHEMA, "created": datetime.now(UTC).isoformat(timespec="seconds"), "machine": describe(),
        "data": outcomes.name, "sha256": outcomes.digest, "rows_used": len(outcomes), "left_out": outcomes.left_out,
        "train_rows": train_rows, "test_rows": len(tested[-1][0]), "splits": len(scored),
        "models": ends([part for part, _ in scored]), "rows": rows(scored), "unseen_groups": rows(away) if away else [],
        "predictor": fitted.predictor.provenance,
    }  # fmt: skip
    return report, fitted, tested


def latency(
    outcomes: Outcomes, vectors: Matrix | None, fitted: Fitted, test: Rows, encoder: TextEncoder | None
) -> dict[str, dict[str, float]]:
    """Milliseconds of one decision, the vector given, and with making it."""
    given = examples(outcomes, vectors)
    took: dict[str, list[float]] = {"decision": [], **({"with vector": []} if encoder else {})}
    for i in test[:LATENCIES]:
        attempt = given.attempts[i] if given.attempts is not None and fitted.predictor.reads_answers else None
        for kind, times in took.items():
            start = time.perf_counter()
            vector = None if vectors is None else vectors[i]
            if kind == "with vector" and encoder is not None:
                vector = encoder.embed([outcomes.prompts[i]])[0]
            fitted.predictor.predict(given.tasks[i], attempt, vector)
            times.append((time.perf_counter() - start) * 1000)
    return {kind: {f"p{q}": float(np.percentile(times, q)) for q in (50, 99)} for kind, times in took.items()}


def guarantees(fitted: Fitted, part: Outcomes, rows_each: int, draws: int) -> list[Any]:
    """Promises on the last split's test rows."""
    if not draws or not len(part):
        return []
    return verify(fitted.test_scores, part.weak, part.strong, fitted.train_scores, rows_each, draws)


def plain(value: Any) -> Any:
    """Dataclasses, tuples and numpy numbers as JSON's own."""
    if hasattr(value, "__dataclass_fields__"):
        return plain(asdict(value))
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    return value.item() if isinstance(value, np.generic) else value


def _priced(outcomes: Outcomes, weak_usd: float | None, strong_usd: float | None) -> Outcomes:
    flat = lambda price: None if price is None else np.full(len(outcomes), price)  # noqa: E731
    weak = outcomes.weak_cost if outcomes.weak_cost is not None else flat(weak_usd)
    strong = outcomes.strong_cost if outcomes.strong_cost is not None else flat(strong_usd)
    return replace(outcomes, weak_cost=weak, strong_cost=strong)


def _enough(outcomes: Outcomes, labels: int | None, seeds: int) -> None:
    questions = len(set(outcomes.prompts))
    least = MIN_ROWS + 20 if labels is None else labels + 20
    if questions < max(least, 2 * seeds):
        wanted = max(least, 2 * seeds)
        raise BadRequest(f"{outcomes.name} has {questions} different prompts; at least {wanted} are needed here.")


def _print(report: dict[str, Any], outcomes: Outcomes) -> None:
    console = Console(width=150)
    left = ", ".join(f"{n} {reason}" for reason, n in (outcomes.left_out or {}).items()) or "none"
    console.print(f"{outcomes.name}: {len(outcomes)} rows (left out: {left})")
    console.print(f"  learns from {report['train_rows']}, {report['splits']} splits")
    for name, model in report["models"].items():
        money = f", ${model['usd_per_accepted'].mean:.6f} per accepted task" if model["usd_per_accepted"] else ""
        console.print(f"  {name} alone: quality {model['quality'].mean:.4f}{money}")
    if not any(row.apgr for row in report["rows"]):
        console.print("The strong model is not better than the weak one here: APGR and CPT have no meaning.")
    console.print(table("New prompts", report["rows"]))
    if report["unseen_groups"]:
        console.print(table("Prompts of groups that nothing was learned of", report["unseen_groups"]))
    _print_mid(console, report)
    for kind, times in report["latency_ms"].items():
        console.print(f"{kind}: p50 {times['p50']:.2f} ms, p99 {times['p99']:.2f} ms")
    if report["guarantees"]:
        alpha = report["guarantees"][0].alpha
        console.print(guarantee_table(f"Promises, on the scores of '{report['rows'][-1].name}'", report["guarantees"]))
        console.print(
            f"An error of {alpha:g} among the kept: any router gives away at least {needed(outcomes.weak, alpha):.0%}."
        )


def _print_mid(console: Console, report: dict[str, Any]) -> None:
    if (mid := report["models"].get("mid")) is None:
        return
    for row in report["rows"]:
        reached = np.flatnonzero(np.array(row.curve) >= mid["quality"].mean)
        said = f"at {reached[0]}% strong calls" if len(reached) else "never"
        console.print(f"  '{row.name}' reaches the middle model's quality {said}")


def main(words: Sequence[str] | None = None) -> int:
    """The command."""
    return run_command(routing, "routing", words)
