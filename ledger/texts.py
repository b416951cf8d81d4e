"""Texts that are kept for a while, where the settings say so: what was asked and answered, for replays and for learning."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, delete, select, text

from .schema import texts

DAYS = 30.0
AT_ONCE = 500  # ids in one statement


@dataclass(frozen=True)
class Kept:
    """The words of a request, or of an attempt (see TextRow)."""

    asked: Mapping[str, Any] | None
    answers: list[dict[str, Any]] | None


def purge(connection: Connection, days: float, now: float | None = None) -> int:
    """Forget texts older than `days`, and say how many rows that were. The caller commits."""
    before = (time.time() if now is None else now) - days * 86_400
    return _forget(connection, texts.c.ts < before)


def forget(engine: Engine, *, before: float | None = None, request_id: str | None = None) -> int:
    """Forget the texts from before `before` (seconds since the epoch), or of one request; how many rows that were. What it cost
    stays in the books."""
    with engine.begin() as connection:
        condition = texts.c.request_id == request_id if request_id is not None else texts.c.ts < before
        found = _forget(connection, condition)
    if engine.dialect.name == "sqlite":
        with engine.connect() as connection:  # nor may they lie on in the write-ahead log
            connection.execute(text("PRAGMA wal_checkpoint(TRUNCATE)"))
    return found


def kept(engine: Engine, ids: Iterable[str]) -> dict[str, Kept]:
    """The texts of these requests and attempts, as far as they were kept."""
    wanted, found = list(ids), {}
    with engine.connect() as connection:
        for some in (wanted[i : i + AT_ONCE] for i in range(0, len(wanted), AT_ONCE)):
            for row in connection.execute(select(texts).where(texts.c.id.in_(some))):
                found[row.id] = Kept(row.asked, row.answers)
    return found


def requests_kept(engine: Engine, since: float) -> Iterator[str]:
    """The ids of the requests whose texts are there, oldest first."""
    query = select(texts.c.id).where(texts.c.id == texts.c.request_id, texts.c.ts >= since).order_by(texts.c.ts, texts.c.id)
    with engine.connect() as connection:
        yield from connection.execute(query).scalars().all()


def _forget(connection: Connection, condition: Any) -> int:
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("PRAGMA secure_delete = ON")  # else the words stay in the file's free pages
    return connection.execute(delete(texts).where(condition)).rowcount
