"""Budgets that hold under any concurrency: reserve the most that a call may cost, make the call, settle what it did cost.

Money is whole nano-dollars here, so that sums are exact. For each budget and day one row holds what is reserved and what is
spent; a reservation is one conditional UPDATE of that row, atomic on both databases, so two can't both take the last dollar.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal

from sqlalchemy import ColumnElement, Connection, Engine, func, or_, select
from sqlalchemy.dialects import postgresql, sqlite

from .schema import budget_windows, budgets, reservations

DAY_S = 86_400
EXPIRES_S = 3600.0  # a call that takes longer has lost its process


@dataclass(frozen=True)
class Budget:
    """What one key (`name` is its id), one job or all requests together may spend, in US dollars: a UTC `day` or in `total`."""

    id: str
    kind: str
    name: str
    period: str
    limit_usd: Decimal
    held_usd: Decimal = Decimal(0)
    spent_usd: Decimal = Decimal(0)


@dataclass(frozen=True)
class Exhausted:
    """Why nothing was reserved: this budget would not bear it."""

    budget: Budget


def nano(usd: Decimal | float) -> int:
    """Whole nano-dollars, rounded up: a budget errs on the side of its owner. Raises ValueError for less than nothing."""
    amount = Decimal(str(usd))
    if not amount.is_finite() or amount < 0:
        raise ValueError(f"{usd} is no amount of money to reserve or spend")
    return int((amount * 10**9).to_integral_value(ROUND_CEILING))


def usd(nanousd: int) -> Decimal:
    """US dollars, exactly."""
    return Decimal(nanousd) / 10**9


def put(engine: Engine, kind: str, name: str, period: str, limit_usd: Decimal | float) -> Budget:
    """Set a budget; one of the same kind, name and period gets the new limit and keeps what was spent."""
    if kind not in ("key", "job", "all") or period not in ("day", "total"):
        raise ValueError("a budget is of a key, a job or all, and for a day or in total")
    row = {"id": f"{kind}:{name}:{period}", "kind": kind, "name": name, "period": period, "limit_nanousd": nano(limit_usd)}
    insert = (postgresql if engine.dialect.name == "postgresql" else sqlite).insert(budgets).values(**row)
    with _transaction(engine) as connection:
        connection.execute(insert.on_conflict_do_update(index_elements=["id"], set_={"limit_nanousd": row["limit_nanousd"]}))
    return Budget(row["id"], kind, name, period, usd(nano(limit_usd)))


def held_usd(engine: Engine) -> float:
    """What calls under way may yet cost, of all budgets together; each call once."""
    held = select(func.coalesce(func.sum(reservations.c.amount_nanousd), 0)).where(reservations.c.status == "held")
    with engine.connect() as connection:
        return float(usd(int(connection.execute(held).scalar_one())))


def listed(engine: Engine, now: float | None = None) -> list[Budget]:
    """Every budget with what is held and spent in its present window."""
    now = time.time() if now is None else now
    with engine.connect() as connection:
        return [_budget(connection, row, now) for row in connection.execute(select(budgets).order_by(budgets.c.id)).all()]


def remove(engine: Engine, kind: str, name: str, period: str) -> bool:
    """Take a budget away; False where there is none. What was spent of it stays in the reservations."""
    with _transaction(engine) as connection:
        return connection.execute(budgets.delete().where(budgets.c.id == f"{kind}:{name}:{period}")).rowcount == 1


def names(engine: Engine) -> frozenset[tuple[str, str]]:
    """(kind, name) of every budget."""
    with engine.connect() as connection:
        return frozenset((row.kind, row.name) for row in connection.execute(select(budgets.c.kind, budgets.c.name)))


def applying(engine: Engine, key_id: str | None, job: str | None, now: float | None = None) -> list[Budget]:
    """The budgets that a request of this key and job falls under, as `listed` has them."""
    now = time.time() if now is None else now
    with engine.connect() as connection:
        rows = connection.execute(select(budgets).where(_falls_under(key_id, job)).order_by(budgets.c.id)).all()
        return [_budget(connection, row, now) for row in rows]


def reserve(
    engine: Engine,
    request_id: str,
    amount_usd: Decimal | float,
    *,
    key_id: str | None = None,
    job: str | None = None,
    now: float | None = None,
    expires_s: float = EXPIRES_S,
) -> str | Exhausted:
    """Hold `amount_usd` in every budget that the request falls under, or in none. The reservation's id, or what is exhausted.

    Synced to the disk when it returns.
    """
    now = time.time() if now is None else now
    amount, reservation = nano(amount_usd), uuid.uuid4().hex
    with _transaction(engine) as connection:
        # Always in the order of their ids: two requests that fall under the same two budgets can't wait for each other.
        touched = connection.execute(select(budgets).where(_falls_under(key_id, job)).order_by(budgets.c.id)).all()
        for budget in touched:
            if not _hold(connection, budget, amount, now):
                full = _budget(connection, budget, now)
                connection.rollback()
                return Exhausted(full)
        connection.execute(
            reservations.insert().values(
                id=reservation,
                request_id=request_id,
                ts=now,
                expires_ts=now + expires_s,
                status="held",
                amount_nanousd=amount,
                windows=[[budget.id, _start(budget.period, now)] for budget in touched],
            )
        )
    return reservation


def settle(engine: Engine, reservation: str, cost_usd: Decimal | float) -> bool:
    """Spend what the call did cost and free the rest; False if that was done before, so a second try can't charge twice.

    A call that cost more than was held is charged in full. One that had expired, which counts as having cost all that was
    held for it, is charged what it did cost.
    """
    return _end(engine, reservation, "settled", nano(cost_usd), ("held", "expired"))


def release(engine: Engine, reservation: str) -> bool:
    """The call was never made: free all of it; False if the reservation had ended already."""
    return _end(engine, reservation, "released", 0, ("held",))


def expire(engine: Engine, now: float | None = None, *, all_held: bool = False) -> int:
    """End what processes that died had reserved, and say how many; `all_held` at a server's start, when none can be alive.

    Nobody knows what became of those calls, and a supplier may have answered: each is charged all that it could cost, so
    that a server that dies again and again can't overspend.
    """
    now = time.time() if now is None else now
    old = select(reservations.c.id).where(reservations.c.status == "held")
    with engine.connect() as connection:
        found = connection.execute(old if all_held else old.where(reservations.c.expires_ts <= now)).scalars().all()
    return sum(_end(engine, reservation, "expired", None, ("held",)) for reservation in found)


def verify(engine: Engine) -> list[str]:
    """Where the windows and the reservations disagree, one line each; empty: the books are right."""
    held: dict[tuple[str, int], int] = {}
    spent: dict[tuple[str, int], int] = {}
    wrong: list[str] = []
    with engine.connect() as connection:
        if engine.dialect.name == "postgresql":  # both readings of one moment
            connection.execution_options(isolation_level="REPEATABLE READ")
        for row in connection.execute(select(reservations)):
            for budget_id, start in row.windows:
                window = (budget_id, start)
                held[window] = held.get(window, 0) + (row.amount_nanousd if row.status == "held" else 0)
                spent[window] = spent.get(window, 0) + (row.settled_nanousd or 0)
        for row in connection.execute(select(budget_windows)):
            window = (row.budget_id, row.start_ts)
            for what, booked, summed in (("held", row.held_nanousd, held), ("spent", row.spent_nanousd, spent)):
                if booked != summed.get(window, 0):
                    wrong.append(f"{row.budget_id}: {what} {usd(booked)}, but reservations say {usd(summed.get(window, 0))}")
    return wrong


@contextmanager
def _transaction(engine: Engine, *, synced: bool = True) -> Iterator[Connection]:
    """One transaction that writes. SQLite takes its lock first: who reads before may not be let write after.

    `synced`: on the disk when it returns; else it outlives this process, but perhaps not the machine's power.
    """
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            connection.exec_driver_sql("PRAGMA busy_timeout = 30000")
            connection.exec_driver_sql(f"PRAGMA synchronous = {'FULL' if synced else 'NORMAL'}")
            connection.commit()
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        elif not synced:
            connection.exec_driver_sql("SET LOCAL synchronous_commit = off")
        yield connection
        connection.commit()


def _falls_under(key_id: str | None, job: str | None) -> ColumnElement[bool]:
    of_key, of_job = (budgets.c.kind == "key") & (budgets.c.name == key_id), (budgets.c.kind == "job") & (budgets.c.name == job)
    return or_(budgets.c.kind == "all", of_key, of_job)


def _hold(connection: Connection, budget: object, amount: int, now: float) -> bool:
    of = budget._mapping  # type: ignore[attr-defined]
    w, start = budget_windows.c, _start(of["period"], now)
    module = postgresql if connection.dialect.name == "postgresql" else sqlite
    fresh = module.insert(budget_windows).values(budget_id=of["id"], start_ts=start, held_nanousd=0, spent_nanousd=0)
    connection.execute(fresh.on_conflict_do_nothing())
    fits = w.held_nanousd + w.spent_nanousd + amount <= of["limit_nanousd"]
    taken = budget_windows.update().where(w.budget_id == of["id"], w.start_ts == start, fits)
    return connection.execute(taken.values(held_nanousd=w.held_nanousd + amount)).rowcount == 1


def _end(engine: Engine, reservation: str, status: str, cost: int | None, before: Sequence[str]) -> bool:
    """`cost` None: all that was held. Not synced: an end that is lost leaves what was held, which is charged in full."""
    r, w = reservations.c, budget_windows.c
    with _transaction(engine, synced=False) as connection:
        row = connection.execute(select(reservations).where(r.id == reservation).with_for_update()).one_or_none()
        if row is None or row.status not in before:
            return False
        amount: int = row.amount_nanousd
        charged = amount if cost is None else cost
        settled = None if status == "released" else charged
        connection.execute(reservations.update().where(r.id == reservation).values(status=status, settled_nanousd=settled))
        freed = amount if row.status == "held" else 0
        more = charged - (row.settled_nanousd or 0)
        for budget_id, start in row.windows:
            window = budget_windows.update().where(w.budget_id == budget_id, w.start_ts == start)
            connection.execute(window.values(held_nanousd=w.held_nanousd - freed, spent_nanousd=w.spent_nanousd + more))
    return True


def _start(period: str, now: float) -> int:
    return int(now // DAY_S) * DAY_S if period == "day" else 0


def _budget(connection: Connection, row: object, now: float) -> Budget:
    of = row._mapping  # type: ignore[attr-defined]
    at = (budget_windows.c.budget_id == of["id"]) & (budget_windows.c.start_ts == _start(of["period"], now))
    found = connection.execute(select(budget_windows).where(at)).one_or_none()
    held, spent = (found.held_nanousd, found.spent_nanousd) if found else (0, 0)
    return Budget(of["id"], of["kind"], of["name"], of["period"], usd(of["limit_nanousd"]), usd(held), usd(spent))
