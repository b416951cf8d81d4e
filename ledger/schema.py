"""The ledger's tables: one per row class of `ledger.rows`, with the same column names.

`VERSION` is written into the file (SQLite's `user_version`); a file of a newer version is refused rather than misread.
"""

from __future__ import annotations

import dataclasses
import uuid
from typing import Any

from sqlalchemy import JSON, Boolean, Column, Float, Index, Integer, MetaData, String, Table
from sqlalchemy.dialects.sqlite import Insert, insert

from .rows import AttemptRow, EgressRow, OutcomeRow, RequestRow, Row

VERSION = 1

metadata = MetaData()

requests = Table(
    "requests",
    metadata,
    Column("id", String, primary_key=True),
    Column("ts", Float, nullable=False, index=True),
    Column("protocol", String, nullable=False),
    Column("model_asked", String, nullable=False),
    Column("route", String, nullable=False),
    Column("decision", JSON, nullable=False),
    Column("status", String, nullable=False),
    Column("stream", Boolean, nullable=False),
    Column("finished_ts", Float),
    Column("key_id", String),
    Column("error_code", String),
)

attempts = Table(
    "attempts",
    metadata,
    Column("id", String, primary_key=True),
    Column("request_id", String, nullable=False, index=True),
    Column("n", Integer, nullable=False),
    Column("backend", String, nullable=False),
    Column("model", String, nullable=False),
    Column("started_ts", Float, nullable=False),
    Column("first_token_s", Float),
    Column("duration_s", Float),
    Column("prompt_tokens", Integer, nullable=False),
    Column("completion_tokens", Integer, nullable=False),
    Column("cached_tokens", Integer, nullable=False),
    Column("finish_reason", String),
    Column("accepted", Boolean, nullable=False),
    Column("retail_usd", Float),
    Column("error", String),
)

outcomes = Table(
    "outcomes",
    metadata,
    Column("id", String, primary_key=True),  # ours: an attempt may fail two checks of one name
    Column("request_id", String, nullable=False),
    Column("attempt_id", String, nullable=False),
    Column("check", String, nullable=False),
    Column("passed", Boolean),
    Column("score", Float),
    Column("evidence", String, nullable=False),
    Column("ts", Float, nullable=False),
    Index("outcomes_request", "request_id"),
)

egress = Table(
    "egress",
    metadata,
    Column("id", String, primary_key=True),
    Column("ts", Float, nullable=False, index=True),
    Column("host", String, nullable=False),
    Column("port", Integer, nullable=False),
    Column("purpose", String, nullable=False),
    Column("request_id", String, index=True),
    Column("allowed", Boolean, nullable=False),
    Column("reason", String, nullable=False),
)

TABLES: dict[type[Row], Table] = {RequestRow: requests, AttemptRow: attempts, OutcomeRow: outcomes, EgressRow: egress}
NAMES = {kind: tuple(f.name for f in dataclasses.fields(kind)) for kind in TABLES}


def values(row: Row) -> dict[str, Any]:
    """The row as column values, with text that UTF-8 cannot hold made harmless."""
    out = {name: _clean(getattr(row, name)) for name in NAMES[type(row)]}
    if isinstance(row, OutcomeRow):
        out["id"] = uuid.uuid4().hex
    return out


def _clean(value: Any) -> Any:
    return value if not isinstance(value, str) or value.isascii() else value.encode("utf-8", "replace").decode()


def upsert(table: Table) -> Insert:
    """Insert, or replace the row of the same id: a retried or finished row is never doubled."""
    statement = insert(table)
    changed = {c.name: statement.excluded[c.name] for c in table.columns if not c.primary_key}
    return statement.on_conflict_do_update(index_elements=["id"], set_=changed)


UPSERTS: dict[Table, Insert] = {table: upsert(table) for table in TABLES.values()}
