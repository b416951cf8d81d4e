"""The ledger's one writing thread: rows come in from anywhere, and go out in batches of one transaction each.

Two durabilities. A row put without a waiter is committed within `BATCH_S` and what the commit takes, so that a killed
process loses less than 100 ms of rows. A row put with a waiter is committed at once and synced to the disk before the
waiter hears of it; if that fails the waiter hears that instead and the row is dropped, since what it announces won't happen.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, Engine, Table
from sqlalchemy.exc import DatabaseError, OperationalError

from ..wire.errors import Unavailable
from .rows import RequestRow, Row
from .schema import TABLES, UPSERTS, values

log = logging.getLogger("baseload.ledger")

BATCH_S = 0.05  # half of the 100 ms that a kill may cost; the other half is for the commit itself
BATCH_ROWS = 500
RETRY_S = 0.5
CHORE_S = 600.0
GATHER_S = 0.008  # while several wait at a time, a commit waits so long for more: a sync for each is the dearest thing here


class LedgerError(Unavailable):
    """503: the ledger cannot be opened, read or written. The message is one line."""

    default_code = "ledger_unavailable"


@dataclass(slots=True, eq=False)
class Waiter:
    """Somebody in an event loop who waits until a row is on the disk."""

    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[None]
    told: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class _Entry:
    number: int  # counts from 1 in the order of arrival, which is the order of writing
    table: Table
    values: dict[str, Any]
    at: float  # monotonic seconds of its arrival
    due: float  # likewise, of its writing
    waiter: Waiter | None


class Writer:
    """Owns the queue, the thread and the thread's connection."""

    def __init__(self, engine: Engine, capacity: int = 20_000, chore: Callable[[Connection], object] | None = None) -> None:
        """`chore`: what is to be done in the database at the start and every CHORE_S, in a transaction of its own."""
        self._engine, self._chore = engine, chore
        self._chore_due = time.monotonic()
        self._capacity = capacity
        self._queue: deque[_Entry] = deque()
        self._in_flight: list[_Entry] = []
        self._numbered = 0
        self._urgent = False  # somebody waits: take all that is queued, now
        self._not_before = 0.0  # monotonic seconds; when those who wait are next served, if several do
        self._changed = threading.Condition()
        self._close_by: float | None = None  # monotonic seconds; None: open
        self.failure = ""  # why the last commit failed; "" after one that did not
        self.rejected = 0  # rows that no database would take; each is logged
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)
        self._thread.start()

    def put(self, row: Row, waiter: Waiter | None = None) -> None:
        """Queue `row`; never blocks on the disk. Raises LedgerError when closed or when too much is waiting already."""
        # A request that starts is turned away first: what is running must still be able to write down how it ended.
        starts = isinstance(row, RequestRow) and row.finished_ts is None
        content = values(row)
        with self._changed:
            if self._close_by is not None:
                raise LedgerError("The ledger is closed.")
            if len(self._queue) >= self._capacity * (1 if starts else 2):
                raise LedgerError(f"The ledger cannot keep up: {len(self._queue)} rows wait. {self.failure}".rstrip())
            self._numbered += 1
            now = time.monotonic()
            self._queue.append(_Entry(self._numbered, TABLES[type(row)], content, now, now + BATCH_S, waiter))
            self._urgent = self._urgent or waiter is not None
            if waiter or len(self._queue) in (1, BATCH_ROWS):
                self._changed.notify_all()

    @property
    def waiting(self) -> int:
        """Rows that are not committed yet."""
        with self._changed:
            return len(self._queue) + len(self._in_flight)

    @property
    def lag_s(self) -> float:
        """How long the oldest row that is not committed yet has waited; 0: none does."""
        with self._changed:
            first = next(iter(self._in_flight or self._queue), None)
            return time.monotonic() - first.at if first else 0.0

    def flush(self, timeout_s: float) -> None:
        """Return when every row put so far is committed. Raises LedgerError when that takes longer."""
        with self._changed:
            last = self._numbered
            self._urgent = bool(self._queue)
            self._changed.notify_all()
            if not self._changed.wait_for(lambda: self._oldest() > last, timeout_s):
                raise LedgerError(f"The ledger could not be written in {timeout_s:g} s. {self.failure}".rstrip())

    def close(self, timeout_s: float) -> None:
        """Commit what waits, then stop. Raises LedgerError, with the number of rows lost, if that takes longer."""
        with self._changed:
            self._close_by = time.monotonic() + timeout_s
            self._urgent = bool(self._queue)
            self._changed.notify_all()
        self._thread.join(timeout_s + 10)  # a commit under way may take its busy timeout
        if lost := self.waiting:
            raise LedgerError(f"The ledger was closed with {lost} rows unwritten. {self.failure}".rstrip())

    def _oldest(self) -> int:
        """The number of the first row that is not committed yet."""
        first = next(iter(self._in_flight or self._queue), None)
        return first.number if first else self._numbered + 1

    # ------------------------------------------------------------------------------------- the thread

    def _run(self) -> None:
        connection: Connection | None = None
        while self._gather():
            if not self._in_flight:
                connection = self._do_chore(connection)
                continue
            try:
                connection = connection or self._engine.connect()
                self._commit(connection, self._in_flight)
            except Exception as error:
                _discard(connection)
                connection = None
                self._failed(error)
            else:
                self._succeeded()
        _discard(connection)

    def _do_chore(self, connection: Connection | None) -> Connection | None:
        """The chore; the connection, unless that failed."""
        self._chore_due = time.monotonic() + CHORE_S
        try:
            connection = connection or self._engine.connect()
            if self._chore is not None:
                self._chore(connection)
            connection.commit()
        except Exception as error:
            log.error("the ledger's old texts cannot be forgotten now: %s", _line(error))
            _discard(connection)
            return None
        return connection

    def _gather(self) -> bool:
        """Wait until a batch is due and make it the one in flight; an empty one where the chore is due. False: closed, and all
        is written."""
        with self._changed:
            while (wait_s := self._wait_s()) != 0:
                if self._close_by is not None and (not self._queue or time.monotonic() > self._close_by):
                    return False
                self._changed.wait(wait_s)
            if self._chore_is_due():  # on a server that is never idle, too
                return True
            n = len(self._queue) if self._urgent else min(len(self._queue), BATCH_ROWS)
            self._in_flight = [self._queue.popleft() for _ in range(n)]
            crowd = self._urgent and sum(entry.waiter is not None for entry in self._in_flight) > 1
            self._not_before = time.monotonic() + GATHER_S if crowd else 0.0
            self._urgent = False
            return True

    def _wait_s(self) -> float | None:
        """Seconds until the next batch, or the chore, is due; None while there is neither."""
        if self._chore_is_due():
            return 0
        if not self._queue:
            return None if self._chore is None or self._close_by is not None else self._chore_due - time.monotonic()
        if self._urgent and self._not_before and self._close_by is None:
            return max(0.0, self._not_before - time.monotonic())
        if self._urgent or (len(self._queue) >= BATCH_ROWS and not self.failure):
            return 0
        return max(0.0, self._queue[0].due - time.monotonic())

    def _chore_is_due(self) -> bool:
        return self._chore is not None and self._close_by is None and time.monotonic() >= self._chore_due

    def _commit(self, connection: Connection, batch: Sequence[_Entry]) -> None:
        synced = any(entry.waiter for entry in batch)
        if connection.info.get("synced") != synced:
            sqlite = connection.dialect.name == "sqlite"
            level = ("FULL" if synced else "NORMAL") if sqlite else ("on" if synced else "off")
            connection.exec_driver_sql(f"PRAGMA synchronous = {level}" if sqlite else f"SET synchronous_commit = {level}")
            connection.commit()  # the level may only change between transactions
            connection.info["synced"] = synced  # of this connection to the database; a new one has a new `info`
        try:
            _write(connection, batch)
        except Exception as error:
            if _is_of_the_disk(error):
                raise
            connection.rollback()
            self._commit_singly(connection, batch)

    def _commit_singly(self, connection: Connection, batch: Sequence[_Entry]) -> None:
        """One row of the batch is at fault, not the disk: find it, so that the others are not held up by it for ever."""
        for entry in batch:
            try:
                _write(connection, [entry])
            except Exception as error:
                if _is_of_the_disk(error):
                    raise
                connection.rollback()
                self.rejected += 1
                log.error("a row of %s cannot be written: %s", entry.table.name, _line(error))
                _tell([entry], LedgerError(f"The ledger does not take this row: {_line(error)}"))

    def _succeeded(self) -> None:
        with self._changed:
            if self.failure:
                log.warning("the ledger is written again")
            self.failure = ""
            done, self._in_flight = self._in_flight, []
            self._changed.notify_all()
        _tell(done, None)

    def _failed(self, error: Exception) -> None:
        """Keep the rows, in their order, for another try; tell those who wait."""
        retry = time.monotonic() + RETRY_S
        with self._changed:
            if not self.failure:
                log.error("the ledger cannot be written, its rows wait in memory: %s", _line(error))
            self.failure = _line(error)
            failed, self._in_flight = self._in_flight, []
            self._queue.extendleft(replace(entry, due=retry) for entry in reversed(failed) if not entry.waiter)
            self._changed.notify_all()
        _tell(failed, LedgerError(f"The ledger cannot be written: {self.failure}"))


def _tell(entries: Iterable[_Entry], error: LedgerError | None) -> None:
    """Tell those who wait, once; each event loop is woken once for all of its own, since that takes a system call."""
    by_loop: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
    for entry in entries:
        if entry.waiter is not None and not entry.waiter.told:
            entry.waiter.told = True
            by_loop.setdefault(entry.waiter.loop, []).append(entry.waiter.future)
    for loop, futures in by_loop.items():
        try:
            loop.call_soon_threadsafe(_settle, futures, error)
        except RuntimeError:
            log.debug("nobody waits any more: the event loop is closed")


def _settle(futures: Iterable[asyncio.Future[None]], error: LedgerError | None) -> None:
    for future in futures:
        if future.done():  # who waited has gone
            continue
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(LedgerError(error.message))  # one each: a traceback belongs to one raiser


def _write(connection: Connection, batch: Sequence[_Entry]) -> None:
    """One transaction. Of rows with one id only the last is written: a finish that comes with its start replaces it here."""
    for table, upsert in UPSERTS[connection.dialect.name].items():
        if rows := {entry.values["id"]: entry.values for entry in batch if entry.table is table}:
            connection.exec_driver_sql(upsert.sql, upsert.parameters(rows.values()))
    connection.commit()


def _is_of_the_disk(error: Exception) -> bool:
    """Whether the database (full, locked, gone, damaged) and not a row's own value made the write fail."""
    return isinstance(error, OSError | OperationalError) or type(error) is DatabaseError


def _discard(connection: Connection | None) -> None:
    """Close the connection itself, not into the pool: after a failed write its state is unknown."""
    if connection is not None:
        try:
            connection.invalidate()
            connection.close()
        except Exception as error:
            log.debug("closing a broken ledger connection: %s", error)


def _line(error: Exception) -> str:
    return str(getattr(error, "orig", None) or error).split("\n", 1)[0]
