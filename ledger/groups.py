"""Who and what the machine worked for: cost to serve by user, task class, job or model, and by user and week.

A group bears its own suppliers' bills and, of the machine's whole cost in that time, idle hours too, the share that its
device-seconds are of all requests'; so the groups add up to what the machine and the suppliers cost.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

import numpy as np
from sqlalchemy import Engine, Row, select

from .live import Books
from .machine_cost import request_usd
from .schema import attempts, requests

BY = {"key_id": "key_id", "task_class": "task_class", "job": "job", "model": "model_asked"}  # group -> column of requests
FEWEST = 100  # user-weeks below which nobody can speak of a 99th percentile
TOP = 10
WEEK_S = 604_800
MONDAY_S = 345_600  # the first one, 1970-01-05

K = TypeVar("K", bound=Hashable)


@dataclass
class Sums:
    """What the attempts of a group took."""

    requests: int = 0
    accepted: int = 0
    tokens: int = 0  # of local attempts
    device_s: float = 0.0
    joules: float = 0.0
    without_joules: int = 0  # local attempts that took device time and don't know their energy
    supplier_usd: float = 0.0
    unpriced: int = 0


@dataclass(frozen=True)
class Group:
    """Dollars of one group. `usage_usd` is its busy time, `allocation_usd` its share of all time, `cost_usd` that and the
    suppliers' bills. None: unknown."""

    group: str
    requests: int
    accepted: int
    tokens: int
    device_s: float
    joules: float | None
    usage_usd: float | None
    allocation_usd: float | None
    supplier_usd: float
    unpriced: int
    cost_usd: float | None


def sums(engine: Engine, since: float, until: float, group: Callable[[Row[Any]], K]) -> dict[K, Sums]:
    """The requests that began in that time, by `group` of a row with their `ts` and the columns of BY."""
    c = attempts.c
    named = [c.backend, c.accepted, c.prompt_tokens, c.completion_tokens, c.device_seconds, c.energy_joules, c.retail_usd]
    query = (
        select(requests.c.id, requests.c.ts, *(requests.c[name] for name in BY.values()), c.n, c.duration_s, *named)
        .join_from(requests, attempts, c.request_id == requests.c.id, isouter=True)
        .where(requests.c.ts >= since, requests.c.ts < until)
        .order_by(requests.c.ts, requests.c.id)
    )
    found: dict[K, Sums] = {}
    last = None
    with engine.connect() as connection:
        for row in connection.execution_options(stream_results=True).execute(query):
            mine = found.setdefault(group(row), Sums())
            mine.requests += row.id != last
            last = row.id
            if row.n is not None:
                _add(mine, row)
    return found


def _add(mine: Sums, row: Row[Any]) -> None:
    mine.accepted += row.accepted
    if row.backend == "local":
        mine.tokens += row.prompt_tokens + row.completion_tokens
        mine.device_s += row.device_seconds or 0.0
        mine.joules += row.energy_joules or 0.0
        mine.without_joules += row.device_seconds is not None and row.energy_joules is None
    elif row.retail_usd is not None:
        mine.supplier_usd += row.retail_usd
    else:
        mine.unpriced += row.duration_s is not None


def groups(engine: Engine, by: str, books: Books) -> list[Group]:
    """The groups of that name (BY), the dearest first."""
    found = sums(engine, books.since, books.until, lambda row: getattr(row, BY[by]) or "-")
    device_s = sum(one.device_s for one in found.values())
    made = [_group(name, one, books, device_s) for name, one in found.items()]
    return sorted(made, key=lambda g: (-(g.cost_usd or 0.0), -g.device_s, g.group))


def _group(name: str, one: Sums, books: Books, device_s: float) -> Group:
    hour = books.usd_per_hour.value
    usage = None if hour is None else request_usd(one.device_s / max(1.0, books.at_once), hour)
    allocation = _allocated(one.device_s, books, device_s)
    known = not one.without_joules and one.device_s > 0
    return Group(
        name,
        one.requests,
        one.accepted,
        one.tokens,
        one.device_s,
        one.joules if known else None,
        usage,
        allocation,
        one.supplier_usd,
        one.unpriced,
        None if allocation is None or one.unpriced else allocation + one.supplier_usd,
    )


def _allocated(mine_s: float, books: Books, all_s: float) -> float | None:
    if not mine_s:
        return 0.0
    return None if books.machine_usd is None else books.machine_usd * mine_s / all_s


@dataclass(frozen=True)
class User:
    """One user's cost to serve, `weeks` by their first day (UTC). `trend`: the last whole week over the one before, None where
    there are not two or the earlier one cost nothing."""

    user: str
    cost_usd: float
    weeks: dict[str, float]
    trend: float | None


@dataclass(frozen=True)
class Heavy:
    """Cost to serve by user and week. Percentiles are over user-weeks with any request; `top_share` is what the dearest 1% of
    users, and at least one, cost of all. `note` says what is missing and why."""

    user_weeks: int
    p50_usd: float | None
    p95_usd: float | None
    p99_usd: float | None
    users: int
    top_share: float | None
    trend: float | None
    dearest: tuple[User, ...]
    note: str


def heavy(engine: Engine, books: Books) -> Heavy:
    """Users by what they cost, week by week. Weeks begin on Mondays, UTC; those that the window cuts count as they are."""
    found = sums(engine, books.since, books.until, lambda row: (row.key_id or "-", int((row.ts - MONDAY_S) // WEEK_S)))
    device_s = sum(one.device_s for one in found.values())
    costs: dict[tuple[str, int], float] = {}
    for key, one in found.items():
        mine = _allocated(one.device_s, books, device_s)
        if mine is None or one.unpriced:
            return Heavy(len(found), None, None, None, len({user for user, _ in found}), None, None, (), "unpriced")
        costs[key] = mine + one.supplier_usd
    if not costs:
        return Heavy(0, None, None, None, 0, None, None, (), "no requests")
    whole = _whole_weeks(books)
    users = sorted((_user(user, costs, whole) for user in {user for user, _ in costs}), key=lambda u: (-u.cost_usd, u.user))
    everything = sum(costs.values())
    top = sum(user.cost_usd for user in users[: math.ceil(len(users) / 100)])
    p50, p95, p99 = (float(x) for x in np.percentile(list(costs.values()), (50, 95, 99)))
    enough = len(costs) >= FEWEST
    total = _user("", {("", week): sum(v for (_, w), v in costs.items() if w == week) for _, week in costs}, whole)
    return Heavy(
        len(costs),
        p50,
        p95,
        p99 if enough else None,
        len(users),
        top / everything if everything else None,
        total.trend,
        tuple(users[:TOP]),
        "" if enough else f"p99: too few samples ({len(costs)} user-weeks, {FEWEST} needed)",
    )


def _whole_weeks(books: Books) -> tuple[int, int] | None:
    """The last two weeks that lie in the window as a whole."""
    last = int((books.until - MONDAY_S) // WEEK_S) - 1
    return (last - 1, last) if (last - 1) * WEEK_S + MONDAY_S >= books.since else None


def _user(name: str, costs: dict[tuple[str, int], float], whole: tuple[int, int] | None) -> User:
    mine = {week: usd for (user, week), usd in sorted(costs.items()) if user == name}
    before, last = (mine.get(week, 0.0) for week in whole) if whole else (0.0, 0.0)
    return User(name, sum(mine.values()), {_day(w): usd for w, usd in mine.items()}, last / before if before else None)


def _day(week: int) -> str:
    return datetime.fromtimestamp(week * WEEK_S + MONDAY_S, UTC).date().isoformat()
