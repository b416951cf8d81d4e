"""`baseload ledger tasks, verify, export`: what an operator reads."""

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from baseload.cli.ledger import app
from baseload.ledger import AttemptRow, Ledger, RequestRow, budgets
from baseload.ledger.ledger import open_for_reading
from baseload.ledger.rows import TextRow
from baseload.ledger.texts import kept

PROFILE = Path(__file__).parents[2] / "configs" / "hardware" / "example-workstation.toml"


@pytest.fixture
def place(tmp_path: Path) -> str:
    path = str(tmp_path / "ledger.db")
    ledger = Ledger.open(f"sqlite:///{path}")
    budgets.put(ledger.engine, "all", "", "total", 5)
    held = budgets.reserve(ledger.engine, "r0", 1)
    assert isinstance(held, str) and budgets.settle(ledger.engine, held, 1)
    for i in range(12):
        ledger.add(RequestRow(f"r{i}", 10.0 + i, "openai_chat", "auto", status="done", finished_ts=50.0, job="mail"))
        tried = AttemptRow(f"a{i}", f"r{i}", 0, "local", "m", 10.0, prompt_tokens=1000, completion_tokens=10)
        ledger.add(replace(tried, accepted=i % 4 > 0, device_seconds=36.0))
    ledger.close()
    return path


def run(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, list(words))
    return done.exit_code, done.output


def test_dollars_for_each_accepted_task(place: str):
    code, text = run("tasks", "--db", place, "--by", "job", "--hardware", str(PROFILE), "--json")
    found = json.loads(text)
    (group,) = found["groups"]
    assert (code, group["group"], group["tasks"], group["accepted"]) == (0, "mail", 12, 9)
    assert group["usd"] == pytest.approx(12 * 36 / 3600 * found["usd_per_hour"]["value"] / 9)
    assert (group["note"], found["usd_per_hour"]["known"]) == ("too few samples", "assumed")


def test_without_a_profile_local_work_is_unpriced_not_free(place: str):
    code, text = run("tasks", "--db", place)
    assert code == 0 and "unpriced" in text and "$0" not in text


def test_a_profile_that_is_wrong_is_one_line(place: str, tmp_path: Path):
    (tmp_path / "bad.toml").write_text("watts = 'many'")
    code, text = run("tasks", "--db", place, "--hardware", str(tmp_path / "bad.toml"))
    assert code == 1 and "missing" in text and "Traceback" not in text


def test_books_that_were_tampered_with_are_found(place: str):
    assert run("verify", "--db", place)[0] == 0
    ledger = Ledger.open(f"sqlite:///{place}")
    with ledger.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE budget_windows SET spent_nanousd = spent_nanousd - 1")
    ledger.close()
    code, text = run("verify", "--db", place)
    assert code == 1 and "all::total: spent" in text


def test_an_export_is_one_object_a_request(place: str):
    code, text = run("export", "--db", place)
    rows = [json.loads(line) for line in text.splitlines()]
    assert (code, [row["request_id"] for row in rows]) == (0, [f"r{i}" for i in range(12)])
    assert rows[0]["attempts"][0]["device_seconds"] == 36.0


def test_the_local_answers_at_a_suppliers_price(place: str, tmp_path: Path):
    code, text = run("prices", "anthropic/claude-sonnet-4-5", "--db", place, "--json")
    found = json.loads(text)
    assert (code, found["answers"], float(found["quotes"][0]["usd"])) == (0, 9, 0.02835)  # 9 * (1000 * $3 + 10 * $15) / 10^6
    (tmp_path / "own.toml").write_text('["us/m"]\ninput = 1\noutput = 100\n')
    code, text = run("prices", "us/m", "--db", place, "--override", str(tmp_path / "own.toml"))
    assert code == 0 and "0.018000" in text and "declared" in text
    code, text = run("prices", "nobody/nothing", "--db", place)
    assert code == 1 and "No price is known" in text


def test_kept_texts_are_forgotten_on_demand(place: str):
    ledger = Ledger.open(f"sqlite:///{place}", keep_text_days=36500)
    for name, ts in (("r0", 10.0), ("r1", 10.0), ("r2", time.time())):
        ledger.add(TextRow(name, name, ts, {"prompt": "a secret"}))
    ledger.close()
    assert run("forget", "--db", place)[0] == 2
    assert run("forget", "--db", place, "--request", "r0") == (0, "1 texts are forgotten.\n")
    assert run("forget", "--db", place, "--before", "7d") == (0, "1 texts are forgotten.\n")
    assert list(kept(open_for_reading(f"sqlite:///{place}"), ["r0", "r1", "r2"])) == ["r2"]
