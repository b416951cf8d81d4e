"""Paying from budgets: off the event loop, durably, and whatever the database or the client does."""

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, event, select
from sqlalchemy.exc import OperationalError

from baseload.ledger import Ledger, LedgerError, budgets
from baseload.ledger.budgets import Exhausted
from baseload.ledger.purse import Hold, Purse
from baseload.ledger.schema import reservations


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    ledger = Ledger.open(url)
    budgets.put(ledger.engine, "key", "k", "total", 20)
    yield ledger.engine
    ledger.close()


@pytest.fixture
def purse(engine: Engine) -> Iterator[Purse]:
    found = Purse(engine)
    yield found
    found.close()
    assert budgets.verify(engine) == []


def statuses(engine: Engine) -> Counter[str]:
    with engine.connect() as connection:
        return Counter(connection.execute(select(reservations.c.status)).scalars())


class Disk:
    """A database that takes nothing while it is `full`."""

    def __init__(self, engine: Engine) -> None:
        self.full = False
        event.listen(engine, "before_cursor_execute", self._execute)

    def _execute(self, _connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if self.full and statement.startswith(("INSERT", "UPDATE")):
            raise OperationalError(statement, {}, Exception("database or disk is full"))


async def test_200_at_once_get_20(engine: Engine, purse: Purse):
    async def one(n: int) -> bool:
        await purse.left("k", None)
        got = await purse.hold(f"r{n}", 1, "k", None)
        if isinstance(got, Hold):
            await asyncio.sleep(0.01)
            got.settle(1.0 if n % 2 else None)
        return isinstance(got, Hold)

    assert sum(await asyncio.gather(*map(one, range(200)))) == 20
    purse.close()
    assert statuses(engine) == {"settled": 20}
    assert [(b.held_usd, b.spent_usd) for b in budgets.listed(engine)] == [(0, 20)]


async def test_what_costs_nothing_is_given_back(engine: Engine, purse: Purse):
    held = await purse.hold("r", 20, "k", None)
    assert isinstance(held, Hold) and isinstance(await purse.hold("r2", 1, "k", None), Exhausted)
    held.settle(0.0)
    assert isinstance(await purse.hold("r3", 20, "k", None), Hold)


async def test_who_falls_under_no_budget_asks_no_database_again(engine: Engine, purse: Purse):
    assert await purse.left("other", None) is None
    left = await purse.left("k", "job")
    assert left and (left.usd, left.budget.id) == (20.0, "key:k:total")
    seen: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda _c, _k, statement, *_: seen.append(statement))
    for _ in range(100):
        assert await purse.left("other", None) is None
    assert len(seen) < 20


async def test_a_settlement_that_fails_is_made_up_for_before_anything_else_is_held(engine: Engine, purse: Purse):
    disk = Disk(engine)
    held = await purse.hold("r", 5, "k", None)
    assert isinstance(held, Hold)
    disk.full = True
    held.settle(2.0)
    with pytest.raises(LedgerError):
        await purse.hold("r2", 1, "k", None)
    assert purse.owed == 1
    disk.full = False
    again = await purse.hold("r3", 1, "k", None)
    assert isinstance(again, Hold) and purse.owed == 0
    again.settle(1.0)
    purse.close()
    assert [(b.held_usd, b.spent_usd) for b in budgets.listed(engine)] == [(0, 3)]


async def test_what_nobody_waits_for_any_more_is_given_back(engine: Engine, purse: Purse):
    gate = threading.Event()
    purse._thread.submit(gate.wait)  # the thread is busy while the client leaves
    asking = asyncio.create_task(purse.hold("r", 5, "k", None))
    await asyncio.sleep(0.05)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    gate.set()
    purse.close()
    assert statuses(engine) in ({"released": 1}, {})
    assert [(b.held_usd, b.spent_usd) for b in budgets.listed(engine)] == [(0, 0)]
