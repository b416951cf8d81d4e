"""What the report says of routing: who answered, why others were asked, and how often a kept answer was wrong."""

from pathlib import Path

import pytest

from baseload.cli.route import explained
from baseload.ledger.ledger import Ledger, open_for_reading
from baseload.ledger.report import request
from baseload.ledger.routing import routing_report, wilson
from baseload.ledger.rows import AttemptRow, OutcomeRow, RequestRow


def decision(*notes: dict, denied: str = "") -> dict:
    rungs = [{"name": "small", "allowed": True, "gate": "", "reason": ""}]
    rungs.append({"name": "acme/big", "allowed": not denied, "gate": denied, "reason": "it may not" if denied else ""})
    return {"asked": "auto", "mode": "auto", "rungs": rungs, "checks": ["json_object"], "buffered": True, "notes": list(notes)}


STALL = {"by": "stall", "why": "the tool look was called 3 times", "numbers": {}}
FORECAST = {"by": "predictor", "why": "the local model will do", "numbers": {"gap": 0.1, "threshold": 0.25}}


@pytest.fixture
def url(tmp_path: Path) -> str:
    where = f"sqlite:///{tmp_path}/ledger.db"
    ledger = Ledger.open(where)
    # kept: a, b (found wrong later); escalated: c by a check, d by a stall; e: nobody's answer was accepted
    for name, notes, route in (
        ("a", [FORECAST], "small"),
        ("b", [FORECAST], "small"),
        ("c", [], "acme/big"),
        ("d", [STALL], "acme/big"),
        ("e", [], "small"),
    ):
        status = "failed" if name == "e" else "done"
        ledger.add(RequestRow(name, 10.0, "openai_chat", "auto", route, decision(*notes), status, finished_ts=11.5))
        local_ok = name in "ab"
        if name != "d":
            ledger.add(
                AttemptRow(f"{name}0", name, 0, "local", "small", 10.0, prompt_tokens=5, completion_tokens=2, accepted=local_ok)
            )
            ledger.add(OutcomeRow(name, f"{name}0", "json_object", local_ok, evidence="" if local_ok else "not JSON", ts=11.0))
        if name in "cd":
            ledger.add(
                AttemptRow(f"{name}1", name, 1, "acme", "big", 10.5, accepted=True, retail_usd=0.002, finish_reason="stop")
            )
    ledger.add(OutcomeRow("a", "a0", "", True, ts=20.0, source="feedback"))
    ledger.add(OutcomeRow("b", "b0", "", False, ts=20.0, source="audit"))
    ledger.add(RequestRow("z", 10.0, "openai_chat", "local", "small", {}, "done"))  # not routed
    ledger.close()
    return where


def test_the_report(url: str):
    found = routing_report(open_for_reading(url), 0.0)
    assert found["requests"] == 5 and found["routes"] == {"small": 3, "acme/big": 2}
    assert found["escalated_by"] == {"check json_object": 1, "stall": 1}
    assert found["unaccepted"] == 1 and found["supplier_usd"] == pytest.approx(0.004)
    assert found["per_accepted_usd"] == pytest.approx(0.001)
    assert (found["audited"]["kept"], found["audited"]["wrong"]) == (2, 1)
    assert routing_report(open_for_reading(url), 99.0)["requests"] == 0


def test_an_explanation_names_gates_numbers_and_thresholds(url: str):
    engine = open_for_reading(url)
    kept = request(engine, "a")
    assert kept
    text = "\n".join(explained(kept))
    for part in ("answered by small", "gap 0.1, threshold 0.25", "place acme/big: allowed", "json_object: passed", "in 1.50 s"):
        assert part in text, text
    bought = request(engine, "c")
    assert bought
    text = "\n".join(explained(bought))
    assert "json_object: failed (not JSON)" in text and "0.002000 US dollars" in text and "try 2, big: accepted" in text


def test_the_interval_of_a_share():
    assert wilson(0, 0) == (0.0, 1.0)
    low, high = wilson(5, 100)
    assert low == pytest.approx(0.0215, abs=1e-3) and high == pytest.approx(0.1118, abs=1e-3)
