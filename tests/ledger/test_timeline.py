"""Sums over stretches of time and pages of requests say what the rows say, on both databases, and read no more than allowed."""

import random
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import pytest
from sqlalchemy import event, text

from baseload.ledger.ledger import Ledger
from baseload.ledger.outcomes import training_rows
from baseload.ledger.recent import recent
from baseload.ledger.rows import AttemptRow, OutcomeRow, RequestRow
from baseload.ledger.tasks import task
from baseload.ledger.timeline import Group, stretch

T = 1_700_000_000.0
FIGURES = tuple(field.name for field in fields(Group))[2:]
JUDGES = ("check", "feedback", "review", "audit")


@pytest.fixture
def ledger(url: str) -> Iterator[Ledger]:
    opened = Ledger.open(url)
    yield opened
    opened.close()


def traffic(ledger: Ledger, seed: int, n: int = 150) -> None:
    """n requests, one a second: some escalated, some failed, some never tried, judged by all sorts of judges."""
    rng = random.Random(seed)
    for i in range(n):
        name, ts = f"r{seed}_{i:05}", T + i
        key, job = rng.choice([None, "k1", "k2"]), rng.choice([None, None, "triage"])
        status = rng.choice(["done", "done", "failed"])
        ledger.add(RequestRow(name, ts, "openai_chat", "auto", "local", status=status, finished_ts=ts + 1, key_id=key, job=job))
        tries = rng.choice([0, 1, 1, 1, 2, 3])
        for k in range(tries):
            local = k == 0 or rng.random() < 0.2
            price = None if local or rng.random() < 0.2 else rng.random() / 1000
            own = rng.random() / 1000 if local and rng.random() < 0.8 else None
            row = AttemptRow(
                f"{name}_{k}", name, k, "local" if local else "acme", "m", ts, 0.1, 0.5, rng.randrange(500), rng.randrange(90),
                7, accepted=k == tries - 1 and status == "done", retail_usd=price, internal_usd=own,
                energy_joules=rng.random() if local and rng.random() < 0.9 else None,
            )  # fmt: skip
            ledger.add(row)
            ledger.add(replace(row, id=f"{row.id}j", n=90 + k, role="judge", accepted=False)) if rng.random() < 0.1 else None
            for _ in range(rng.choice([0, 0, 1, 2, 4])):
                source, passed = rng.choice(JUDGES), rng.choice([True, True, False, None])
                when = ts + rng.random()
                ledger.add(OutcomeRow(name, row.id, "c" if source == "check" else "", passed, ts=when, source=source))
    ledger.flush()


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_stretch_sums_what_its_rows_say(ledger: Ledger, seed: int):
    traffic(ledger, seed)
    start, end = T + 20, T + 120
    rows = [row for row in training_rows(ledger.engine, start) if row.ts < end]
    found = stretch(ledger.engine, start, end)
    tasks = [task(row, None, "") for row in rows]
    attempts = [a for row in rows for a in row.attempts]
    total = {name: sum(getattr(g, name) or 0 for g in found.groups) for name in FIGURES}
    local, bought = [a for a in attempts if a["backend"] == "local"], [a for a in attempts if a["backend"] != "local"]
    kept = [a for a in local if a["accepted"]]
    assert not found.cut
    assert total["requests"] == len(rows) == 100
    assert total["accepted"] == sum(t.accepted for t in tasks)
    assert total["attempts"] == len(attempts)
    for name in ("prompt_tokens", "completion_tokens", "cached_tokens"):
        assert total[name] == sum(a[name] for a in attempts)
        assert total[f"kept_{name}"] == sum(a[name] for a in kept)
    assert total["kept"] == len(kept)
    assert total["supplier_usd"] == pytest.approx(sum(a["retail_usd"] or 0 for a in bought))
    assert total["supplier_unknown"] == sum(a["retail_usd"] is None for a in bought)
    assert total["local_usd"] == pytest.approx(sum(a["internal_usd"] or 0 for a in local))
    assert total["local_unknown"] == sum(a["internal_usd"] is None for a in local)
    assert total["joules_unknown"] == sum(a["energy_joules"] is None for a in local)
    assert total["joules"] == pytest.approx(sum(a["energy_joules"] or 0 for a in local))
    by_key = {row.key_id or "" for row in rows}
    assert {group.key_id for group in found.groups} == by_key
    for key in by_key:
        assert sum(g.requests for g in found.groups if g.key_id == key) == sum((r.key_id or "") == key for r in rows)
    asked = {row.request_id: next((a["backend"] for a in row.attempts if a["accepted"]), "") for row in rows}
    for place in set(asked.values()):
        assert sum(g.requests for g in found.groups if g.answered == place) == list(asked.values()).count(place)


def test_what_nobody_knows_is_no_zero(ledger: Ledger):
    ledger.add(RequestRow("r", T, "openai_chat", "local", "local", status="done", finished_ts=T + 1))
    ledger.add(AttemptRow("a", "r", 0, "local", "m", T, accepted=True, prompt_tokens=5, completion_tokens=2))
    ledger.flush()
    (group,) = stretch(ledger.engine, T, T + 1).groups
    assert (group.supplier_usd, group.local_usd, group.joules) == (None, None, None)
    assert (group.supplier_unknown, group.local_unknown, group.joules_unknown) == (0, 1, 1)
    (line,) = recent(ledger.engine)
    assert (line["local_usd"], line["supplier_usd"]) == (None, 0.0)


def test_what_still_runs_is_not_unknown_yet(ledger: Ledger):
    ledger.add(RequestRow("r", T, "openai_chat", "local", "local"))
    ledger.add(AttemptRow("a", "r", 0, "local", "m", T))
    ledger.add(AttemptRow("b", "r", 1, "acme", "m", T))
    ledger.flush()
    (group,) = stretch(ledger.engine, T, T + 1).groups
    assert (group.attempts, group.supplier_unknown, group.local_unknown, group.joules_unknown) == (2, 0, 0, 0)


def test_of_a_busy_stretch_the_newest_are_summed_and_it_says_so(ledger: Ledger):
    traffic(ledger, 4, 60)
    found = stretch(ledger.engine, T, T + 60, most=25)
    assert found.cut
    assert sum(group.requests for group in found.groups) == 25
    whole = stretch(ledger.engine, T + 35, T + 60)
    assert sorted(map(repr, found.groups)) == sorted(map(repr, whole.groups))


def test_pages_of_requests_follow_each_other_without_gap_or_double(ledger: Ledger):
    traffic(ledger, 5, 90)
    for i in range(20):  # as old as each other
        ledger.add(RequestRow(f"same{i:02}", T + 40.5, "openai_chat", "auto", status="done"))
    ledger.flush()
    seen, before = [], None
    while page := recent(ledger.engine, before=before, limit=7):
        seen += [(line["ts"], line["id"]) for line in page]
        before = seen[-1]
    assert seen == sorted(seen, reverse=True)
    assert len(set(seen)) == 110
    failed = recent(ledger.engine, "failed", limit=200)
    assert {line["status"] for line in failed} == {"failed"}
    assert len(failed) == sum(line["status"] == "failed" for line in recent(ledger.engine, limit=200))


@pytest.mark.parametrize(
    ("decision", "words"),
    [
        ({"mode": "auto", "rungs": [{"allowed": True}], "notes": [{"by": "rule", "why": "mail stays"}]}, "rule: mail stays"),
        ({"mode": "supplier", "rungs": [{"allowed": False, "gate": "air_gap", "reason": "shut"}]}, "gate air_gap: shut"),
        ({"mode": "local", "rungs": [{"allowed": True}]}, "asked for by name"),
        ({"mode": "auto", "rungs": [{"allowed": True}]}, "first place allowed"),
        ({}, ""),
    ],
)  # fmt: skip
def test_a_decision_is_told_in_a_phrase(ledger: Ledger, decision: dict[str, Any], words: str):
    ledger.add(RequestRow("r", T, "openai_chat", "auto", decision=decision))
    ledger.flush()
    assert recent(ledger.engine)[0]["why"] == words


def test_neither_reads_the_whole_ledger(ledger: Ledger):
    """The database finds the rows by their indexes, so what a question costs does not grow with the ledger."""
    if ledger.engine.dialect.name != "sqlite":
        pytest.skip("PostgreSQL chooses by the table's size: a small one is read whole")
    traffic(ledger, 6, 50)
    asked: list[tuple[str, Any]] = []

    @event.listens_for(ledger.engine, "before_cursor_execute")
    def note(_connection: Any, _cursor: Any, statement: str, given: Any, *_: Any) -> None:
        asked.append((statement, given))

    stretch(ledger.engine, T, T + 60)
    recent(ledger.engine)
    recent(ledger.engine, "failed", (T + 30, "x"))
    queries, asked = [one for one in asked if one[0].lstrip().upper().startswith(("SELECT", "WITH"))], []
    assert len(queries) >= 7
    with ledger.engine.connect() as connection:
        for statement, given in queries:
            plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", given).all()
            steps = " | ".join(str(row[-1]) for row in plan)
            for table in ("requests", "attempts", "outcomes"):
                assert f"SCAN {table}" not in steps.replace(f"SCAN {table} USING INDEX ix_requests_ts", ""), steps
        assert connection.execute(text("SELECT count(*) FROM requests")).scalar_one() == 50


def test_a_judges_word_is_no_answer(ledger: Ledger):
    """A judge that did its work has an accepted attempt; the task it judged is not accepted by that, nor answered by it."""
    ledger.add(RequestRow("r", T, "openai_chat", "auto", "local", status="failed", finished_ts=T + 1))
    ledger.add(AttemptRow("a", "r", 0, "local", "m", T, accepted=False))
    ledger.add(AttemptRow("j", "r", 1, "acme", "m", T, accepted=True, role="judge", retail_usd=0.5))
    ledger.flush()
    (group,) = stretch(ledger.engine, T, T + 1).groups
    assert (group.answered, group.accepted, group.failed, group.supplier_usd) == ("", 0, 1, 0.5)
    assert recent(ledger.engine)[0]["answered"] is None
