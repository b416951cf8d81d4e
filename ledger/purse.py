"""Budgets as running requests pay from them: reserve before a call goes out, settle when it is over, off the event loop.

What can't be written down is not bought: a reservation is on the disk before `hold` returns. A settlement that fails is
kept and tried again before anything else is reserved; if the process dies with it, the reservation stands and is charged in
full at the next start, so that no failure makes money that was spent look unspent.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from decimal import Decimal

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from . import budgets
from .budgets import Budget, Exhausted
from .writer import LedgerError

log = logging.getLogger("baseload.ledger")
FRESH_S = 1.0  # so long a new budget may not be seen where there was none
WAIT_S = 10.0  # for the database; then the call is not made


@dataclass(frozen=True, slots=True)
class Left:
    """What the tightest of a request's budgets still bears."""

    usd: float
    budget: Budget


class Hold:
    """Money held for one call. End it once: `settle` with what it did cost, None where nobody knows."""

    def __init__(self, purse: Purse, id: str, usd: float) -> None:
        self._purse, self._id, self.usd = purse, id, usd

    def settle(self, cost_usd: float | None) -> None:
        """What is not known has cost all that it could; what has cost nothing is given back. Doesn't wait."""
        self._purse.end(self._id, self.usd if cost_usd is None else cost_usd)


class Purse:
    """The budgets of one ledger. `close` it, before the ledger, to have everything settled."""

    def __init__(self, engine: Engine, clock: Callable[[], float] = time.monotonic) -> None:
        self._engine, self._clock = engine, clock
        self._thread = ThreadPoolExecutor(1, "purse")  # SQLite has one writer; and what was settled is free for the next
        self._of: frozenset[tuple[str, str]] = frozenset()  # (kind, name) of all budgets
        self._seen: float | None = None
        self._owed: deque[tuple[str, float]] = deque()  # settlements not yet written: (reservation, cost)

    async def left(self, key_id: str | None, job: str | None) -> Left | None:
        """What may still be spent on a request; None: it falls under no budget. Raises LedgerError."""
        if self._seen is not None and self._clock() - self._seen < FRESH_S and not self._concerns(key_id, job):
            return None
        return await self._do(lambda: self._left(key_id, job))

    async def hold(self, request_id: str, usd: float, key_id: str | None, job: str | None) -> Hold | Exhausted:
        """Hold that much in every budget of the request, durably, or in none. Raises LedgerError: then nothing is held."""
        given = self._thread.submit(self._hold, request_id, usd, key_id, job)
        try:
            return await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(given)), WAIT_S)
        except TimeoutError as error:
            given.add_done_callback(_give_back)
            raise LedgerError(f"The budgets could not be written in {WAIT_S:g} s.") from error
        except asyncio.CancelledError:  # the client has left: nobody will end what comes
            given.add_done_callback(_give_back)
            raise

    def end(self, reservation: str, cost_usd: float) -> None:
        """Settle, without waiting for it."""
        self._owed.append((reservation, cost_usd))
        with contextlib.suppress(RuntimeError):  # closed: `close` pays what is left
            self._thread.submit(self._pay)

    @property
    def owed(self) -> int:
        """Settlements that are not written yet."""
        return len(self._owed)

    def close(self) -> None:
        """Settle what has ended, and stop. Blocks."""
        self._thread.shutdown(wait=True)
        if not self._pay():
            log.error("%d calls could not be settled; they are charged in full at the next start", len(self._owed))

    # ------------------------------------------------------------------------------------- in the thread

    def _left(self, key_id: str | None, job: str | None) -> Left | None:
        self._pay()
        began = self._clock()
        if self._seen is None or began - self._seen >= FRESH_S:
            self._of, self._seen = budgets.names(self._engine), began
        tightest = min(budgets.applying(self._engine, key_id, job), key=_left_of, default=None)
        return Left(float(_left_of(tightest)), tightest) if tightest else None

    def _hold(self, request_id: str, usd: float, key_id: str | None, job: str | None) -> Hold | Exhausted:
        try:
            if not self._pay():
                raise LedgerError("The budgets cannot be written at the moment.")
            got = budgets.reserve(self._engine, request_id, usd, key_id=key_id, job=job)
        except SQLAlchemyError as error:
            raise LedgerError(f"The budgets cannot be written: {_line(error)}") from error
        return got if isinstance(got, Exhausted) else Hold(self, got, usd)

    def _pay(self) -> bool:
        """Write the settlements that wait, the oldest first; False where the database does not take them."""
        while self._owed:
            reservation, cost = self._owed[0]
            try:
                if cost or not budgets.release(self._engine, reservation):
                    budgets.settle(self._engine, reservation, cost)
            except SQLAlchemyError as error:
                log.error("a call cannot be settled yet: %s", _line(error))
                return False
            self._owed.popleft()
        return True

    def _concerns(self, key_id: str | None, job: str | None) -> bool:
        return not self._of.isdisjoint({("all", ""), ("key", key_id or ""), ("job", job or "")})

    async def _do(self, what: Callable[[], Left | None]) -> Left | None:
        try:
            return await asyncio.wait_for(asyncio.wrap_future(self._thread.submit(what)), WAIT_S)
        except SQLAlchemyError as error:
            raise LedgerError(f"The budgets cannot be read: {_line(error)}") from error
        except TimeoutError as error:
            raise LedgerError(f"The budgets could not be read in {WAIT_S:g} s.") from error


def _give_back(given: Future[Hold | Exhausted]) -> None:
    """The end of a reservation that nobody waited for."""
    if not given.cancelled() and given.exception() is None and isinstance(hold := given.result(), Hold):
        hold.settle(0.0)


def _left_of(budget: Budget) -> Decimal:
    return budget.limit_usd - budget.held_usd - budget.spent_usd


def _line(error: Exception) -> str:
    return str(getattr(error, "orig", None) or error).split("\n", 1)[0]
