"""What routing did: where answers came from, why others were asked, and how often a kept local answer was wrong after all."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from sqlalchemy import Engine, select

from .outcomes import ANSWERS, PEOPLE
from .schema import attempts, outcomes, requests

Z = 1.959964  # of a 95% interval


def routing_report(engine: Engine, since: float) -> dict[str, Any]:
    """Requests to `auto` since then (seconds since the epoch)."""
    with engine.connect() as connection:
        asked = (
            connection.execute(select(requests).where(requests.c.ts >= since, requests.c.model_asked == "auto"))
            .mappings()
            .all()
        )
        ids = {row["id"] for row in asked}
        tries = [r for r in connection.execute(select(attempts)).mappings() if r["request_id"] in ids]
        judged = [r for r in connection.execute(select(outcomes)).mappings() if r["request_id"] in ids]
    accepted = {r["request_id"]: r for r in tries if r["accepted"] and r["role"] in ANSWERS}
    money = sum(r["retail_usd"] or 0.0 for r in tries)
    routes = Counter(row["route"] or "nobody" for row in asked)
    kept = {request for request, row in accepted.items() if row["backend"] == "local"}
    people = [r for r in judged if r["source"] in PEOPLE and r["passed"] is not None]
    people.sort(key=lambda r: (-PEOPLE.index(r["source"]), r["ts"]))  # the last word of whoever ranks highest counts
    again = {r["request_id"]: bool(r["passed"]) for r in people}
    looked = [again[request] for request in kept if request in again]
    wrong = looked.count(False)
    return {
        "requests": len(asked),
        "routes": dict(routes.most_common()),
        "escalated_by": dict(_reasons(asked, tries, judged).most_common()),
        "unaccepted": len(ids) - len(accepted),
        "supplier_usd": money,
        "per_accepted_usd": money / len(accepted) if accepted else 0.0,
        "audited": {"kept": len(looked), "wrong": wrong, "interval": wilson(wrong, len(looked))},
    }


def _reasons(asked: Any, tries: Any, judged: Any) -> Counter[str]:
    """Why each request that a supplier was asked for was not left to the local model."""
    supplied = {r["request_id"] for r in tries if r["backend"] != "local" and r["role"] in ANSWERS}
    failed: dict[str, list[str]] = {}
    for row in judged:
        if row["passed"] is not None and not row["passed"] and row["source"] == "check":
            failed.setdefault(row["request_id"], []).append(f"check {row['check']}")
    found: Counter[str] = Counter()
    for row in asked:
        if row["id"] not in supplied:
            continue
        decision = row["decision"] or {}
        notes = [note["by"] for note in decision.get("notes", []) if note["by"] not in ("predictor", "confidence", "latch")]
        gates = [f"gate {rung['gate']}" for rung in decision.get("rungs", []) if not rung["allowed"]]
        found[(failed.get(row["id"]) or notes or gates or ["forecast"])[0]] += 1
    return found


def wilson(hits: int, n: int) -> tuple[float, float]:
    """The 95% interval of a share (Wilson 1927); (0, 1) without rows."""
    if not n:
        return 0.0, 1.0
    share, z2 = hits / n, Z * Z
    middle, half = share + z2 / (2 * n), Z * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(0.0, (middle - half) / (1 + z2 / n)), min(1.0, (middle + half) / (1 + z2 / n))
