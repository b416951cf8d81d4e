"""The latest requests, a page at a time, each with the sums over its attempts and why it went where it went."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Engine, select

from .outcomes import ANSWERS
from .schema import attempts, requests

PAGE = 50  # requests
LOOKED_THROUGH = 20_000  # requests, for those of one status: what is rarer than that is not found, and no search takes long

_COLUMNS = ("id", "ts", "finished_ts", "protocol", "model_asked", "route", "status", "stream", "error_code", "job", "key_id")


def recent(
    engine: Engine, status: str = "", before: tuple[float, str] | None = None, limit: int = PAGE
) -> list[dict[str, Any]]:
    """Newest first, those of one `status` or of any, older than `before` (time and id of the last one seen).

    Times in seconds. A figure is None where no attempt has it: tokens of what was never tried, prices that nobody knows.
    """
    r = requests.c
    newest = select(r.id, r.ts, r.status).order_by(r.ts.desc(), r.id.desc())
    if before:
        ts, request_id = before
        newest = newest.where((r.ts < ts) | ((r.ts == ts) & (r.id < request_id))).where(r.ts <= ts)  # the last, for the index
    if status:
        found = newest.limit(LOOKED_THROUGH).subquery()
        wanted = select(found.c.id).where(found.c.status == status).order_by(found.c.ts.desc(), found.c.id.desc()).limit(limit)
    else:
        wanted = newest.limit(limit).with_only_columns(r.id)
    with engine.connect() as connection:
        ids = connection.execute(wanted).scalars().all()
        columns = [r[name] for name in (*_COLUMNS, "decision")]
        rows = connection.execute(select(*columns).where(r.id.in_(ids))).mappings().all()
        tries = (
            connection.execute(select(attempts).where(attempts.c.request_id.in_(ids)).order_by(attempts.c.n)).mappings().all()
        )
    grouped: dict[str, list[Any]] = {}
    for one in tries:
        grouped.setdefault(one["request_id"], []).append(one)
    rows = sorted(rows, key=lambda row: (row["ts"], row["id"]), reverse=True)
    return [_line(row, grouped.get(row["id"], [])) for row in rows]


def _line(row: Any, tries: list[Any]) -> dict[str, Any]:
    answer = next((a for a in tries if a["accepted"] and a["role"] in ANSWERS), None)
    supplied = [a for a in tries if a["backend"] != "local"]
    local = [a for a in tries if a["backend"] == "local"]
    return {
        **{name: row[name] for name in _COLUMNS},
        "why": why(row["decision"] or {}),
        "attempts": len(tries),
        "answered": answer["backend"] if answer else None,
        "prompt_tokens": sum(a["prompt_tokens"] for a in tries) if tries else None,
        "completion_tokens": sum(a["completion_tokens"] for a in tries) if tries else None,
        "cached_tokens": sum(a["cached_tokens"] for a in tries) if tries else None,
        "first_token_s": answer["first_token_s"] if answer else None,
        "supplier_usd": _sum(supplied, "retail_usd"),
        "local_usd": _sum(local, "internal_usd"),
    }


def why(decision: dict[str, Any]) -> str:
    """The decision in a phrase: its first note, else the gate that shut, else that the client named the place."""
    notes, rungs = decision.get("notes") or [], decision.get("rungs") or []
    if notes:
        return f"{notes[0].get('by', '')}: {notes[0].get('why', '')}"
    shut = [rung for rung in rungs if not rung.get("allowed")]
    if shut and len(shut) == len(rungs):
        return f"gate {shut[0].get('gate', '')}: {shut[0].get('reason', '')}"
    if decision.get("mode") in ("local", "supplier"):
        return "asked for by name"
    return "first place allowed" if rungs else ""


def _sum(tries: list[Any], name: str) -> float | None:
    """None where an attempt has no such figure, and 0 where there was no attempt to pay for."""
    values = [a[name] for a in tries]
    return None if None in values else float(sum(values))
