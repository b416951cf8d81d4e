"""Texts that are kept: found again, forgotten in time, and not a word of them left behind."""

import time
from pathlib import Path
from typing import Any

from baseload.ledger.ledger import Ledger
from baseload.ledger.rows import AttemptRow, RequestRow, TextRow
from baseload.ledger.texts import forget, kept, requests_kept

DAY = 86_400
SECRET = "the patient is called Ada"


def request(name: str, ts: float, words: str = SECRET) -> list[Any]:
    return [
        RequestRow(name, ts, "openai_chat", "local", status="done", finished_ts=ts + 1),
        AttemptRow(f"{name}-a", name, 0, "local", "small", ts),
        TextRow(name, name, ts, {"prompt": words}),
        TextRow(f"{name}-a", name, ts, None, [{"text": words[::-1]}]),
    ]


def test_what_is_kept_is_found_again_until_its_time_is_over(url: str):
    ledger, now = Ledger.open(url, keep_text=True, keep_text_days=30), time.time()
    for row in [*request("old", now - 29 * DAY), *request("new", now)]:
        ledger.add(row)
    ledger.flush()
    found = kept(ledger.engine, ["old", "new-a", "none"])
    assert found["old"].asked == {"prompt": SECRET} and found["old"].answers is None
    assert found["new-a"].asked is None and found["new-a"].answers == [{"text": SECRET[::-1]}]
    assert list(requests_kept(ledger.engine, 0)) == ["old", "new"]
    ledger.close()
    later = Ledger.open(url, keep_text=False, keep_text_days=20)  # not kept any more; what was is forgotten in its time
    deadline = time.monotonic() + 20
    while kept(later.engine, ["old"]):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert set(kept(later.engine, ["old", "old-a", "new", "new-a"])) == {"new", "new-a"}
    assert later.report().total.requests == 2  # what it cost stays
    later.close()


def test_any_words_are_kept(url: str):
    ledger = Ledger.open(url, keep_text=True)
    odd = {"prompt": "nul \0, half a pair \ud800, ☃ and \u2028"}
    ledger.keep(TextRow("r", "r", time.time(), odd))
    ledger.flush()
    assert kept(ledger.engine, ["r"])["r"].asked == odd and ledger.rejected == 0
    ledger.close()


def test_where_the_disk_fails_texts_are_given_up_before_rows(url: str, monkeypatch: Any):
    monkeypatch.setattr("baseload.ledger.ledger.TEXTS_WAITING", 1)
    monkeypatch.setattr("baseload.ledger.writer.BATCH_S", 30.0)
    ledger = Ledger.open(url, keep_text=True)
    for row in request("r", time.time()):
        (ledger.keep if isinstance(row, TextRow) else ledger.add)(row)
    ledger.flush()
    assert kept(ledger.engine, ["r", "r-a"]) == {} and (ledger.request("r") or {})["attempts"]
    ledger.close()


def test_a_server_that_is_never_restarted_forgets_too(url: str, monkeypatch: Any):
    monkeypatch.setattr("baseload.ledger.writer.CHORE_S", 0.05)
    ledger = Ledger.open(url, keep_text=True, keep_text_days=0.02 / DAY)
    for row in request("r", time.time()):
        ledger.add(row)
    ledger.flush()
    deadline = time.monotonic() + 20
    while kept(ledger.engine, ["r", "r-a"]):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    ledger.close()


def test_one_request_or_all_before_a_time_are_forgotten(url: str):
    ledger = Ledger.open(url, keep_text=True)
    for i in range(4):
        for row in request(f"r{i}", time.time() - i * DAY):
            ledger.add(row)
    ledger.flush()
    assert forget(ledger.engine, request_id="r0") == 2
    assert forget(ledger.engine, before=time.time() - 1.5 * DAY) == 4
    assert list(requests_kept(ledger.engine, 0)) == ["r1"]
    assert (ledger.request("r0") or {})["attempts"]
    ledger.close()


def test_of_what_is_forgotten_no_word_stays_in_the_files(tmp_path: Path):
    ledger = Ledger.open(f"sqlite:///{tmp_path}/l.db", keep_text=True)
    for row in request("r", time.time()):
        ledger.add(row)
    ledger.flush()
    read = lambda: b"".join(path.read_bytes() for path in tmp_path.iterdir())  # noqa: E731
    assert SECRET.encode() in read()
    forget(ledger.engine, request_id="r")
    assert SECRET.encode() not in read()
    ledger.close()
