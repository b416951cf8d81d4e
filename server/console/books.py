"""The books as the page draws them: a window of time in equal steps, and its sums by place and by key.

Steps that are over hardly change (feedback may come late), so each is read once and kept for a while; one call reads new ones
for about a second and then answers with what there is. However large the ledger, no call is much longer than one step's query.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from decimal import Decimal
from typing import Any

from sqlalchemy import Engine

from ...ledger.retail import Tokens, quote
from ...ledger.timeline import Group, Stretch, stretch

# name -> (seconds, steps)
WINDOWS = {"1h": (3600, 30), "24h": (86_400, 24), "7d": (604_800, 28), "30d": (2_592_000, 30)}
READ_S = 0.8  # after so long no other step is begun
OLD_S = 600.0  # how long a step that is over is kept
SETTLED_S = 900.0  # a request that began so long ago has ended
KEPT = 240  # steps: twice as many as the windows have
USERS = 20
ADDED = tuple(f.name for f in fields(Group) if f.name not in ("answered", "key_id"))


@dataclass(frozen=True, slots=True)
class _Kept:
    at: float  # monotonic
    stretch: Stretch


class History:
    """Steps that were read, by their width and start. For one thread at a time."""

    def __init__(self, read: Callable[[Engine, float, float], Stretch] = stretch) -> None:
        self._read = read
        self._kept: dict[tuple[int, int], _Kept] = {}

    def window(self, engine: Engine, name: str, now: float) -> list[Stretch | None]:
        """The window's steps, oldest first; None for those that there was no time to read yet."""
        seconds, steps = WINDOWS[name]
        width = seconds // steps
        last = int(now // width)
        numbers = range(last, last - steps, -1)
        until = time.monotonic() + READ_S
        # What was never read goes before what is only old.
        order = sorted(numbers, key=lambda number: (width, number) in self._kept)
        found = {number: self._step(engine, width, number, now, until) for number in order}
        while len(self._kept) > KEPT:
            self._kept.pop(next(iter(self._kept)))
        return [found[number] for number in reversed(numbers)]

    def _step(self, engine: Engine, width: int, number: int, now: float, until: float) -> Stretch | None:
        key = (width, number)
        known, at = self._kept.get(key), time.monotonic()
        over = (number + 1) * width + SETTLED_S < now
        if known and at - known.at < (OLD_S if over else _fresh_s(width)):
            return known.stretch
        if at > until:
            return known.stretch if known else None
        found = self._read(engine, number * width, (number + 1) * width)
        self._kept.pop(key, None)  # to the end of the order: what was read longest ago goes first
        self._kept[key] = _Kept(time.monotonic(), found)
        return found


def _fresh_s(width: int) -> float:
    """How long a step of `width` seconds is kept that goes on, or has requests that may not have ended."""
    return min(60.0, max(2.0, width / 600))


def summed(groups: Iterable[Group]) -> dict[str, Any]:
    """The groups' figures added up; a sum is None where no group has it."""
    groups = list(groups)
    out: dict[str, Any] = {}
    for name in ADDED:
        values = [value for group in groups if (value := getattr(group, name)) is not None]
        out[name] = sum(values) if values or name not in ("supplier_usd", "local_usd", "joules") else None
    return out | _derived(out)


def _derived(of: dict[str, Any]) -> dict[str, Any]:
    """What all tries cost together, unknown if any of them is, and that over the accepted tasks; joules likewise."""
    unknown = of["supplier_unknown"] + of["local_unknown"]
    usd = None if unknown or not of["attempts"] else (of["supplier_usd"] or 0.0) + (of["local_usd"] or 0.0)
    joules = None if of["joules_unknown"] else of["joules"]
    # Known even where the local part is not: what went to suppliers, and it is nothing where none was asked.
    paid = None if of["supplier_unknown"] or not of["attempts"] else of["supplier_usd"] or 0.0
    each = of["accepted"] or None
    return {
        "usd": usd,
        "paid_usd": paid,
        "usd_per_accepted": usd / each if usd is not None and each else None,
        "paid_usd_per_accepted": paid / each if paid is not None and each else None,
        "joules_per_accepted": joules / each if joules is not None and each else None,
    }


def books(steps: list[Stretch | None], window: str, beside: tuple[str, str] | None, names: dict[str, str]) -> dict[str, Any]:
    """The window for the page. `beside`: whose list price local tokens are set beside; `names`: of the keys, by id."""
    read = [step for step in steps if step]
    groups = [group for step in read for group in step.groups]
    total = summed(groups)
    return {
        "window": window,
        "pending": len(steps) - len(read),
        "cut": any(step.cut for step in read),
        "steps": [_step(step) for step in read],
        "total": total,
        "places": _by(groups, lambda group: group.answered),
        "users": list(_users(read, names)),
        "beside": retail(total, beside),
    }


def _step(step: Stretch) -> dict[str, Any]:
    total = summed(step.groups)
    local = sum(group.requests for group in step.groups if group.answered == "local")
    nobody = sum(group.requests for group in step.groups if not group.answered)
    shares = {"local": local, "supplier": total["requests"] - local - nobody, "nobody": nobody}
    names = ("requests", "accepted", "failed", "usd_per_accepted", "paid_usd_per_accepted", "joules_per_accepted")
    tokens = ("prompt_tokens", "completion_tokens")
    return {"start": step.start, "end": step.end, **shares, **{name: total[name] for name in (*names, *tokens)}}


def _by(groups: list[Group], of: Callable[[Group], str]) -> list[dict[str, Any]]:
    split: dict[str, list[Group]] = {}
    for group in groups:
        split.setdefault(of(group), []).append(group)
    lines = [{"name": name, **summed(found)} for name, found in split.items()]
    return sorted(lines, key=lambda line: (-line["requests"], line["name"]))


def _users(steps: list[Stretch], names: dict[str, str]) -> Iterator[dict[str, Any]]:
    """Who took most tokens, with what they took in each step."""
    groups = [group for step in steps for group in step.groups]
    lines = _by(groups, lambda group: group.key_id)
    lines.sort(key=lambda line: (-line["prompt_tokens"] - line["completion_tokens"], line["name"]))
    for line in lines[:USERS]:
        key = line["name"]
        trend = [sum(g.prompt_tokens + g.completion_tokens for g in step.groups if g.key_id == key) for step in steps]
        yield {**line, "key_id": key, "name": names.get(key, ""), "trend": trend}


def retail(total: dict[str, Any], beside: tuple[str, str] | None) -> dict[str, Any] | None:
    """What the accepted local answers' tokens would have cost at a supplier's list price, and what is saved if ours is known.

    Priced as so many calls of average length: exact where prices have no tiers. None where there is nobody to set it beside.
    """
    if beside is None:
        return None
    supplier, model = beside
    calls, usd, source = total["kept"], None, ""
    if calls:
        tokens = [total[f"kept_{kind}_tokens"] / calls for kind in ("prompt", "completion", "cached")]
        usd, source = _price(supplier, model, tokens, calls)
    local = None if total["local_unknown"] else total["local_usd"]
    margin = (usd - local) / usd if usd and local is not None else None
    return {
        "supplier": supplier,
        "model": model,
        "calls": calls,
        "usd": usd,
        "source": source,
        "local_usd": local,
        "margin": margin,
    }


def _price(supplier: str, model: str, tokens: list[float], calls: int) -> tuple[float | None, str]:
    found = quote(supplier, model, Tokens(*(round(n) for n in tokens)))
    return (None, "") if found is None else (float(found.usd * Decimal(calls)), found.source)
