"""Older ledgers are brought up to date with all they hold, on both databases."""

import sqlite3
import threading
from dataclasses import fields
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, event, inspect

from baseload.ledger import AttemptRow, EgressRow, Ledger, LedgerError, OutcomeRow, RequestRow
from baseload.ledger.database import connect, open_for_reading
from baseload.ledger.schema import HEAD, TABLES, metadata

# The tables as they were made before there were versions.
OLD = """
CREATE TABLE requests (id VARCHAR NOT NULL PRIMARY KEY, ts FLOAT NOT NULL, protocol VARCHAR NOT NULL,
  model_asked VARCHAR NOT NULL, route VARCHAR NOT NULL, decision JSON NOT NULL, status VARCHAR NOT NULL,
  stream BOOLEAN NOT NULL,
  finished_ts FLOAT, key_id VARCHAR, error_code VARCHAR);
CREATE INDEX ix_requests_ts ON requests (ts);
CREATE TABLE attempts (id VARCHAR NOT NULL PRIMARY KEY, request_id VARCHAR NOT NULL, n INTEGER NOT NULL,
  backend VARCHAR NOT NULL, model VARCHAR NOT NULL, started_ts FLOAT NOT NULL, first_token_s FLOAT, duration_s FLOAT,
  prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL, cached_tokens INTEGER NOT NULL, finish_reason VARCHAR,
  accepted BOOLEAN NOT NULL, retail_usd FLOAT, error VARCHAR);
CREATE INDEX ix_attempts_request_id ON attempts (request_id);
CREATE TABLE outcomes (id VARCHAR NOT NULL PRIMARY KEY, request_id VARCHAR NOT NULL, attempt_id VARCHAR NOT NULL,
  "check" VARCHAR NOT NULL, passed BOOLEAN, score FLOAT, evidence VARCHAR NOT NULL, ts FLOAT NOT NULL);
CREATE INDEX outcomes_request ON outcomes (request_id);
CREATE TABLE egress (id VARCHAR NOT NULL PRIMARY KEY, ts FLOAT NOT NULL, host VARCHAR NOT NULL, port INTEGER NOT NULL,
  purpose VARCHAR NOT NULL, request_id VARCHAR, allowed BOOLEAN NOT NULL, reason VARCHAR NOT NULL);
CREATE INDEX ix_egress_ts ON egress (ts);
CREATE INDEX ix_egress_request_id ON egress (request_id);
INSERT INTO requests VALUES ('r', 1.0, 'openai_chat', 'auto', 'local', '{"why": "fits"}', 'done', 0, 2.0, NULL, NULL);
INSERT INTO attempts VALUES ('a', 'r', 0, 'local', 'm', 1.0, 0.1, 1.0, 10, 5, 3, 'stop', 1, 0.25, NULL);
INSERT INTO outcomes VALUES ('o', 'r', 'a', 'schema', 1, NULL, '', 1.5);
PRAGMA user_version = 1;
"""


def make_old(path: Path) -> str:
    with sqlite3.connect(path) as connection:
        connection.executescript(OLD)
    return f"sqlite:///{path}"


def test_a_new_ledger_has_the_tables_that_the_code_expects(url: str):
    Ledger.open(url).close()
    with connect(url).connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    for row, table in TABLES.items():
        assert {f.name for f in fields(row)} | {"id"} == {c.name for c in table.columns}


def test_a_ledger_of_before_keeps_what_it_holds(tmp_path: Path):
    ledger = Ledger.open(make_old(tmp_path / "old.db"))
    found = ledger.request("r") or {}
    total = ledger.report().total
    ledger.add(AttemptRow("b", "r", 1, "local", "m", 2.0, role="judge", device_seconds=0.5, seed=2**62))
    ledger.close()
    assert (found["decision"], found["job"], found["attempts"][0]["role"]) == ({"why": "fits"}, None, "answer")
    assert (found["outcomes"][0]["source"], found["outcomes"][0]["pending"]) == ("check", False)
    assert (total.requests, total.retail_usd) == (1, 0.25)
    with connect(f"sqlite:///{tmp_path}/old.db").connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_a_report_on_a_ledger_of_before_brings_it_up_to_date(tmp_path: Path):
    engine = open_for_reading(make_old(tmp_path / "old.db"))
    assert {"job", "task_class"} <= {c["name"] for c in inspect(engine).get_columns("requests")}


def test_whatever_statement_of_a_migration_fails_the_ledger_stays_as_it_was(tmp_path: Path):
    for nth in range(1, 200):
        path, seen = tmp_path / f"{nth}.db", 0
        url = make_old(path)

        def fail(connection: object, cursor: object, statement: str, *_: object, nth: int = nth) -> None:
            nonlocal seen
            seen += statement.lstrip()[:6].upper() in ("ALTER ", "CREATE", "UPDATE", "INSERT")
            if seen == nth:
                raise OSError(28, "No space left on device")

        event.listen(Engine, "before_cursor_execute", fail)
        try:
            Ledger.open(url).close()
        except LedgerError:
            with sqlite3.connect(path) as connection:
                columns = [row[1] for row in connection.execute("PRAGMA table_info(requests)")]
                assert "job" not in columns
                assert connection.execute("PRAGMA user_version").fetchone() == (1,)
        else:
            return
        finally:
            event.remove(Engine, "before_cursor_execute", fail)
        Ledger.open(url).close()
    raise AssertionError("no run passed without a failure")


def test_servers_that_start_together_make_one_ledger(url: str):
    errors: list[Exception] = []

    def start() -> None:
        try:
            Ledger.open(url).close()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=start) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


def test_a_newer_ledger_is_refused_on_both(url: str):
    ledger = Ledger.open(url)
    with ledger.engine.begin() as connection:
        connection.exec_driver_sql(f"UPDATE alembic_version SET version_num = '{HEAD + 1}'")
    ledger.close()
    with pytest.raises(LedgerError, match="newer Baseload"):
        Ledger.open(url)


async def test_rows_come_back_from_both(url: str):
    ledger = Ledger.open(url)
    ledger.add(RequestRow("r", 1.0, "openai_chat", "auto", decision={"x": [1, "ü"]}, job="mail", budget_usd=0.5))
    ledger.add(AttemptRow("a", "r", 0, "local", "m", 1.0, prompt_tokens=2**62, error="half\0line"))
    ledger.add(AttemptRow("bad", "r", 1, "local", "m", 1.0, prompt_tokens=2**70))
    ledger.add(OutcomeRow("r", "a", "schema", None, 0.5, comment="so so", source="review", pending=True))
    await ledger.add_synced(EgressRow("e", 1.0, "h", 443, "model", "r", True))
    ledger.add(RequestRow("r", 1.0, "openai_chat", "auto", status="done", job="mail"))
    ledger.flush()
    found = ledger.request("r") or {}
    assert (found["status"], found["job"]) == ("done", "mail")
    assert [(a["id"], a["prompt_tokens"], a["error"]) for a in found["attempts"]] == [("a", 2**62, "half\ufffdline")]
    assert [(o["score"], o["source"], o["pending"]) for o in found["outcomes"]] == [(0.5, "review", True)]
    assert (len(found["egress"]), ledger.rejected, ledger.healthy) == (1, 1, True)
    ledger.close()
