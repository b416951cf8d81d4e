"""The ledger's tables: one per row class of `ledger.rows`, with the same column names.

`HEAD` is the last step in `migrations/versions`, which make these tables; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from json import dumps
from typing import Any

from sqlalchemy import JSON, BigInteger, Boolean, Column, Float, Index, Integer, MetaData, String, Table, false
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.engine import Dialect
from sqlalchemy.sql.dml import Insert

from .rows import AttemptRow, EgressRow, EnergyRow, OutcomeRow, RequestRow, Row, TextRow, new_id

HEAD = 5

metadata = MetaData()

Count = BigInteger().with_variant(Integer, "sqlite")  # 64 bits on both

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
    Column("job", String),
    Column("task_class", String),
    Column("session", String),
    Column("data_class", String),
    Column("budget_usd", Float),
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
    Column("prompt_tokens", Count, nullable=False),
    Column("completion_tokens", Count, nullable=False),
    Column("cached_tokens", Count, nullable=False),
    Column("finish_reason", String),
    Column("accepted", Boolean, nullable=False),
    Column("retail_usd", Float),
    Column("error", String),
    Column("role", String, nullable=False, server_default="answer"),
    Column("device_seconds", Float),
    Column("energy_joules", Float),
    Column("internal_usd", Float),
    Column("model_digest", String),
    Column("template_digest", String),
    Column("kernels_digest", String),
    Column("settings_digest", String),
    Column("seed", Count),
    Column("tokens_digest", String),
    Column("cache_write_tokens", Count, nullable=False, server_default="0"),
    Column("input_seconds", Float),
    Column("energy_known", String),
    Column("internal_known", String),
)

texts = Table(
    "texts",
    metadata,
    Column("id", String, primary_key=True),  # a request's, or an attempt's
    Column("request_id", String, nullable=False, index=True),
    Column("ts", Float, nullable=False, index=True),
    Column("asked", JSON(none_as_null=True)),  # a ChatRequest (wire/neutral.py); empty: what the request asked
    Column("answers", JSON(none_as_null=True)),  # of an attempt, one for each choice
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
    Column("ts", Float, nullable=False, index=True),
    Column("source", String, nullable=False, server_default="check"),
    Column("comment", String, nullable=False, server_default=""),
    Column("pending", Boolean, nullable=False, server_default=false()),
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

keys = Table(
    "keys",
    metadata,
    Column("id", String, primary_key=True),
    Column("name", String, nullable=False),
    Column("hash", String, nullable=False),
    Column("prefix", String, nullable=False),
    Column("scopes", JSON, nullable=False),
    Column("created_ts", Float, nullable=False),
    Column("revoked_ts", Float),
)

budgets = Table(
    "budgets",
    metadata,
    Column("id", String, primary_key=True),
    Column("kind", String, nullable=False),  # key | job | all
    Column("name", String, nullable=False),  # the key's id or the job's name
    Column("period", String, nullable=False),  # day (UTC) | total
    Column("limit_nanousd", Count, nullable=False),
)

budget_windows = Table(
    "budget_windows",
    metadata,
    Column("budget_id", String, primary_key=True),
    Column("start_ts", Count, primary_key=True),  # of the day; 0 for a total
    Column("held_nanousd", Count, nullable=False),
    Column("spent_nanousd", Count, nullable=False),
)

reservations = Table(
    "reservations",
    metadata,
    Column("id", String, primary_key=True),
    Column("request_id", String, nullable=False, index=True),
    Column("ts", Float, nullable=False),
    Column("expires_ts", Float, nullable=False),
    Column("status", String, nullable=False, index=True),  # held | settled | released | expired
    Column("amount_nanousd", Count, nullable=False),
    Column("settled_nanousd", Count),
    Column("windows", JSON, nullable=False),  # [[budget id, start], ...]
)

energy = Table(
    "energy",
    metadata,
    Column("id", String, primary_key=True),
    Column("ts", Float, nullable=False, index=True),
    Column("seconds", Float, nullable=False),
    Column("busy_s", Float, nullable=False),
    Column("joules", Float),
    Column("idle_s", Float, nullable=False),
    Column("idle_joules", Float),
    Column("known", String, nullable=False),  # measured | declared | assumed | none
    Column("source", String, nullable=False),
    Column("power_valid", Boolean, nullable=False),
    Column("reason", String, nullable=False),
)

TABLES: dict[type[Row], Table] = {RequestRow: requests, AttemptRow: attempts, OutcomeRow: outcomes, EgressRow: egress}
TABLES |= {TextRow: texts, EnergyRow: energy}
TEXTS = {kind: tuple(c.name for c in table.columns if isinstance(c.type, String)) for kind, table in TABLES.items()}


def values(row: Row) -> dict[str, Any]:
    """The row as column values, with text that UTF-8 or PostgreSQL cannot hold made harmless."""
    out = dict(vars(row))
    for name in TEXTS[type(row)]:
        text = out.get(name)
        if text and (not text.isascii() or "\0" in text):
            out[name] = text.encode("utf-8", "replace").decode().replace("\0", "\ufffd")
    if isinstance(row, OutcomeRow):
        out["id"] = new_id()
    return out


def upsert(table: Table, dialect: str) -> Insert:
    """Insert, or replace the row of the same id: a retried or finished row is never doubled."""
    statement = (postgresql.insert if dialect == "postgresql" else sqlite.insert)(table)
    changed = {c.name: statement.excluded[c.name] for c in table.columns if not c.primary_key}
    return statement.on_conflict_do_update(index_elements=["id"], set_=changed)


@dataclass(frozen=True)
class Upsert:
    """`upsert` as its driver takes it: SQLAlchemy's own way from rows to parameters costs more than SQLite's work on them.

    `order` is that of the parameters, None where they go by name; `json` are the columns that are written as text.
    """

    sql: str
    order: tuple[str, ...] | None
    json: tuple[str, ...]

    def parameters(self, rows: Iterable[dict[str, Any]]) -> list[Any]:
        """The rows' `values` for the driver's executemany."""
        if self.json:
            rows = [row | {name: _json(row[name]) for name in self.json} for row in rows]
        return [tuple(row[name] for name in self.order) for row in rows] if self.order else list(rows)


def _json(value: Any) -> str | None:
    return None if value is None else dumps(value)


def _compiled(table: Table, dialect: Dialect) -> Upsert:
    made = upsert(table, dialect.name).compile(dialect=dialect)
    order = tuple(made.positiontup) if made.positiontup else None
    return Upsert(str(made), order, tuple(c.name for c in table.columns if isinstance(c.type, JSON)))


UPSERTS: dict[str, dict[Table, Upsert]] = {
    dialect.name: {table: _compiled(table, dialect) for table in TABLES.values()}
    for dialect in (sqlite.dialect(), PGDialect_psycopg())
}
