"""`Ledger`: the open book. Rows go in without blocking, or durably; reports come out.

Prompts and answers are never in it.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, func, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from ..runtime.store import default_root
from . import report as reports
from .report import Report
from .rows import Row
from .schema import VERSION, metadata, requests
from .writer import LedgerError, Writer


class Ledger:
    """One ledger, open for writing. Make it with `Ledger.open`; `close()` it, or the last rows are lost."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._writer = Writer(engine)

    @classmethod
    def open(cls, url: str) -> Ledger:
        """Open, or make, the ledger at `url` (`sqlite:///PATH`) and check it whole. Raises LedgerError, in one line."""
        engine = connect(url)
        try:
            _prepare(engine)
        except (SQLAlchemyError, OSError) as error:
            engine.dispose()
            raise _unusable(url, error) from error
        except LedgerError:
            engine.dispose()
            raise
        return cls(engine)

    def reconcile(self) -> int:
        """Mark the requests that a killed server left running as `interrupted`; how many there were.

        For a server at its start, before it takes requests: another that is running would see its own marked until they end.
        """
        running = requests.update().where(requests.c.status == "running").values(status="interrupted")
        try:
            with self.engine.begin() as connection:
                return connection.execute(running).rowcount
        except SQLAlchemyError as error:
            raise _unusable(str(self.engine.url), error) from error

    def add(self, row: Row) -> None:
        """Write `row` within 100 ms, without waiting for it. A RequestRow or AttemptRow of a known id replaces that row.

        Raises LedgerError when so many rows wait (the disk fails) that memory would be the next to go.
        """
        self._writer.put(row)

    async def add_synced(self, row: Row) -> None:
        """Return once `row` is on the disk. Raises LedgerError if it cannot be: what it announces must then not be done."""
        waiter: Future[None] = Future()
        waiter.set_running_or_notify_cancel()  # a caller who gives up must not pull it from under the writing thread
        self._writer.put(row, waiter)
        await asyncio.wrap_future(waiter)

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

    def request(self, request_id: str) -> dict[str, Any] | None:
        """One request with its attempts, outcomes and egress; None if unknown. Blocks on the disk."""
        return reports.request(self.engine, request_id)


def default_url() -> str:
    """The ledger of this machine's store."""
    return f"sqlite:///{default_root() / 'ledger.db'}"


def connect(url: str) -> Engine:
    """An engine for `url` that makes no file and no table by itself. Raises LedgerError for a URL that is not SQLite's."""
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise LedgerError(f"The ledger's address {url!r} is not a URL such as sqlite:///PATH.") from error
    if parsed.get_backend_name() != "sqlite" or parsed.database in (None, "", ":memory:"):
        raise LedgerError("The ledger's address must be sqlite:///PATH.")
    engine = create_engine(parsed)

    @event.listens_for(engine, "connect")
    def _set_up(connection: Any, _record: Any) -> None:
        connection.execute("PRAGMA journal_mode = WAL")  # readers never block the writer

    return engine


def open_for_reading(url: str) -> Engine:
    """An engine for reports on an existing ledger, which a server may be writing. Raises LedgerError, in one line."""
    engine = connect(url)
    path = engine.url.database or ""
    if not Path(path).is_file():
        raise LedgerError(f"There is no ledger at {path}.")
    try:
        with engine.connect() as connection:
            connection.execute(text("SELECT 1 FROM requests LIMIT 1"))
    except SQLAlchemyError as error:
        raise _unusable(url, error) from error
    return engine


def check(url: str) -> str:
    """One line on the ledger's state, after reading it whole. Raises LedgerError if it is damaged."""
    path = connect(url).url.database or ""
    if not Path(path).exists():
        return f"{path} will be made at the first start"
    engine = open_for_reading(url)
    with engine.connect() as connection:
        _check(connection)
        count = connection.execute(select(func.count()).select_from(requests)).scalar_one()
    return f"{path} is sound; {count} requests"


def _check(connection: Connection) -> None:
    if (verdict := connection.execute(text("PRAGMA quick_check(1)")).scalar_one()) != "ok":
        raise LedgerError(f"The ledger {connection.engine.url.database} is damaged: {str(verdict).splitlines()[-1]}")


def _prepare(engine: Engine) -> None:
    Path(engine.url.database or "").parent.mkdir(parents=True, exist_ok=True)
    with engine.begin() as connection:
        _check(connection)
        found = connection.execute(text("PRAGMA user_version")).scalar_one()
        if found > VERSION:
            raise LedgerError(f"The ledger {engine.url.database} is of a newer Baseload (version {found}, not {VERSION}).")
        metadata.create_all(connection)
        connection.execute(text(f"PRAGMA user_version = {VERSION}"))


def _unusable(url: str, error: Exception) -> LedgerError:
    reason = str(getattr(error, "orig", None) or error).split("\n", 1)[0]
    return LedgerError(f"The ledger {make_url(url).database} cannot be used: {reason}")
