"""`Ledger`: the open book. Rows go in without blocking, or durably; reports come out.

Prompts and answers are in it only where the settings say so, and then in a table of their own.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from . import budgets, outcomes, texts
from . import report as reports
from .accounts import Accounts, Tally
from .database import check, connect, default_url, is_sqlite, open_for_reading, prepare, unusable
from .machine import Machine
from .report import Report
from .rows import AttemptRow, RequestRow, Row, TextRow
from .schema import requests
from .writer import LedgerError, Waiter, Writer

log = logging.getLogger("baseload.ledger")

__all__ = ["Ledger", "check", "connect", "default_url", "open_for_reading"]

TEXTS_WAITING = 2000


class Ledger:
    """One ledger, open for writing. Make it with `Ledger.open`; `close()` it, or the last rows are lost."""

    def __init__(
        self, engine: Engine, *, required: bool = True, keep_text: bool = False, keep_text_days: float = texts.DAYS
    ) -> None:
        """`required` False: rows that find no room while nothing can be written are given up, and counted, instead of refused;
        what leaves the machine is written first or not done, all the same."""
        self.engine, self.keep_text, self._required = engine, keep_text, required
        self._writer = Writer(engine, chore=partial(texts.purge, days=keep_text_days))
        self.dropped = 0  # rows given up
        self.tally = Tally()
        self.watch: Callable[[Row], None] = lambda row: None  # is shown requests and the ends of attempts; must not raise
        self.machine: Machine | None = None  # whoever knows it sets it; without it local work has no price

    @classmethod
    def open(cls, url: str, *, required: bool = True, keep_text: bool = False, keep_text_days: float = texts.DAYS) -> Ledger:
        """Open, make or bring up to date the ledger at `url` (`sqlite:///PATH`, `postgresql://...`), and check it whole.
        `keep_text`: whether those who write rows are to add TextRows; what is older than `keep_text_days` is forgotten.

        Raises LedgerError, in one line.
        """
        engine = connect(url)
        try:
            prepare(engine)
        except (SQLAlchemyError, OSError) as error:
            engine.dispose()
            raise unusable(engine, error) from error
        except LedgerError:
            engine.dispose()
            raise
        return cls(engine, required=required, keep_text=keep_text, keep_text_days=keep_text_days)

    def reconcile(self) -> int:
        """Mark the requests that a killed server left running as `interrupted`, and end what it had reserved, charged in full;
        how many there were. On PostgreSQL, where several servers may share the ledger, only reservations past their time are
        ended.

        For a server at its start, before it takes requests: another that is running would see its own marked until they end.
        """
        running = requests.update().where(requests.c.status == "running").values(status="interrupted")
        try:
            budgets.expire(self.engine, all_held=is_sqlite(self.engine))
            with self.engine.begin() as connection:
                return connection.execute(running).rowcount
        except SQLAlchemyError as error:
            raise unusable(self.engine, error) from error

    def ended(self, row: AttemptRow) -> AttemptRow:
        """`row` of an attempt that has just ended, counted, with what its device-seconds took of this machine's energy and
        money as far as that is known. It is not written by this."""
        if self.machine:
            row = self.machine.priced(row)
        self.tally.add(row)
        self.watch(row)
        return row

    def accounts(self) -> Accounts:
        """How this process and its book stand. Reads what is reserved from the disk, nothing else."""
        try:
            reserved = budgets.held_usd(self.engine)
        except SQLAlchemyError:
            reserved = None
        now = time.time()
        live = self.tally.books(self.machine, now) if self.machine and now > self.tally.began else None
        sampler = self.machine.sampler if self.machine else None
        return Accounts(
            dict(self.tally.places),
            live,
            sampler.power if sampler else None,
            sampler.joules if sampler else None,
            reserved,
            self.healthy,
            self.waiting,
            self._writer.lag_s,
            self.rejected,
            self.dropped,
        )

    def add(self, row: Row) -> None:
        """Write `row` within 100 ms, without waiting for it. A RequestRow or AttemptRow of a known id replaces that row.

        Raises LedgerError when so many rows wait (the disk fails) that memory would be the next to go, if the ledger is
        required.
        """
        if isinstance(row, RequestRow):
            self.watch(row)
        try:
            self._writer.put(row)
        except LedgerError as error:
            if self._required:
                raise
            self.dropped += 1
            if self.dropped & (self.dropped - 1) == 0:  # at 1, 2, 4, 8, ...: loud, and not a disk's worth of it
                log.error("%d rows are lost: %s", self.dropped, error.message)

    def keep(self, row: TextRow) -> None:
        """Write a text; it is the first to be given up where so many rows wait (the disk fails) that memory matters."""
        if self._writer.waiting < TEXTS_WAITING:
            self._writer.put(row)

    async def add_synced(self, row: Row) -> None:
        """Return once `row` is on the disk. Raises LedgerError if it cannot be: what it announces must then not be done."""
        loop = asyncio.get_running_loop()
        waiter = Waiter(loop, loop.create_future())
        self._writer.put(row, waiter)
        await waiter.future

    @property
    def healthy(self) -> bool:
        """False from a failed write until one succeeds; rows wait in memory meanwhile."""
        return not self._writer.failure

    @property
    def reason(self) -> str:
        """Why it is not healthy, in one line; empty when it is."""
        return self._writer.failure

    @property
    def waiting(self) -> int:
        """Rows that are not committed yet."""
        return self._writer.waiting

    @property
    def rejected(self) -> int:
        """Rows that could not be written for what they held; each was logged."""
        return self._writer.rejected

    def flush(self, timeout_s: float = 10) -> None:
        """Return when every row added so far is committed. Blocks; raises LedgerError after `timeout_s`."""
        self._writer.flush(timeout_s)

    def close(self, timeout_s: float = 10) -> None:
        """Commit everything and close. Raises LedgerError, after closing, if rows had to be given up."""
        try:
            self._writer.close(timeout_s)
        finally:
            self.engine.dispose()

    def report(self, since: float = 0.0) -> Report:
        """What was asked and what it cost since `since` (seconds since the epoch)."""
        return reports.report(self.engine, since)

    def feedback(
        self,
        request_id: str,
        *,
        accepted: bool | None = None,
        score: float | None = None,
        comment: str = "",
        key_id: str | None = None,
        source: str = "feedback",
    ) -> bool:
        """Write down what somebody (`source`: feedback, review or audit) thinks of an answer; False where that key has no such
        request, or nothing has answered it.

        Blocks until it is committed. Raises LedgerError if that fails.
        """
        given = {
            "accepted": accepted,
            "score": score,
            "comment": comment,
            "key_id": key_id,
            "source": source,
            "ts": time.time(),
        }
        self.flush()  # the request may have ended a moment ago
        row = outcomes.feedback_row(self.engine, request_id, **given)
        if row is not None:
            self.add(row)
            self.flush()
        return row is not None

    def request(self, request_id: str) -> dict[str, Any] | None:
        """One request with its attempts, outcomes and egress; None if unknown. Blocks on the disk."""
        return reports.request(self.engine, request_id)
