"""A check from a stranger costs a moment, whatever it holds and however many answers it judges."""

import threading
import time
from dataclasses import replace
from typing import Any

import pytest

from baseload.router import RequestContext
from baseload.router.checks import CHECKS_S, Answer, run
from baseload.wire.chat import ChatRequest, Event, Extras, Finish, Message, ResponseFormat, SamplingParams, Text, TextDelta


def branching(keyword: str, levels: int = 40) -> dict[str, Any]:
    """A schema of two kilobytes that a plain validator would walk for 2^levels steps."""
    steps = {f"d{i}": {keyword: [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(levels)}
    return {"$ref": "#/$defs/d0", "$defs": steps | {f"d{levels}": {"type": "string"}}}


@pytest.mark.timeout(30)
@pytest.mark.parametrize("keyword", ["anyOf", "oneOf"])
def test_a_schema_that_branches_for_years_is_stopped(keyword: str):
    (verdict,) = run([{"type": "json_schema", "schema": branching(keyword)}], Answer("1", "stop"))
    assert not verdict.passed and "too long" in verdict.evidence


@pytest.mark.timeout(30)
def test_many_patterns_share_one_limit():
    slow = {"type": "regex", "pattern": "(a|aa)+$"}
    begun = time.monotonic()
    verdicts = run([slow] * 100, Answer("a" * 60 + "b", "stop"))
    assert len(verdicts) == 100 and not any(v.passed for v in verdicts)
    assert time.monotonic() - begun < 100 * 0.25 / 2, f"not {CHECKS_S} s in all, but the sum of their own limits"


def test_one_stopped_check_does_not_stop_a_later_answer():
    assert not run([{"type": "regex", "pattern": "a"}], Answer("a", "stop"), until=0)[0].passed
    assert run([{"type": "regex", "pattern": "a"}], Answer("a", "stop"))[0].passed


@pytest.mark.parametrize(
    ("schema", "text", "passes"),
    [
        ({"type": "object", "properties": {"n": {"type": "integer", "minimum": 3}}, "required": ["n"]}, '{"n": 3}', True),
        ({"type": "object", "properties": {"n": {"type": "integer", "minimum": 3}}, "required": ["n"]}, '{"n": 2}', False),
        (
            {"type": "object", "additionalProperties": False, "patternProperties": {"^a": {"type": "null"}}},
            '{"ab": null}',
            True,
        ),
        ({"type": "object", "patternProperties": {"^a": {"type": "null"}}}, '{"ab": 1}', False),
        ({"anyOf": [{"type": "string"}, {"items": {"$ref": "#/$defs/x"}}], "$defs": {"x": {"enum": [1, 2]}}}, "[1, 2]", True),
        ({"anyOf": [{"type": "string"}, {"items": {"$ref": "#/$defs/x"}}], "$defs": {"x": {"enum": [1, 2]}}}, "[1, 3]", False),
        ({"not": {"const": 5}}, "5", False),
        ({"type": "array", "prefixItems": [{"type": "string"}], "unevaluatedItems": False}, '["a", 1]', False),
        ({"if": {"type": "string"}, "then": {"minLength": 2}, "else": {"type": "null"}}, '"a"', False),
        ({}, "true", True),
    ],
)
def test_the_limit_changes_no_verdict(schema: dict[str, Any], text: str, passes: bool):
    (verdict,) = run([{"type": "json_schema", "schema": schema}], Answer(text, "stop"))
    assert verdict.passed is passes, verdict.evidence


@pytest.mark.parametrize("model", ["auto", "local"])
async def test_answers_are_judged_outside_the_event_loop(house: Any, monkeypatch: pytest.MonkeyPatch, model: str):
    where: list[bool] = []

    def noted(*args: Any) -> Any:
        where.append(threading.current_thread() is threading.main_thread())
        return run(*args)

    monkeypatch.setattr("baseload.router.checks.run", noted)
    router, *_ = house(["{}"])
    asked = ChatRequest(model, (Message("user", (Text("hi"),)),), response_format=ResponseFormat("json_object"))
    handling = await router.handle(asked, RequestContext("req_1"))
    assert [type(e) for e in [e async for e in handling.events]][-1] is Finish
    assert where == [False]


async def test_the_evidence_is_the_answer_that_failed(house: Any):
    said: list[Event] = [TextDelta("{}", 0, 1), TextDelta("oops", 1, 1), Finish("stop", 0), Finish("stop", 1)]
    fine: list[Event] = [TextDelta("{}", 0, 1), TextDelta("{}", 1, 1), Finish("stop", 0), Finish("stop", 1)]
    router, _, away = house([said], [fine])
    asked = ChatRequest("auto", (Message("user", (Text("hi"),)),), sampling=SamplingParams(n=2))
    asked = replace(asked, extras=Extras(({"type": "json_object"},)))
    handling = await router.handle(asked, RequestContext("req_1"))
    assert [e async for e in handling.events] == fine
    assert [m.text for m in away.asked[0].messages][:2] == ["hi", "oops"]
