"""The ledger as the server uses it: rows in, rows back out, whatever the order and the load."""

import asyncio
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from baseload.ledger import AttemptRow, EgressRow, Ledger, LedgerError, OutcomeRow, RequestRow
from baseload.ledger.ledger import open_for_reading

ASKED = RequestRow(id="r1", ts=100.0, protocol="openai_chat", model_asked="auto", decision={"route": "local", "why": ["fits"]})
TRIED = AttemptRow(id="a1", request_id="r1", n=0, backend="local", model="smollm2", started_ts=100.5)
JUDGED = OutcomeRow(request_id="r1", attempt_id="a1", check="schema", passed=False, evidence="$.city is missing", ts=101.0)
DIALLED = EgressRow(
    id="e1", ts=101.5, host="api.example", port=443, purpose="model", request_id="r1", allowed=True, reason="listed"
)


def url_of(path: Path) -> str:
    return f"sqlite:///{path}"


@pytest.fixture
def book(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger.open(url_of(tmp_path / "new" / "ledger.db"))
    yield ledger
    ledger.close()


def count(path: Path, table: str) -> int:
    with sqlite3.connect(path) as connection:
        return connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]


def test_a_request_comes_back_whole(book: Ledger):
    for row in (ASKED, TRIED, JUDGED, DIALLED):
        book.add(row)
    book.flush()
    found = book.request("r1")
    assert found is not None
    assert (found["status"], found["decision"]) == ("running", {"route": "local", "why": ["fits"]})
    assert [a["id"] for a in found["attempts"]] == ["a1"]
    assert [(o["check"], o["passed"], o["evidence"]) for o in found["outcomes"]] == [("schema", False, "$.city is missing")]
    assert [(e["host"], e["allowed"]) for e in found["egress"]] == [("api.example", True)]
    assert book.request("other") is None


def test_a_finish_replaces_its_start(book: Ledger):
    book.add(ASKED)
    book.add(TRIED)
    book.flush()
    book.add(replace(TRIED, accepted=True, completion_tokens=7, finish_reason="stop"))
    book.add(replace(ASKED, status="done", finished_ts=102.0, route="local"))
    book.flush()
    found = book.request("r1")
    assert found is not None
    assert (found["status"], found["finished_ts"], found["route"]) == ("done", 102.0, "local")
    assert [(a["accepted"], a["completion_tokens"]) for a in found["attempts"]] == [(True, 7)]


def test_start_and_finish_in_one_batch_end_as_the_finish(book: Ledger):
    book.add(ASKED)
    book.add(replace(ASKED, status="failed", finished_ts=103.0))
    book.flush()
    found = book.request("r1")
    assert found is not None
    assert found["status"] == "failed"


def test_two_verdicts_of_one_check_are_both_kept(book: Ledger):
    book.add(replace(JUDGED, evidence="first pattern"))
    book.add(replace(JUDGED, evidence="second pattern"))
    book.add(ASKED)
    book.flush()
    found = book.request("r1")
    assert found is not None
    assert {o["evidence"] for o in found["outcomes"]} == {"first pattern", "second pattern"}


def test_close_writes_what_waits(tmp_path: Path):
    path = tmp_path / "ledger.db"
    ledger = Ledger.open(url_of(path))
    for i in range(3000):
        ledger.add(replace(ASKED, id=f"r{i}"))
    ledger.close()
    assert count(path, "requests") == 3000
    with pytest.raises(LedgerError, match="closed"):
        ledger.add(ASKED)


def test_rows_come_in_from_many_threads(tmp_path: Path):
    path = tmp_path / "ledger.db"
    ledger = Ledger.open(url_of(path))

    def work(k: int) -> None:
        for i in range(400):
            ledger.add(replace(TRIED, id=f"{k}-{i}"))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ledger.flush()
    assert count(path, "attempts") == 2400
    ledger.close()


async def test_a_synced_row_is_on_the_disk_when_the_call_returns(tmp_path: Path):
    path = tmp_path / "ledger.db"
    ledger = Ledger.open(url_of(path))
    ledger.add(ASKED)
    await ledger.add_synced(DIALLED)
    assert (count(path, "egress"), count(path, "requests")) == (1, 1)  # and what came before it, in order
    await asyncio.gather(*(ledger.add_synced(replace(DIALLED, id=f"e{i}")) for i in range(50)))
    assert count(path, "egress") == 50
    ledger.close()


async def test_giving_up_on_a_synced_row_does_not_harm_the_writer(book: Ledger):
    for i in range(20):
        task = asyncio.ensure_future(book.add_synced(replace(DIALLED, id=f"e{i}")))
        await asyncio.sleep(0)
        task.cancel()
    await book.add_synced(replace(DIALLED, id="last"))
    assert book.healthy


def test_requests_that_a_killed_server_left_running_are_marked(tmp_path: Path):
    path = tmp_path / "ledger.db"
    first = Ledger.open(url_of(path))
    first.add(ASKED)
    first.add(replace(ASKED, id="r2", status="done", finished_ts=5.0))
    first.close()
    second = Ledger.open(url_of(path))
    assert (second.reconcile(), second.reconcile()) == (1, 0)
    statuses = [(second.request(r) or {})["status"] for r in ("r1", "r2")]
    second.close()
    assert statuses == ["interrupted", "done"]


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda raw: b"this is not a database, not at all" * 200, id="not a database"),
        pytest.param(lambda raw: raw[:5000], id="cut off"),
        pytest.param(lambda raw: raw[:4096] + bytes(len(raw) - 4096), id="pages zeroed"),
        pytest.param(lambda raw: raw[:100] + b"\xff" * 3000 + raw[3100:], id="first page overwritten"),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(tmp_path: Path, spoil: Any):
    path = tmp_path / "ledger.db"
    ledger = Ledger.open(url_of(path))
    for i in range(200):
        ledger.add(replace(ASKED, id=f"r{i}"))
    ledger.close()
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(LedgerError) as caught:
        Ledger.open(url_of(path))
    assert str(path) in caught.value.message
    assert "\n" not in caught.value.message


def test_a_newer_ledger_is_refused(tmp_path: Path):
    path = tmp_path / "ledger.db"
    Ledger.open(url_of(path)).close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(LedgerError, match="newer Baseload"):
        Ledger.open(url_of(path))


@pytest.mark.parametrize("url", ["postgresql://localhost/x", "sqlite://", "sqlite:///:memory:", "no url", ""])
def test_other_addresses_are_refused(url: str):
    with pytest.raises(LedgerError):
        Ledger.open(url)


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LedgerError, match="cannot be used"):
        Ledger.open(url_of(tmp_path / "file" / "ledger.db"))


def test_reading_needs_a_ledger_and_makes_none(tmp_path: Path):
    with pytest.raises(LedgerError, match="no ledger"):
        open_for_reading(url_of(tmp_path / "none.db"))
    (tmp_path / "empty.db").touch()
    with pytest.raises(LedgerError, match="cannot be used"):
        open_for_reading(url_of(tmp_path / "empty.db"))
    assert not (tmp_path / "none.db").exists()


def test_a_row_that_no_database_takes_does_not_hold_up_the_others(book: Ledger):
    book.add(replace(TRIED, id="bad", prompt_tokens=1 << 70))
    book.add(replace(ASKED, id="unjson", decision={"x": object()}))
    book.add(ASKED)
    book.add(TRIED)
    book.flush()
    assert book.rejected == 2 and book.healthy
    assert len((book.request("r1") or {})["attempts"]) == 1
    assert book.request("unjson") is None


async def test_a_synced_row_that_no_database_takes_is_an_error(book: Ledger):
    with pytest.raises(LedgerError, match="does not take"):
        await book.add_synced(replace(DIALLED, port=1 << 70))
    await book.add_synced(DIALLED)


text = st.text(st.characters(), max_size=40)  # surrogates too


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(evidence=text, error=text, tokens=st.integers(0, 2**63 - 1), score=st.none() | st.floats(0, 1))
def test_any_text_and_number_survives(book: Ledger, evidence: str, error: str, tokens: int, score: float | None):
    book.add(replace(ASKED, id="p"))
    book.add(replace(TRIED, id="pa", request_id="p", error=error, prompt_tokens=tokens))
    book.add(replace(JUDGED, request_id="p", evidence=evidence, score=score))
    book.flush()
    found = book.request("p") or {}
    assert book.rejected == 0
    assert found["attempts"][0]["prompt_tokens"] == tokens
    assert found["attempts"][0]["error"] == error.encode("utf-8", "replace").decode().replace("\0", "\ufffd")
    assert found["outcomes"][-1]["evidence"] in {o["evidence"] for o in found["outcomes"]}
    assert evidence.encode("utf-8", "replace").decode().replace("\0", "\ufffd") in {o["evidence"] for o in found["outcomes"]}
    assert score in {o["score"] for o in found["outcomes"]}
