"""What people say of an answer is kept, and what the router learns from is whole."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from baseload.ledger import AttemptRow, Ledger, OutcomeRow, RequestRow, outcomes
from baseload.ledger.outcomes import training_rows

DONE = RequestRow("r", 1.0, "openai_chat", "auto", decision={"p": 0.7}, status="done", finished_ts=2.0, task_class="mail")
FIRST = AttemptRow("a0", "r", 0, "local", "m", 1.0)
SECOND = AttemptRow("a1", "r", 1, "supplier", "big", 1.5, accepted=True)


@pytest.fixture
def book(url: str) -> Iterator[Ledger]:
    ledger = Ledger.open(url)
    yield ledger
    ledger.close()


def verdicts(book: Ledger) -> list[dict[str, Any]]:
    found = book.request("r")
    return found["outcomes"] if found else []


def test_feedback_is_about_the_answer_that_the_client_got(book: Ledger):
    for row in (DONE, FIRST, SECOND):
        book.add(row)  # not committed yet: a client may be that quick
    assert book.feedback("r", accepted=False, score=0.25, comment="wrong city") is True
    [found] = verdicts(book)
    assert (found["attempt_id"], found["passed"], found["score"]) == ("a1", False, 0.25)
    assert (found["comment"], found["source"]) == ("wrong city", "feedback")


def test_feedback_is_not_about_a_judge(book: Ledger):
    for row in (DONE, FIRST, SECOND, replace(SECOND, id="a2", n=2, role="judge")):
        book.add(row)
    assert book.feedback("r", accepted=True, source="audit")
    assert [(v["attempt_id"], v["source"]) for v in verdicts(book)] == [("a1", "audit")]


def test_nobody_judges_another_keys_request(book: Ledger):
    book.add(replace(DONE, key_id="mine"))
    book.add(FIRST)
    assert not book.feedback("r", accepted=True, key_id="yours")
    assert not book.feedback("r", accepted=True)
    assert not book.feedback("unknown", accepted=True, key_id="mine")
    assert verdicts(book) == []
    assert book.feedback("r", accepted=True, key_id="mine")


def test_the_last_word_counts_and_people_outrank_checks(book: Ledger):
    book.add(DONE)
    book.add(FIRST)
    book.add(SECOND)
    book.add(OutcomeRow("r", "a0", "schema", True, ts=1.0))
    book.add(OutcomeRow("r", "a0", "regex", False, ts=1.1))
    book.add(OutcomeRow("r", "a1", "schema", True, ts=1.2))
    book.feedback("r", accepted=True)
    book.feedback("r", accepted=False)
    book.add(OutcomeRow("r", "a1", "", None, ts=9e9, source="review", pending=True))
    book.flush()
    (row,) = training_rows(book.engine)
    assert (row.accepted("a0"), row.accepted("a1"), row.accepted("none")) == (False, False, None)
    book.add(OutcomeRow("r", "a1", "", True, ts=9.1e9, source="review"))
    book.flush()
    (row,) = training_rows(book.engine)
    assert row.accepted("a1") is True
    assert (row.decision, row.task_class, [a["id"] for a in row.attempts]) == ({"p": 0.7}, "mail", ["a0", "a1"])


def test_every_finished_request_is_read_once_however_many(book: Ledger, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(outcomes, "AT_ONCE", 7)
    for i in range(40):
        book.add(replace(DONE, id=f"r{i}", ts=float(i // 10)))  # many of one moment
        book.add(replace(FIRST, id=f"a{i}", request_id=f"r{i}"))
    book.add(replace(DONE, id="running", ts=50.0, status="running", finished_ts=None))
    book.flush()
    found = list(training_rows(book.engine, since=1.0))
    assert sorted(row.request_id for row in found) == sorted(f"r{i}" for i in range(10, 40))
    assert all(len(row.attempts) == 1 for row in found)
    assert [row.ts for row in found] == sorted(row.ts for row in found)
